"""A recipe: which models, prompts and stages make a run. Read from YAML, checked key by key, never guessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from flowopd.configs import (
    SEEDS,
    DistillConfig,
    EvaluateConfig,
    MergeConfig,
    MixConfig,
    PromptFiles,
    RewardConfig,
    SamplesConfig,
    SftConfig,
    Strict,
    TeacherConfig,
    WatchConfig,
)
from flowopd.errors import ConfigError
from flowopd.faults import Fault, explained
from flowopd.identity import lasting
from flowopd.monitors.limits import MonitorConfig
from flowopd.names import Label, TeacherName
from flowopd.rewards.base import JudgeConfig
from flowopd.rewards.own import is_path
from flowopd.sampling import SamplingConfig
from flowopd.shipped import shipped_recipe, shipped_recipes
from flowopd.untrusted import DEEPEST, LARGEST_YAML, check_secrets, check_values, read_at_most, yaml_values

Part = TypeVar("Part", bound=BaseModel)

CHANGE = "a change of the recipe given here"


RUN = ("base", "revision", "resolution", "dtype", "t5")
"""The parts of a recipe that say which base it is, and how it is run where that changes what it says."""


class Recipe(Strict):
    """A whole run. A stage whose part is missing is left out."""

    base: str = Field(description="folder, hub id or package: name of a pipeline")
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    seed: int = Field(0, ge=0, lt=SEEDS, description="of everything random")
    device: str | None = Field(None, description="such as cuda or cpu; none is the best there is")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of the frozen base; what is trained, its gradient and its optimiser are float32"
    )
    t5: bool = Field(True, description="encode prompts by T5 too; without it by the two CLIPs alone")
    gradient_checkpointing: bool = Field(False, description="recompute activations: slower, far less memory")
    compile: bool = Field(False, description="compile the transformer's blocks by torch.compile")
    resolution: int | None = Field(
        None, ge=1, le=8192, description="side of the pictures in pixels; none is the model's own"
    )
    prompts: dict[Label, PromptFiles] = Field({}, description="prompts by label; a prompt is routed by its label")
    teachers: dict[TeacherName, TeacherConfig] = Field({}, description="the experts by name")
    routes: dict[str, str | dict[str, float]] | None = Field(
        None, description="a label's teacher, or weights over teachers; a label without one goes to its own teacher"
    )
    route_by: Literal["text"] | None = Field(
        None, description="route each prompt as the label that its text resembles most; none is its own label"
    )
    coldstart: MergeConfig | SftConfig | None = Field(
        None, discriminator="kind", description="what the student starts from; none is the base"
    )
    grpo_mix: MixConfig | None = Field(None, description="the baseline: one policy on all rewards at once")
    distill: DistillConfig | None = Field(None, description="on-policy distillation")
    judges: dict[str, JudgeConfig] = Field({}, description="rewards that run elsewhere, or with another model")
    trust: tuple[str, ...] = Field((), description="rewards by module:Class whose code this recipe may run")
    monitor: MonitorConfig | None = Field(None, description="watch what is trained without a reward; none is off")
    evaluate: EvaluateConfig | None = Field(None, description="the table of all models")
    samples: SamplesConfig = Field(SamplesConfig(), description="the wall of pictures in the report")
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] | None = Field(
        None, description="where metrics go besides metrics.jsonl; none is TensorBoard, if it is installed"
    )
    watch: WatchConfig = Field(WatchConfig(), description="when a reward that says nothing stops a training")

    @model_validator(mode="after")
    def _a_mix_has_its_start(self) -> Recipe:
        if self.grpo_mix is not None and self.grpo_mix.start == "coldstart" and self.coldstart is None:
            raise ValueError("grpo_mix starts from the cold start, and the recipe has none; add `coldstart`")
        return self

    @model_validator(mode="after")
    def _code_is_trusted(self) -> Recipe:
        served = {name for name, judge in self.judges.items() if judge.url is not None}
        foreign = [name for name in self.rewards() if is_path(name) and name not in {*self.trust, *served}]
        if foreign:
            raise ValueError(f"reward {foreign[0]} is code; if you trust it, allow it: --set 'trust=[{foreign[0]}]'")
        return self

    def parts(self, *names: str) -> dict[str, Any]:
        """These parts of the recipe, as plain values."""
        return self.model_dump(mode="json", include=set(names))

    def identity(self, *names: str) -> dict[str, Any]:
        """What a trained model depends on: the base as it is run, the seed, and these parts, less what is harmless."""
        return {name: value for name, value in lasting(self).items() if name in (*RUN, "seed", *names)}

    def rewards(self) -> list[str]:
        """The names of all rewards that it trains on, evaluates by, or sets up as judges."""
        metrics = self.evaluate.metrics.values() if self.evaluate else ()
        return [*(task.reward for task in self.rewarded()), *(metric.reward for metric in metrics), *self.judges]

    def trained_labels(self) -> list[str]:
        """The labels that a student learns on; one without a route and without training prompts is judged alone.

        Raises ConfigError if there is none.
        """
        routed = {*self.teachers, *(self.routes or {})}
        labels = [label for label, files in self.prompts.items() if files.train is not None or label in routed]
        if not labels:
            known = ", ".join(self.prompts) or "none"
            raise ConfigError(
                f"no label has prompts to learn on (labels: {known}); add prompts.LABEL.train, or --prompts LABEL=FILE"
            )
        return labels

    def rewarded(self) -> list[RewardConfig]:
        """What its policies, the teachers that it trains and GRPO-Mix, are rewarded for."""
        teachers = [teacher.train for teacher in self.teachers.values() if teacher.train is not None]
        return [*teachers, *(self.grpo_mix.tasks.values() if self.grpo_mix else ())]

    @property
    def drawing(self) -> EvaluateConfig:
        """How its models draw: as they are judged, else without noise by the steps, guidance and micro-batch of a
        training: that of the student, of the mix, of fine-tuning, or of the first expert."""
        if self.evaluate is not None:
            return self.evaluate
        tuned = self.coldstart if isinstance(self.coldstart, SftConfig) else None
        parts = (self.distill, self.grpo_mix, tuned, *(teacher.train for teacher in self.teachers.values()))
        trained = next((part for part in parts if part is not None), None)
        if trained is None:
            return EvaluateConfig(metrics={})
        sampling = SamplingConfig(steps=trained.sampling.steps, guidance=trained.sampling.guidance)
        return EvaluateConfig(metrics={}, sampling=sampling, micro_batch=trained.micro_batch)


def recipe_path(name: str) -> Path:
    """A recipe by path, or by name among those that ship with the package."""
    shipped = None if Path(name).exists() else shipped_recipe(name)
    return shipped or Path(name)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML file, or one that ships, by name, with overrides such as `distill.optim.updates=20`.

    A recipe may start from another in its folder, `extends: FILE.yaml`: its own keys are laid over those, mapping by
    mapping. Raises ConfigError if a file is missing or no YAML of plain values (see `untrusted`), for secrets in it,
    and for unknown keys, whose nearest known one it names.
    """
    return make_recipe(read_tree(recipe_path(str(path))), overrides, str(path))


def read_tree(path: Path, extending: Sequence[Path] = ()) -> dict[str, Any]:
    """The plain values of a YAML file, laid over those of the file that it extends. Raises ConfigError as above."""
    try:
        tree = yaml_values(read_at_most(path, LARGEST_YAML).decode("utf-8-sig"))
    except FileNotFoundError:
        near = get_close_matches(Path(path).stem, shipped_recipes(), n=1)
        mend = f"did you mean {near[0]!r}?" if near else "`flowopd recipes` lists some to start from"
        raise ConfigError(f"recipe {path} does not exist; {mend}") from None
    except OSError as error:
        raise ConfigError(f"recipe {path} cannot be read ({error.strerror}); give a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"recipe {path} is not YAML: byte {error.start} is no UTF-8; save it as UTF-8") from None
    except ValueError as error:
        raise ConfigError(f"recipe {path} is not YAML that a recipe may hold: {error}; mend it there") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"recipe {path} must be a mapping of keys, got {type(tree).__name__}")
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    below = beside(path, parent, f"recipe {path}: extends")
    if below in (*extending, path):
        raise ConfigError(f"recipe {path} extends {parent}, which comes back to it; leave one `extends` out")
    return _laid_over(read_tree(below, (*extending, path)), tree)


def beside(path: Path, name: Any, what: str) -> Path:
    """The file `name` in the folder of `path`. Raises ConfigError, which begins with `what`, for any other place."""
    if not isinstance(name, str) or not name or name == ".." or Path(name).name != name:
        raise ConfigError(f"{what} must name a file in the same folder, got {str(name)[:80]!r}")
    return path.with_name(name)


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` on `below`, mapping by mapping."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _laid_over(merged[key], value) if both else value
    return merged


def make_recipe(tree: Mapping[str, Any], overrides: Sequence[str] = (), where: str = "recipe") -> Recipe:
    """A recipe of plain values; raises ConfigError as `load_recipe` does."""
    return validated(Recipe, tree, overrides, where)


def validated(kind: type[Part], tree: Mapping[str, Any], overrides: Sequence[str] = (), where: str = "recipe") -> Part:
    """`tree` with its overrides as a `kind`. Raises ConfigError naming the first key that is wrong, and the mend."""
    changed = dict(tree)
    for override in overrides:
        changed = _set(changed, override)
    try:
        check_values(changed)
        check_secrets(changed)
        made = kind.model_validate(changed)
    except ValidationError as error:
        fault = Fault.first(error, changed)
        source = CHANGE if fault.came_with(overrides) else where
        raise ConfigError(f"{source}: {explained(fault, kind, changed)}") from None
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    _check_truths(changed, made.model_dump(), where)
    return made


def _check_truths(given: Any, made: Any, where: str, place: str = "") -> None:
    """Raises ConfigError where a true or false was taken for a number, or a number or word for one of them."""
    if isinstance(given, Mapping) and isinstance(made, Mapping):
        for key in given.keys() & made.keys():
            _check_truths(given[key], made[key], where, f"{place}.{key}" if place else str(key))
    elif isinstance(given, list | tuple) and isinstance(made, list | tuple):
        for i, (below, value) in enumerate(zip(given, made, strict=False)):
            _check_truths(below, value, where, f"{place}.{i}")
    elif isinstance(given, bool) != isinstance(made, bool):
        wanted = "true or false" if isinstance(made, bool) else "a number"
        raise ConfigError(f"{where}: {place} must be {wanted}, got {str(given)[:80]!r}")


def _set(tree: Mapping[str, Any], override: str) -> dict[str, Any]:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {override!r} is not of the form key.key=value")
    try:
        value = yaml_values(text)
    except ValueError as error:
        raise ConfigError(f"--set {override!r}: the value is not YAML ({error}); quote it") from None
    return with_value(tree, path, value)


def with_value(tree: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """`tree` with another value at a place such as `distill.optim.updates`. Raises ConfigError for one too deep."""
    if path.count(".") >= DEEPEST:
        raise ConfigError(f"{path[:80]!r} is no place in a recipe; give one such as distill.optim.updates")
    first, _, rest = path.partition(".")
    below = tree.get(first)
    return {**tree, first: with_value(below if isinstance(below, dict) else {}, rest, value) if rest else value}
