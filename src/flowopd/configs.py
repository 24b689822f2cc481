"""The parts of a recipe, with their keys, defaults and bounds; each says what it is for."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flowopd.sampling import SamplingConfig
from flowopd.train import TrainConfig


class Strict(BaseModel):
    """A part of a recipe: frozen, and unknown keys are mistakes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class AdapterConfig(Strict):
    """The shape of a trained adapter; `targets` None is the family's usual layers, and those of a cold start."""

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

    metrics: dict[str, MetricConfig]
    split: Split = "test"
    limit: int | None = Field(None, ge=1, description="at most so many prompts of a label, spread evenly")
    images_per_prompt: int = Field(1, ge=1)
    micro_batch: int = Field(32, ge=1)
    seed: int = 0
    sampling: SamplingConfig = SamplingConfig()
    models: tuple[str, ...] | None = Field(None, description="rows of the table; none is all there are")


class SamplesConfig(Strict):
    """The wall of pictures in the report."""

    prompts_per_label: int = Field(4, ge=0)
