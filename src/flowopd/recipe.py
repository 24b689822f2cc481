"""A recipe: which models, prompts and stages make a run. Read from YAML, checked key by key, never guessed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flowopd.errors import ConfigError
from flowopd.hub import located
from flowopd.rewards.base import JudgeConfig
from flowopd.sampling import SamplingConfig
from flowopd.train import TrainConfig

Part = TypeVar("Part", bound=BaseModel)


class Strict(BaseModel):
    """A part of a recipe: frozen, and unknown keys are mistakes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class AdapterConfig(Strict):
    """The shape of a trained adapter; `targets` None is the model family's usual layers."""

    rank: int = Field(32, ge=1)
    alpha: float = Field(64, gt=0)
    targets: tuple[str, ...] | None = None


class PromptFiles(Strict):
    """The prompts of one label: files, or data sets as `datasets:NAME[@SPLIT][#COLUMN]`."""

    train: str | None = None
    test: str | None = None
    unseen: str | None = None
    rewritten: str | None = None


class RewardConfig(Strict):
    """What a policy is rewarded for, and on whose prompts."""

    reward: str
    prompts: str = Field(description="the label whose training prompts are used")
    detail: str | None = Field(None, description="train on this detail of the reward instead of its value")


class PolicyConfig(Strict):
    """How a policy is trained on rewards by Flow-GRPO (2505.05470)."""

    loss: Literal["transitions", "matching"] = Field(
        "transitions", description="PPO on transitions (Flow-GRPO), or advantage-weighted matching (2509.25050)"
    )
    draws: int = Field(2, ge=1, description="how often `matching` noises an image in an update")
    prompts_per_update: int = Field(8, ge=1)
    group: int = Field(16, ge=2, description="images per prompt")
    starts: int | None = Field(None, ge=1, description="first steps that the window starts at in turn; none is all")
    clip: float = Field(1e-4, gt=0)
    kl: float = Field(0.0, ge=0, description="weight of the KL to the base, per latent element")
    micro_batch: int = Field(32, ge=1)
    sampling: SamplingConfig = SamplingConfig(sampler="sde", window=3)
    adapter: AdapterConfig = AdapterConfig()
    optim: TrainConfig = TrainConfig()


class GrpoConfig(RewardConfig, PolicyConfig):
    """How an expert is trained: on one reward."""


class TaskConfig(RewardConfig):
    """One of several rewards; an update takes its prompts in proportion to the shares."""

    share: float = Field(1.0, gt=0)


class MixConfig(PolicyConfig):
    """GRPO-Mix, the baseline: one policy trained on several rewards at once."""

    tasks: dict[str, TaskConfig] = Field(min_length=1)
    start: Literal["base", "coldstart"] = "base"

    @model_validator(mode="after")
    def _room_for_all(self) -> MixConfig:
        if self.prompts_per_update < len(self.tasks):
            raise ValueError(f"{self.prompts_per_update} prompts_per_update cannot serve {len(self.tasks)} tasks")
        return self


class TeacherConfig(Strict):
    """An expert: an adapter or a whole transformer that exists, or how to train an adapter."""

    adapter: str | None = Field(None, description="folder, file, `package:` name or hub id of a LoRA adapter")
    transformer: str | None = Field(None, description="folder or hub id of a whole transformer, or of its pipeline")
    offload: bool = Field(False, description="keep a whole transformer on the CPU while it is not asked")
    revision: str | None = None
    subfolder: str | None = None
    train: GrpoConfig | None = None
    guidance: float | None = Field(None, ge=0, description="its own guidance; none is the student's")

    @model_validator(mode="after")
    def _one_source(self) -> TeacherConfig:
        if sum(source is not None for source in (self.adapter, self.transformer, self.train)) != 1:
            raise ValueError("a teacher is either an adapter, a whole transformer, or trained: give one of the three")
        if self.offload and self.transformer is None:
            raise ValueError("offload is for a whole transformer; leave it out")
        if self.subfolder is not None and self.adapter is None:
            raise ValueError("subfolder is for an adapter; leave it out")
        return self


class MergeConfig(Strict):
    """Cold start by the exact mean of the experts' weight changes."""

    kind: Literal["merge"] = "merge"
    weights: dict[str, float] | None = None
    rank: int | None = Field(None, ge=1, description="truncate to this rank; none is exact")


class SftConfig(Strict):
    """Cold start by flow matching on images sampled from each expert on its own prompts (the student learns these)."""

    kind: Literal["sft"] = "sft"
    images: int = Field(512, ge=1, description="images in all, shared evenly by the experts")
    batch: int = Field(32, ge=1)
    micro_batch: int = Field(32, ge=1)
    sampling: SamplingConfig = SamplingConfig()
    optim: TrainConfig = TrainConfig(updates=100)


class AnchorConfig(Strict):
    """Manifold Anchor Regularization: hold every sample near a frozen model (`base`, or a teacher's name)."""

    model: str = "base"
    weight: float = Field(0.02, ge=0)
    guidance: float | None = Field(None, ge=0)


class QueryConfig(Strict):
    """Which steps of a rollout are trained."""

    kind: Literal["all", "random", "beta"] = "all"
    k: int = Field(1, ge=1, description="steps a rollout, for `random`")
    a: float = Field(5.0, gt=0)
    b: float = Field(2.0, gt=0)


class DistillConfig(Strict):
    """How the student learns from its experts on its own trajectories."""

    distillation: bool = Field(True, description="switch the teachers off to train on the anchor alone")
    samples_per_label: int = Field(12, ge=1, description="trajectories of each label in every update")
    micro_batch: int = Field(48, ge=1)
    loss: Literal["closed_form", "log_ratio"] = Field(
        "closed_form", description="the reverse KL itself, or its policy gradient from sampled steps (needs an SDE)"
    )
    weighting: Literal["kl", "ode", "velocity"] | tuple[float, ...] = "velocity"
    query: QueryConfig = QueryConfig()
    anchor: AnchorConfig | None = AnchorConfig()
    sampling: SamplingConfig = SamplingConfig()
    adapter: AdapterConfig = AdapterConfig()
    optim: TrainConfig = TrainConfig(updates=60, ema=0.9)


class MetricConfig(Strict):
    """A column of the results: a reward on the prompts of a label."""

    reward: str
    prompts: str
    owner: str | None = Field(None, description="the teacher whose metric this is")
    grouped: bool = Field(False, description="mean of the means of the prompts' tags, as GenEval's score")
    held_out: bool = Field(False, description="a judge that no stage trains on; left out of the average")


class EvaluateConfig(Strict):
    """Which models are judged on which metrics."""

    metrics: dict[str, MetricConfig]
    split: Literal["train", "test", "unseen", "rewritten"] = "test"
    limit: int | None = Field(None, ge=1, description="at most so many prompts of a label, spread evenly")
    images_per_prompt: int = Field(1, ge=1)
    micro_batch: int = Field(32, ge=1)
    seed: int = 0
    sampling: SamplingConfig = SamplingConfig()
    models: tuple[str, ...] | None = Field(None, description="rows of the table; none is all there are")


class SamplesConfig(Strict):
    """The wall of pictures in the report."""

    prompts_per_label: int = Field(4, ge=0)


RUN = ("base", "revision", "resolution", "dtype", "t5")
"""The parts of a recipe that say which base it is, and how it is run where that changes what it says."""


class Recipe(Strict):
    """A whole run. A stage whose part is missing is left out."""

    base: str
    revision: str | None = None
    seed: int = 0
    device: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    t5: bool = Field(True, description="encode prompts by T5 too; without it by the two CLIPs alone")
    gradient_checkpointing: bool = Field(False, description="recompute activations: slower, far less memory")
    compile: bool = Field(False, description="compile the transformer's blocks by torch.compile")
    resolution: int | None = Field(None, ge=1, description="side of the pictures in pixels; none is the model's own")
    prompts: dict[str, PromptFiles] = {}
    teachers: dict[str, TeacherConfig] = {}
    routes: dict[str, str | dict[str, float]] | None = Field(None, description="none is a teacher for each label")
    coldstart: MergeConfig | SftConfig | None = Field(None, discriminator="kind")
    grpo_mix: MixConfig | None = None
    distill: DistillConfig | None = None
    judges: dict[str, JudgeConfig] = Field({}, description="rewards that run elsewhere, or with another model")
    evaluate: EvaluateConfig | None = None
    samples: SamplesConfig = SamplesConfig()

    @model_validator(mode="after")
    def _a_mix_has_its_start(self) -> Recipe:
        if self.grpo_mix is not None and self.grpo_mix.start == "coldstart" and self.coldstart is None:
            raise ValueError("grpo_mix starts from the cold start, and the recipe has none; add `coldstart`")
        return self

    def parts(self, *names: str) -> dict[str, Any]:
        """These parts of the recipe, as plain values."""
        return self.model_dump(mode="json", include=set(names))

    def identity(self, *names: str) -> dict[str, Any]:
        """What a trained model depends on: the base as it is run, the seed, and these parts."""
        return self.parts(*RUN, "seed", *names)

    def rewarded(self) -> list[RewardConfig]:
        """What its policies, the teachers that it trains and GRPO-Mix, are rewarded for."""
        teachers = [teacher.train for teacher in self.teachers.values() if teacher.train is not None]
        return [*teachers, *(self.grpo_mix.tasks.values() if self.grpo_mix else ())]


def recipe_path(name: str) -> Path:
    """A recipe by path, or by name among those that ship with the package."""
    shipped = located("package:recipes") / Path(name).name
    return shipped if not Path(name).exists() and shipped.exists() else Path(name)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML file, with overrides such as `distill.optim.updates=20`.

    Raises ConfigError if the file is missing or no YAML, and for unknown keys, whose nearest known one it names.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"recipe {path} does not exist; recipes/ holds some to start from") from None
    except OSError as error:
        raise ConfigError(f"recipe {path} cannot be read ({error.strerror}); give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"recipe {path} must be a mapping of keys, got {type(tree).__name__}")
    return make_recipe(tree, overrides, str(path))


def make_recipe(tree: Mapping[str, Any], overrides: Sequence[str] = (), where: str = "recipe") -> Recipe:
    """A recipe of plain values; raises ConfigError as `load_recipe` does."""
    return validated(Recipe, tree, overrides, where)


def validated(kind: type[Part], tree: Mapping[str, Any], overrides: Sequence[str] = (), where: str = "recipe") -> Part:
    """`tree` with its overrides as a `kind`. Raises ConfigError naming the first key that is wrong, and the mend."""
    changed = dict(tree)
    for override in overrides:
        changed = _set(changed, override)
    try:
        return kind.model_validate(changed)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error, kind)}") from None


def _set(tree: dict[str, Any], override: str) -> dict[str, Any]:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {override!r} is not of the form key.key=value")
    first, _, rest = path.partition(".")
    if not rest:
        try:
            return {**tree, first: yaml.safe_load(text)}
        except yaml.YAMLError:
            raise ConfigError(f"--set {override!r}: the value is not YAML; quote it") from None
    below = tree.get(first)
    return {**tree, first: _set(below if isinstance(below, dict) else {}, f"{rest}={text}")}


KINDS = ("merge", "sft")
"""Tags of unions: pydantic puts them into the path of an error."""


def _explain(error: ValidationError, kind: type[BaseModel]) -> str:
    first = error.errors()[0]
    place = [part for part in first["loc"] if part not in KINDS]
    where = ".".join(map(str, place)) or "the whole"
    if first["type"] == "extra_forbidden":
        near = get_close_matches(str(place[-1]), _known_keys(kind, place[:-1]), n=1, cutoff=0.0)
        return f"unknown key {where!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    if first["type"] == "missing":
        return f"{where} is missing; add it"
    return f"{where}: {first['msg']}, got {str(first['input'])[:80]!r}"


def _known_keys(kind: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys that the schema allows at a path."""
    schema = kind.model_json_schema()
    nodes = [schema]
    for part in path:
        nodes = [below for node in nodes for below in _below(node, str(part), schema)]
    return sorted({key for node in nodes for key in node.get("properties", {})})


def _below(node: Mapping[str, Any], key: str, schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = node.get("properties", {}).get(key) or node.get("additionalProperties")
    return _resolved(found, schema) if isinstance(found, dict) else []


def _resolved(node: Mapping[str, Any], schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in node:
        return _resolved(schema["$defs"][node["$ref"].rsplit("/", 1)[-1]], schema)
    options = [*node.get("anyOf", ()), *node.get("oneOf", ())]
    return [found for option in options for found in _resolved(option, schema)] or [dict(node)]
