"""The parts of a recipe, with their keys, defaults and bounds; each says what it is for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from flowopd.identity import HARMLESS
from flowopd.names import Name, Subfolder
from flowopd.sampling import SamplingConfig
from flowopd.train import TrainConfig

SEEDS = 2**63
"""Seeds are smaller."""

AT_A_TIME = "samples at a time, of each process; changes memory and speed, no result"


class Strict(BaseModel):
    """A part of a recipe: frozen; unknown keys are mistakes, so are empty words, and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_min_length=1)


class AdapterConfig(Strict):
    """The shape of a trained adapter; `targets` None is the family's usual layers, and those of a cold start."""

    rank: int = Field(32, ge=1, le=4096, description="rank of every layer's change")
    alpha: float = Field(64, gt=0, description="its scale is alpha / rank")
    targets: tuple[str, ...] | None = Field(
        None,
        description="layers by the ends of their names; none is the family's usual ones, and those of a cold start",
    )


class PromptFiles(Strict):
    """The prompts of one label: files, or data sets as `datasets:NAME[@SPLIT][#COLUMN]`."""

    train: str | None = Field(
        None, description="prompts that are trained on; a label with neither these nor a route is judged alone"
    )
    test: str | None = Field(None, description="prompts of the evaluation")
    unseen: str | None = Field(None, description="prompts of kinds that no training saw")
    rewritten: str | None = Field(None, description="the test prompts in other words")


class RewardConfig(Strict):
    """What a policy is rewarded for, and on whose prompts."""

    reward: str = Field(description="name of a reward, or module:Class of your own")
    prompts: str = Field(description="the label whose training prompts are used")
    detail: str | None = Field(None, description="train on this detail of the reward instead of its value")


class PolicyConfig(Strict):
    """How a policy is trained on rewards by Flow-GRPO (2505.05470)."""

    loss: Literal["transitions", "matching"] = Field(
        "transitions", description="PPO on transitions (Flow-GRPO), or advantage-weighted matching (2509.25050)"
    )
    draws: int = Field(2, ge=1, description="how often `matching` noises an image in an update")
    prompts_per_update: int = Field(8, ge=1, description="different prompts in every update, of all processes together")
    group: int = Field(16, ge=2, description="images per prompt")
    starts: int | None = Field(None, ge=1, description="first steps that the window starts at in turn; none is all")
    clip: float = Field(1e-4, gt=0, description="range of the ratio of mean log-probs around 1")
    kl: float = Field(0.0, ge=0, description="weight of the KL to the base, per latent element")
    micro_batch: Annotated[int, HARMLESS] = Field(32, ge=1, description=AT_A_TIME)
    sampling: SamplingConfig = Field(SamplingConfig(sampler="sde", window=3), description="how images are drawn")
    adapter: AdapterConfig = Field(AdapterConfig(), description="the shape of what is trained")
    optim: TrainConfig = Field(TrainConfig(), description="how it is optimised")


class GrpoConfig(RewardConfig, PolicyConfig):
    """How an expert is trained: on one reward."""


class TaskConfig(RewardConfig):
    """One of several rewards; an update takes its prompts in proportion to the shares."""

    share: float = Field(1.0, gt=0, description="of an update's prompts, against the other tasks' shares")


class MixConfig(PolicyConfig):
    """GRPO-Mix, the baseline: one policy trained on several rewards at once."""

    tasks: dict[Name, TaskConfig] = Field(min_length=1, description="the rewards by name")
    start: Literal["base", "coldstart"] = Field("base", description="what it starts from")

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
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    subfolder: Subfolder | None = Field(None, description="folder within an adapter's repository")
    train: GrpoConfig | None = Field(None, description="how its adapter is trained, in place of one that exists")
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

    kind: Literal["merge"] = Field("merge", description="the mean of the experts")
    weights: dict[str, float] | None = Field(
        None, description="of the experts by name, scaled to sum to 1; none is even"
    )
    rank: int | None = Field(None, ge=1, description="truncate to this rank; none is exact")


class SftConfig(Strict):
    """Cold start by flow matching on images sampled from each expert on its own prompts (the student learns these)."""

    kind: Literal["sft"] = Field("sft", description="fine-tuning on the experts' images")
    images: int = Field(512, ge=1, description="images in all, as many of each label, drawn by its expert; rounded up")
    batch: int = Field(32, ge=1, description="images of every update")
    micro_batch: Annotated[int, HARMLESS] = Field(32, ge=1, description=AT_A_TIME)
    sampling: SamplingConfig = Field(SamplingConfig(), description="how the experts draw")
    optim: TrainConfig = Field(TrainConfig(updates=100), description="how it is optimised")


class AnchorConfig(Strict):
    """Manifold Anchor Regularization: hold every sample near a frozen model (`base`, or a teacher's name)."""

    model: str = Field("base", description="the frozen model: base, or a teacher's name")
    weight: float = Field(0.02, ge=0, description="of the squared distance to it, against that to the teachers")
    guidance: float | None = Field(
        None, ge=0, description="its own guidance; none is its own as a teacher, or the student's"
    )


class QueryConfig(Strict):
    """Which steps of a rollout are trained."""

    kind: Literal["all", "random", "beta", "fixed"] = Field(
        "random",
        description="every step; `k` at random; one, by a Beta distribution over the rollout (2606.27377); or `steps`. "
        "At random means each sample its own, all samples of an update together evenly spread",
    )
    k: int | None = Field(None, ge=1, description="steps a rollout, for `random`; none is 2, or 1 where there is one")
    a: float = Field(5.0, gt=0, description="of Beta(a, b), for `beta`: above b the trained step is late, towards data")
    b: float = Field(2.0, gt=0, description="of Beta(a, b), for `beta`")
    steps: tuple[int, ...] | None = Field(None, description="the steps from 0, noise, on, for `fixed`")

    @model_validator(mode="after")
    def _steps_are_fixed(self) -> QueryConfig:
        if (self.kind == "fixed") != bool(self.steps):
            raise ValueError("steps and kind fixed go together: give both, or neither")
        return self


class DistillConfig(Strict):
    """How the student learns from its experts on its own trajectories."""

    distillation: bool = Field(True, description="switch the teachers off to train on the anchor alone")
    samples_per_label: int = Field(12, ge=1, description="trajectories of each label in every update")
    labels_per_update: int | None = Field(
        None, ge=1, description="labels that share the trajectories of all in an update, in turn; none is every label"
    )
    micro_batch: Annotated[int, HARMLESS] = Field(48, ge=1, description=AT_A_TIME)
    loss: Literal["closed_form", "log_ratio", "log_ratio_to_go", "detached"] = Field(
        "closed_form",
        description="the reverse KL itself; its policy gradient from sampled steps, each rewarded by itself or by all "
        "that follows too; or, as a control that has no expected signal, a detached reward (all but the first need "
        "noise at every trained step)",
    )
    weighting: Literal["kl", "ode", "velocity"] | tuple[float, ...] = Field(
        "velocity", description="of the steps: that of the KL, of the ODE's distance, even, or one number a step"
    )
    query: QueryConfig = Field(QueryConfig(), description="which steps of a rollout are trained")
    reworded: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of the samples whose student reads one of the prompt's `wordings`, while its teacher reads "
        "the prompt; none is prompt and wordings evenly",
    )
    updates_per_rollout: int = Field(1, ge=1, description="how many updates learn from the same trajectories in turn")
    anchor: AnchorConfig | None = Field(AnchorConfig(), description="what every sample is held to; none is nothing")
    sampling: SamplingConfig = Field(SamplingConfig(), description="how the student draws its trajectories")
    adapter: AdapterConfig = Field(AdapterConfig(), description="the shape of the student")
    optim: TrainConfig = Field(TrainConfig(updates=60, ema=0.9), description="how it is optimised")

    @model_validator(mode="after")
    def _rollouts_are_whole(self) -> DistillConfig:
        n, between = self.updates_per_rollout, self.optim.checkpoint_every
        if n > 1 and self.is_sampled:
            raise ValueError(f"{n} updates_per_rollout need loss closed_form; {self.loss} holds for new states only")
        if n > 1 and between % n:
            raise ValueError(f"optim.checkpoint_every {between} must be a multiple of updates_per_rollout {n}")
        return self

    @property
    def is_sampled(self) -> bool:
        """Whether the loss is told from the sampled next states, so that trained steps need noise."""
        return self.loss != "closed_form"

    @property
    def looks_ahead(self) -> bool:
        """Whether a step learns from what its teachers say of later ones, so that samples walk to the end first."""
        return self.distillation and self.loss == "log_ratio_to_go"


class WatchConfig(Strict):
    """When a reward that tells no picture from another stops a training."""

    patience: int | None = Field(
        5,
        ge=1,
        description="updates in a row that may give all pictures one and the same reward, if they hold four times as "
        "many prompts; none is any number",
    )


Split = Literal["train", "test", "unseen", "rewritten"]
"""The parts of a label's prompts."""


class MetricConfig(Strict):
    """A column of the results: a reward on the prompts of a label."""

    reward: str = Field(description="name of a reward, or module:Class of your own")
    prompts: str = Field(description="the label whose prompts are judged")
    split: Split | None = Field(None, description="of the prompts; none is the evaluation's")
    owner: str | None = Field(None, description="the teacher whose metric this is")
    grouped: bool = Field(False, description="mean of the means of the prompts' tags, as GenEval's score")
    held_out: bool = Field(
        False,
        description="left out of the average: a judge that no stage trains on, or prompts that it is not trained on",
    )


class EvaluateConfig(Strict):
    """Which models are judged on which metrics."""

    metrics: dict[Name, MetricConfig] = Field(description="the columns of the table by name")
    split: Split = Field("test", description="which prompts of a label")
    limit: int | None = Field(None, ge=0, description="at most so many prompts of a label, spread evenly; 0 is all")
    images_per_prompt: int = Field(1, ge=1, description="pictures of each prompt; their scores are averaged")
    micro_batch: Annotated[int, HARMLESS] = Field(32, ge=1, description=AT_A_TIME)
    seed: int = Field(0, ge=0, lt=SEEDS, description="of the pictures' noise, the same for every model")
    sampling: SamplingConfig = Field(SamplingConfig(), description="how every model draws")
    models: tuple[str, ...] | None = Field(
        None, description="rows of the table, among them checkpoint:STAGE/STEP; none is all there are but checkpoints"
    )
    checkpoints: StrictBool | Annotated[int, Field(ge=1)] = Field(
        False, description="judge all checkpoints that were kept too, or so many of each stage: quality against compute"
    )


class SamplesConfig(Strict):
    """The wall of pictures in the report."""

    prompts_per_label: int = Field(4, ge=0, description="prompts of each label on the wall")
