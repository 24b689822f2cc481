"""Several runs in one file: rows of a table, each a recipe with a few keys changed, for one seed or more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from flowopd.configs import Strict
from flowopd.errors import ConfigError
from flowopd.recipe import Recipe, load_recipe, make_recipe, read_tree, validated


class Row(Strict):
    """One row: a recipe beside the suite's file, changed by `set`, run with every seed."""

    recipe: str
    set: tuple[str, ...] = ()
    seeds: tuple[int, ...] = Field((0,), min_length=1)


class Suite(Strict):
    """Rows by name, in the order in which they are run."""

    rows: dict[str, Row] = Field(min_length=1)


def load_runs(
    path: Path, out: Path, overrides: Sequence[str] = (), only: Sequence[str] = ()
) -> list[tuple[Path, Recipe]]:
    """What a file asks for, as (folder, recipe): a recipe is one run, in `out`; a suite one a row and seed, in
    OUT/ROW/seed-N. `only` keeps these rows.

    All recipes are read before anything runs. Raises ConfigError as `load_recipe` does, and for unknown rows.
    """
    tree = read_tree(path)
    if "rows" not in tree:
        if only:
            raise ConfigError(f"{path} is a recipe and has no rows; leave --row out, or give a suite")
        return [(out, make_recipe(tree, overrides, str(path)))]
    rows = validated(Suite, tree, (), str(path)).rows
    unknown = [name for name in only if name not in rows]
    if unknown:
        raise ConfigError(f"{path} has no row {unknown[0]!r}; it has: {', '.join(rows)}")
    return [
        (out / name / f"seed-{seed}", load_recipe(path.with_name(row.recipe), [*row.set, f"seed={seed}", *overrides]))
        for name, row in rows.items()
        if not only or name in only
        for seed in row.seeds
    ]
