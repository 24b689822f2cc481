"""Several runs in one file: rows of tables, each a recipe with a few keys changed, for one seed or more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from flowopd.configs import SEEDS, Strict
from flowopd.errors import ConfigError
from flowopd.names import Name
from flowopd.recipe import Recipe, beside, make_recipe, read_tree, validated, with_value


class Row(Strict):
    """One row: a recipe beside the suite's file with other values at some keys, run with every seed.

    For example `{recipe: student.yaml, set: {distill.weighting: kl}, seeds: [0, 1]}`.
    """

    recipe: str
    set: dict[str, Any] = Field({})
    seeds: tuple[Annotated[int, Field(ge=0, lt=SEEDS)], ...] = Field((0,), min_length=1)

    @model_validator(mode="after")
    def _every_seed_once(self) -> Row:
        twice = [seed for seed in self.seeds if self.seeds.count(seed) > 1]
        if twice:
            raise ValueError(f"seed {twice[0]} stands twice in {list(self.seeds)}; leave one out")
        return self


class Table(Strict):
    """Rows that are shown together; a run has a line for each of its models that `models` names, or for all."""

    title: str
    says: str = ""
    rows: tuple[str, ...] = Field(min_length=1)
    models: tuple[str, ...] | None = None
    metrics: tuple[str, ...] | None = Field(None, description="columns; none is all")


class Held(Strict):
    """What is held to be true of two lines, ROW/MODEL each, in the words of `says`; `afterwards` if it was found in
    results and not asked of them."""

    says: str
    of: str
    over: str
    afterwards: bool = False

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines that it speaks of."""
        return self.of, self.over


class Claim(Held):
    """`of` is above `over` by `at_least`, on the mean over `metrics`, by default those of the average.

    The difference is taken prompt by prompt; where `over` has metrics of its own, it is the ratio of the two means.
    """

    metrics: tuple[str, ...] = ()
    over_metrics: tuple[str, ...] | None = None
    at_least: float = 0.0

    @property
    def asked(self) -> float:
        """What the measurement must be, or more."""
        return self.at_least


class Closes(Held):
    """`of` closes a share, `closes`, of the gap between the base `over` and an `expert`, on one metric."""

    expert: str
    metric: str
    closes: float

    @property
    def asked(self) -> float:
        """What the measurement must be, or more."""
        return self.closes

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines that it speaks of."""
        return self.of, self.over, self.expert


class Reach(Held):
    """`of` reaches the best average of `over`, rows both, within a share of the passes that `over` took to it, .1 for a
    tenth.

    Both rows need their curves: `evaluate.checkpoints`.
    """

    within: float = Field(gt=0)


class Compute(Strict):
    """The rows whose quality is shown against what their training took."""

    rows: tuple[str, ...] = Field(min_length=1)
    experts: str | None = Field(None, description="the row of base and experts, for the gap closed; none leaves it out")
    reach: str | None = Field(None, description="the row whose best average the others are asked for; none is nobody's")
    trained_by: str | None = Field(None, description="the recipe beside this file that the experts were trained by")


class Pictures(Strict):
    """Which rows or tables the study's figures show; none is no such figure."""

    forgetting: str | None = Field(None, description="the row of base and experts")
    gaps: str | None = Field(None, description="the row whose distillation is shown")
    seesaw: str | None = Field(None, description="the table of runs with more and more rewards")
    wall: tuple[str, ...] | None = Field(None, description="models as ROW/MODEL, whose pictures stand side by side")
    interference: tuple[str, ...] | None = Field(
        None, description="models as ROW/MODEL, whose tasks' gradients were compared by `flowopd interference`"
    )


ABOVE, WITHIN, CLOSING = "a claim", "a claim within", "a claim that closes"
"""Tags of the kinds of claims, and of nothing else."""


def _kind(claim: Any) -> str:
    """The tag of a claim, which its keys tell."""
    keys = claim if isinstance(claim, Mapping) else dict(claim) if isinstance(claim, Held) else ()
    return WITHIN if "within" in keys else CLOSING if "closes" in keys else ABOVE


AnyClaim = Annotated[
    Annotated[Claim, Tag(ABOVE)] | Annotated[Reach, Tag(WITHIN)] | Annotated[Closes, Tag(CLOSING)],
    Discriminator(_kind),
]


class Suite(Strict):
    """Rows by name in the order in which they are run, the tables that show them, and what they should prove."""

    rows: dict[Name, Row] = Field(min_length=1)
    tables: dict[str, Table] = Field({})
    claims: tuple[AnyClaim, ...] = ()
    pictures: Pictures = Pictures()
    compute: Compute | None = Field(None)

    @model_validator(mode="after")
    def _names_its_rows(self) -> Suite:
        shown = [row for table in self.tables.values() for row in table.rows]
        claimed = [parted(name)[0] for claim in self.claims for name in claim.lines]
        drawn = [parted(name)[0] for name in (*(self.pictures.interference or ()), *(self.pictures.wall or ()))]
        drawn += [row for row in (self.pictures.forgetting, self.pictures.gaps) if row is not None]
        spent = (*self.compute.rows, self.compute.experts, self.compute.reach) if self.compute else ()
        unknown = [row for row in (*shown, *claimed, *drawn, *spent) if row is not None and row not in self.rows]
        if unknown:
            raise ValueError(f"there is no row {unknown[0]!r} to show; the rows are {', '.join(self.rows)}")
        if self.pictures.seesaw not in (None, *self.tables):
            known = ", ".join(self.tables) or "none"
            raise ValueError(f"there is no table {self.pictures.seesaw!r} to draw; add it to `tables` (there: {known})")
        return self


def parted(name: str) -> tuple[str, str]:
    """The row and the model of a line, which is named ROW/MODEL."""
    row, _, model = name.partition("/")
    return row, model


@dataclass(frozen=True)
class Run:
    """One run of a suite's row: its seed, its folder and its recipe; of a single recipe the row has no name."""

    row: str
    seed: int
    folder: Path
    recipe: Recipe


def is_suite(path: Path) -> bool:
    """Whether a file holds a suite and not a recipe."""
    return "rows" in read_tree(path)


def recipes_of(path: Path) -> list[str]:
    """The recipes of a suite's rows, by name, each once. Raises as `load_suite`."""
    return list(dict.fromkeys(str(path.parent / row.recipe) for row in load_suite(path).rows.values()))


def experts_recipe(suite: Suite, path: Path) -> Recipe | None:
    """The recipe of the experts' own training, if the suite in `path` names one. Raises as `load_recipe` does."""
    if suite.compute is None or suite.compute.trained_by is None:
        return None
    file = beside(path, suite.compute.trained_by, f"{path}: compute.trained_by")
    return make_recipe(read_tree(file), (), str(file))


def load_suite(path: Path) -> Suite:
    """Raises ConfigError if the file is missing or no suite, and for unknown keys."""
    tree = read_tree(path)
    if tree and "rows" not in tree:
        raise ConfigError(f"{path} has no `rows`, so it is a recipe and no suite; give a suite, or add them")
    return validated(Suite, tree, (), str(path))


def load_runs(path: Path, out: Path, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> list[Run]:
    """What a file asks for: a recipe is one run, in `out`; a suite one a row and seed, in OUT/ROW/seed-N.

    `only` keeps these rows. All recipes are read before anything runs. Raises ConfigError as `load_recipe` does, and
    for unknown rows.
    """
    if not is_suite(path):
        if only:
            raise ConfigError(f"{path} is a recipe and has no rows; leave --row out, or give a suite")
        recipe = make_recipe(read_tree(path), overrides, str(path))
        return [Run("", recipe.seed, out, recipe)]
    rows = load_suite(path).rows
    unknown = [name for name in only if name not in rows]
    if unknown:
        raise ConfigError(f"{path} has no row {unknown[0]!r}; it has: {', '.join(rows)}")
    return [
        Run(name, seed, out / name / f"seed-{seed}", _recipe(path, row, seed, overrides))
        for name, row in rows.items()
        if not only or name in only
        for seed in row.seeds
    ]


def _recipe(path: Path, row: Row, seed: int, overrides: Sequence[str]) -> Recipe:
    file = beside(path, row.recipe, f"{path}: a row's recipe")
    tree = read_tree(file)
    for key, value in {**row.set, "seed": seed}.items():
        tree = with_value(tree, key, value)
    return make_recipe(tree, overrides, str(file))
