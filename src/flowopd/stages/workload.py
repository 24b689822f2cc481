"""What one update asks of the transformer: rows by role, for distillation and for a policy trained on rewards.

A row is one sample that passes once; guidance by anything but 1 makes it two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from flowopd.configs import AdapterConfig, DistillConfig, PolicyConfig, SftConfig
from flowopd.errors import ConfigError
from flowopd.recipe import Recipe
from flowopd.results import GRPO_MIX
from flowopd.sampling import SamplingConfig
from flowopd.session import Session
from flowopd.shapes import Grid
from flowopd.stages.coldstart import strongest
from flowopd.stages.learners import trained_steps, window_starts
from flowopd.stages.updates import plans_of
from flowopd.train import TrainConfig


@dataclass(frozen=True)
class Workload:
    """The trained stage of a recipe: its settings, which teachers it holds, and rows an update by role.

    `backward` is the rows of the trained model that have a gradient; they are among its forwards too. `kept` is the
    latents that a rollout keeps for further updates: states, the next ones, and what teachers and anchor said there.
    """

    stage: str
    adapter: AdapterConfig
    optim: TrainConfig
    sampling: SamplingConfig
    samples: int
    micro_batch: int
    teachers: tuple[str, ...]
    rows: Mapping[str, float]
    kept: int = 0
    before: float = 0
    """Rows that pass forward once, before the first update."""

    def of_one(self, processes: int) -> Workload:
        """The share of one of so many processes."""
        rows = {role: count / processes for role, count in self.rows.items()}
        return replace(self, samples=-(-self.samples // processes), rows=rows, kept=-(-self.kept // processes))

    @property
    def forwards(self) -> float:
        """Rows that pass forward, whoever they are for."""
        return sum(rows for role, rows in self.rows.items() if role != "backward")

    @property
    def passes(self) -> float:
        """Rows of the whole training in units of a forward; a backward counts as two."""
        return self.passes_until(self.optim.updates)

    def passes_until(self, updates: int) -> float:
        """Those of so many updates, none of which took more than another; nothing was done before the first."""
        return (self.before + updates * (self.forwards + 2 * self.rows["backward"])) if updates else 0.0

    @property
    def together(self) -> int:
        """Rows of one micro-batch of the trained model."""
        return min(self.micro_batch, self.samples) * rows_of(self.sampling.guidance)


def workload(session: Session) -> Workload:
    """That of the recipe's `distill`, or else of its `grpo_mix`. Raises ConfigError if it has neither."""
    recipe = session.recipe
    if recipe.distill is not None:
        return of_distillation(session, recipe.distill)
    if recipe.grpo_mix is not None:
        return of_policy(session, GRPO_MIX, recipe.grpo_mix)
    raise ConfigError("the recipe has no `distill` and no `grpo_mix`; add one, or plan another recipe")


def workloads(session: Session) -> list[Workload]:
    """Those of all stages that a recipe trains, in their order."""
    recipe = session.recipe
    trained = {f"teacher:{name}": teacher.train for name, teacher in recipe.teachers.items() if teacher.train}
    works = [of_policy(session, stage, config) for stage, config in trained.items()]
    works += [of_sft(session, recipe.coldstart)] if isinstance(recipe.coldstart, SftConfig) else []
    works += [of_policy(session, GRPO_MIX, recipe.grpo_mix)] if recipe.grpo_mix else []
    return works + ([of_distillation(session, recipe.distill)] if recipe.distill else [])


def rows_of(guidance: float) -> int:
    """Rows of a forward for one sample."""
    return 1 if guidance == 1 else 2


def of_distillation(session: Session, config: DistillConfig) -> Workload:
    """The student's rollout up to its last queried step, its forwards at states it left, and at the queried ones its
    teachers, the anchor and a backward; the mean over the updates of the run, whose queries the seed tells."""
    recipe = session.recipe
    samples = config.samples_per_label * len(recipe.trained_labels())
    student = samples * rows_of(config.sampling.guidance)
    taught, held = _frozen_rows(session, config)
    visits = queried_visits(config, recipe.seed, samples)
    rows = {
        "student": student * visits.forward,
        "teacher": taught * config.samples_per_label * visits.asked,
        "anchor": held * config.samples_per_label * visits.asked,
        "backward": student * visits.backward,
    }
    return Workload(
        "distill",
        config.adapter,
        config.optim,
        config.sampling,
        samples,
        config.micro_batch,
        _held(recipe, config),
        rows,
        round(samples * 4 * visits.kept),
    )


COUNTED = 100
"""Rollouts of a run whose queries are counted."""


@dataclass(frozen=True)
class Visits:
    """How often an update passes the student forward, asks the frozen fields, and passes backward, for each sample; how
    many of its steps a rollout keeps for later."""

    forward: float
    asked: float
    backward: float
    kept: float


def queried_visits(config: DistillConfig, seed: int, samples: int) -> Visits:
    """The means over the first updates of a run and the samples of an update; later ones are spread as evenly."""
    n = config.updates_per_rollout
    updates = min(config.optim.updates, COUNTED * n)
    ahead = set(range(config.sampling.steps)) if config.looks_ahead else set()
    forward = asked = backward = kept = 0
    for first in range(0, updates, n):
        for own in zip(*plans_of(config, seed, first, n, samples), strict=True):
            later = {i for queries in own[1:] for i in queries.indices} | ahead
            visited = later | set(own[0].indices)
            counts = [len(queries.indices) for queries in own[: updates - first]]
            forward += max(visited) + 1 + sum(counts[0 if ahead else 1 :])
            asked += len(visited)
            backward += sum(counts)
            kept += len(later) * n
    return Visits(*(each / updates / samples for each in (forward, asked, backward, kept)))


def of_policy(session: Session, stage: str, config: PolicyConfig) -> Workload:
    """Drawing the groups and learning from them, the mean over the updates of a round of windows."""
    guided, sampling = rows_of(config.sampling.guidance), config.sampling
    images = config.prompts_per_update * config.group
    drawn, learnt, checked = ROWS[config.loss](config, session.model.grid(sampling.steps))
    rows = {
        "student": (drawn + learnt) * guided,
        "reference": learnt * guided if config.kl > 0 else 0,
        "backward": learnt * guided,
    }
    before = checked * guided
    return Workload(stage, config.adapter, config.optim, sampling, images, config.micro_batch, (), rows, before=before)


def of_sft(session: Session, config: SftConfig) -> Workload:
    """Flow matching on images, which the experts draw once."""
    recipe = session.recipe
    labels = session.routed(recipe.trained_labels())
    each, steps = -(-config.images // len(labels)), config.sampling.steps
    guided = [rows_of(session.guidance(strongest(session, label), config.sampling.guidance)) for label in labels]
    return Workload(
        "sft",
        (recipe.distill or DistillConfig()).adapter,
        config.optim,
        SamplingConfig(),
        config.batch,
        config.micro_batch,
        tuple(recipe.teachers),
        {"student": config.batch, "backward": config.batch},
        before=each * steps * sum(guided),
    )


def _by_transitions(config: PolicyConfig, grid: Grid) -> tuple[int, int, int]:
    """Rows drawn, each group's way to its window once; rows learnt from; rows of the check before the first update."""
    starts, steps, images = window_starts(config), config.sampling.steps, config.prompts_per_update * config.group
    way = sum(starts) / len(starts)
    trained = [len(trained_steps(config.sampling.dynamics(start)[start:], grid[start:])) for start in starts]
    drawn = config.prompts_per_update * way + images * (steps - way)
    return round(drawn), round(images * sum(trained) / len(starts)), min(images, config.micro_batch) * trained[0]


def _by_matching(config: PolicyConfig, _grid: Grid) -> tuple[int, int, int]:
    images = config.prompts_per_update * config.group
    return images * config.sampling.steps, images * config.draws, 0


ROWS = {"transitions": _by_transitions, "matching": _by_matching}
"""(settings, grid) -> rows drawn and learnt from in an update, and rows once before the first, by loss."""


def _held(recipe: Recipe, config: DistillConfig) -> tuple[str, ...]:
    """The teachers that are in memory."""
    anchor = config.anchor.model if config.anchor else None
    return tuple(name for name in recipe.teachers if config.distillation or name == anchor)


def _frozen_rows(session: Session, config: DistillConfig) -> tuple[float, float]:
    """Rows of teachers, and of the anchor, at one step of one sample of every label.

    Labels that are routed by the text of their prompts are taken to be spread as the others are.
    """
    every = session.recipe.trained_labels()
    labels = session.routed(every)
    scales = {name: session.guidance(name, config.sampling.guidance) for name in session.recipe.teachers}
    taught = held = 0
    for route in session.router(labels)(labels):
        own = {name: scales[name] for name, weight in zip(scales, route.tolist(), strict=True) if weight}
        taught += sum(rows_of(scale) for scale in own.values()) if config.distillation else 0
        held += _anchor_rows(config, scales, own if config.distillation else {})
    return taught * len(every) / len(labels), held * len(every) / len(labels)


def _anchor_rows(config: DistillConfig, scales: Mapping[str, float], own: Mapping[str, float]) -> int:
    """Rows that the anchor takes for a sample with these teachers of its own: none if it is one of them."""
    if config.anchor is None or config.anchor.weight == 0:
        return 0
    name, scale = config.anchor.model, config.anchor.guidance
    scale = scales.get(name, config.sampling.guidance) if scale is None else scale
    return 0 if own.get(name) == scale else rows_of(scale)
