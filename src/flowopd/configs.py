"""The parts of a recipe, with their keys, defaults and bounds; each says what it is for."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from flowopd.identity import HARMLESS
from flowopd.sampling import SamplingConfig
from flowopd.train import TrainConfig

SEEDS = 2**63
"""Seeds are smaller."""

OWN = ("base", "coldstart", "grpo_mix", "student")
"""Names that a run's own models have, and no teacher."""

_NAME = re.compile(r"\w[\w +-]{0,59}")


class Strict(BaseModel):
    """A part of a recipe: frozen; unknown keys are mistakes, so are empty words, and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_min_length=1)


def _name(text: str) -> str:
    if not _NAME.fullmatch(text) or text != text.strip():
        raise ValueError("a name is 1 to 60 letters, digits, spaces, _, + or -, as it names folders; choose another")
    return text


def _teacher(text: str) -> str:
    if text in OWN:
        raise ValueError(f"{', '.join(OWN)} are names of a run's own models; choose another for a teacher")
    return _name(text)


def _label(text: str) -> str:
    if not 0 < len(text) <= 100 or not text.isprintable():
        raise ValueError("a label is 1 to 100 letters that print; choose another")
    return text


def _inside(text: str) -> str:
    path = PurePath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text:
        raise ValueError("a subfolder lies within its adapter's folder; give it relative to that, without ..")
    return text


Name = Annotated[str, AfterValidator(_name)]
"""What may name a folder: no separator, no dot."""

TeacherName = Annotated[str, AfterValidator(_teacher)]
"""A name that no model of the run itself has."""

Label = Annotated[str, AfterValidator(_label)]
"""What prompts are routed by."""

Subfolder = Annotated[str, AfterValidator(_inside)]
"""A path that stays below another."""


class AdapterConfig(Strict):
    """The shape of a trained adapter; `targets` None is the model family's usual layers."""

    rank: int = Field(32, ge=1, le=4096)
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
    micro_batch: Annotated[int, HARMLESS] = Field(32, ge=1)
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

    tasks: dict[Name, TaskConfig] = Field(min_length=1)
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
    offload: Annotated[bool, HARMLESS] = Field(
        False, description="keep a whole transformer on the CPU while it is not asked"
    )
    revision: str | None = None
    subfolder: Subfolder | None = None
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
    micro_batch: Annotated[int, HARMLESS] = Field(32, ge=1)
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
    micro_batch: Annotated[int, HARMLESS] = Field(48, ge=1)
    loss: Literal["closed_form", "log_ratio"] = Field(
        "closed_form", description="the reverse KL itself, or its policy gradient from sampled steps (needs an SDE)"
    )
    weighting: Literal["kl", "ode", "velocity"] | tuple[float, ...] = "velocity"
    query: QueryConfig = QueryConfig()
    updates_per_rollout: int = Field(1, ge=1, description="how many updates learn from the same trajectories in turn")
    anchor: AnchorConfig | None = AnchorConfig()
    sampling: SamplingConfig = SamplingConfig()
    adapter: AdapterConfig = AdapterConfig()
    optim: TrainConfig = TrainConfig(updates=60, ema=0.9)

    @model_validator(mode="after")
    def _rollouts_are_whole(self) -> DistillConfig:
        n, between = self.updates_per_rollout, self.optim.checkpoint_every
        if n > 1 and self.loss != "closed_form":
            raise ValueError(f"{n} updates_per_rollout need loss closed_form; {self.loss} holds for new states only")
        if n > 1 and between % n:
            raise ValueError(f"optim.checkpoint_every {between} must be a multiple of updates_per_rollout {n}")
        return self


class WatchConfig(Strict):
    """When a reward that tells no picture from another stops a training."""

    patience: int | None = Field(
        5, ge=1, description="updates in a row that may give all pictures one and the same reward; none is any number"
    )


Split = Literal["train", "test", "unseen", "rewritten"]
"""The parts of a label's prompts."""


class MetricConfig(Strict):
    """A column of the results: a reward on the prompts of a label."""

    reward: str
    prompts: str
    split: Split | None = Field(None, description="of the prompts; none is the evaluation's")
    owner: str | None = Field(None, description="the teacher whose metric this is")
    grouped: bool = Field(False, description="mean of the means of the prompts' tags, as GenEval's score")
    held_out: bool = Field(False, description="a judge that no stage trains on; left out of the average")


class EvaluateConfig(Strict):
    """Which models are judged on which metrics."""

    metrics: dict[Name, MetricConfig]
    split: Split = "test"
    limit: int | None = Field(None, ge=1, description="at most so many prompts of a label, spread evenly")
    images_per_prompt: int = Field(1, ge=1)
    micro_batch: Annotated[int, HARMLESS] = Field(32, ge=1)
    seed: int = Field(0, ge=0, lt=SEEDS)
    sampling: SamplingConfig = SamplingConfig()
    models: tuple[str, ...] | None = Field(None, description="rows of the table; none is all there are")


class SamplesConfig(Strict):
    """The wall of pictures in the report."""

    prompts_per_label: int = Field(4, ge=0)
