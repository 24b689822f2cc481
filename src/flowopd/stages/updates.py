"""One update of a distillation, a function of the seed and the step alone, and what the settings make of the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from flowopd.configs import DistillConfig, QueryConfig
from flowopd.crews import Task
from flowopd.errors import ConfigError
from flowopd.noise import seed_of
from flowopd.objectives import Anchor, leave_one_out, to_go
from flowopd.objectives.weighting import step_weights
from flowopd.processes import own_rows, whole
from flowopd.prompts import Prompt
from flowopd.queries import AllSteps, BetaStep, FixedSteps, Queries, Query, RandomSteps, places
from flowopd.sampling import Batch
from flowopd.schedules import Walk, fused, relearnt, rewarded, walked
from flowopd.session import Router, Session
from flowopd.shapes import Grid
from flowopd.step import ESTIMATORS, Credited, Distillation, Estimator, mean_gaps
from flowopd.types import Condition
from flowopd.velocity import VelocityField
from flowopd.wordings import read_by_student


@dataclass(frozen=True)
class Place:
    """Where trajectories run: the shape of one sample, and the seed of it all."""

    shape: Sequence[int]
    seed: int

    @classmethod
    def of(cls, session: Session) -> Place:
        """That of a run."""
        return cls(session.latent_shape(), session.recipe.seed)


class DistillUpdate:
    """One update: prompts of every label together, or of some in turn, a function of the seed and the step alone.

    `conditioning` gives the rows of prompts by their texts. Of several processes each takes its own rows of the batch.
    Where a rollout serves several updates, the first of them learns while the student walks and leaves the walk to the
    others. A run that goes on between them walks anew.
    """

    def __init__(
        self,
        config: DistillConfig,
        place: Place,
        distillation: Distillation,
        route: Router,
        prompts: Mapping[str, Sequence[Prompt]],
        conditioning: Callable[[Sequence[str]], Condition],
    ) -> None:
        self.config, self.seed, self.shape = config, place.seed, place.shape
        self.distillation, self.route = distillation, route
        self.prompts, self.conditioning = prompts, conditioning
        self.walk: Walk | None = None
        self.walked_at, self.plans = 0, list[list[Queries]]()

    def __call__(self, step: int) -> dict[str, float]:
        rollout = step - step % self.config.updates_per_rollout
        counts = counts_of(self.config, list(self.prompts), rollout // self.config.updates_per_rollout)
        chosen = [prompt for label, count in counts.items() for prompt in self._choose(label, count, rollout)]
        rows = own_rows(len(chosen))
        if step > rollout and self.walk is not None:
            gaps = relearnt(self.distillation, self.walk, self.plans[step - self.walked_at])
        else:
            gaps = self._learn(step, chosen, rows, rollout + self.config.updates_per_rollout - step)
        return _metrics(whole(gaps, rows, len(chosen), dim=2), [prompt.label for prompt in chosen])

    def _learn(self, step: int, chosen: Sequence[Prompt], rows: slice, updates: int) -> Tensor:
        """The gradient on new rollouts of these rows, which serve so many updates; the gaps (2, N, B) of the rows."""
        d, task = self.distillation, self._task(step, chosen, rows)
        self.walk, self.walked_at, self.plans = None, step, self._plans(step, len(chosen), rows, updates)
        now, *others = self.plans
        if not others:
            return fused(d, task, now)
        later = [{i for queries in own for i in queries.indices} for own in zip(*others, strict=True)]
        gaps, self.walk = walked(d, task, now, later)
        return gaps

    def _task(self, step: int, chosen: Sequence[Prompt], rows: slice) -> Task:
        """These rows of the chosen prompts, from noise that belongs to the update and the row."""
        seeds = tuple(seed_of(self.seed, "distill", step, i) for i in range(len(chosen)))
        asked = [prompt.text for prompt in chosen]
        read = read_by_student(chosen, self.config.reworded, self.seed, "wordings", step)
        batch, routes = Batch(self.conditioning(read[rows]), seeds[rows]), self.route(chosen)[rows]
        other = None if read == asked else self.conditioning(asked[rows])
        return Task(batch, routes, self.shape, self.config.micro_batch, among=len(chosen), asked=other)

    def _plans(self, step: int, size: int, rows: slice, updates: int) -> list[list[Queries]]:
        """What these rows of so many samples query in so many updates from `step` on."""
        return [plan[rows] for plan in plans_of(self.config, self.seed, step, updates, size)]

    def _choose(self, label: str, count: int, step: int) -> list[Prompt]:
        rng = np.random.default_rng(seed_of(self.seed, "prompts", label, step))
        prompts = self.prompts[label]
        return [prompts[i] for i in rng.integers(0, len(prompts), count)]


class ToGoUpdate(DistillUpdate):
    """An update by the policy gradient of whole trajectories: all samples walk, then their steps are credited.

    A step's advantage is the sum of the rewards from it on, less the mean of that over the other samples of its label.
    """

    def _learn(self, step: int, chosen: Sequence[Prompt], rows: slice, updates: int) -> Tensor:
        d = self.distillation
        own, walk = rewarded(d, self._task(step, chosen, rows))
        returns = to_go(whole(own, rows, len(chosen), dim=1))
        advantages = (returns - leave_one_out(returns, [prompt.label for prompt in chosen]))[:, rows]
        credited = replace(d, estimate=Credited(advantages.to(own.device)))
        return relearnt(credited, walk, self._plans(step, len(chosen), rows, updates)[0])


def update_kind(config: DistillConfig) -> type[DistillUpdate]:
    """The update that these settings ask for."""
    return ToGoUpdate if config.looks_ahead else DistillUpdate


def counts_of(config: DistillConfig, labels: Sequence[str], turn: int) -> dict[str, int]:
    """How many samples rollout `turn` draws of which labels, as even as can be; every rollout draws as many in all.

    Raises ConfigError if there are fewer labels than an update takes.
    """
    total, n = config.samples_per_label * len(labels), config.labels_per_update or len(labels)
    if n > len(labels):
        raise ConfigError(f"labels_per_update is {n}, and there are {len(labels)} labels; take fewer, or leave it out")
    return {labels[(turn * n + i) % len(labels)]: total // n + (i < total % n) for i in range(n)}


def plans_of(config: DistillConfig, seed: int, step: int, updates: int, samples: int) -> list[list[Queries]]:
    """What each sample queries in each of so many updates from `step` on, a function of the seed and the step."""
    steps = config.sampling.steps
    rule = query_rule(config.query, steps)
    draws = [torch.Generator().manual_seed(seed_of(seed, "queries", step + i)) for i in range(updates)]
    return [[rule.at(place, steps) for place in places(samples, draw)] for draw in draws]


FEW = 2
"""Queried steps of a rollout where nobody says how many (docs/choices.md)."""


def query_rule(config: QueryConfig, steps: int) -> Query:
    """The rule that a recipe names, for rollouts of so many steps."""
    rules = {
        "all": AllSteps,
        "random": lambda: RandomSteps(config.k or min(FEW, steps)),
        "beta": lambda: BetaStep(config.a, config.b),
        "fixed": lambda: FixedSteps(config.steps or ()),
    }
    return rules[config.kind]()


def distillation(
    config: DistillConfig,
    grid: Grid,
    student: VelocityField,
    teachers: Sequence[VelocityField],
    anchor: VelocityField | None = None,
    objective: Estimator | None = None,
) -> Distillation:
    """These fields, taught as the settings say on the times of `grid`; `objective` replaces the settings' loss.

    Raises ConfigError for an objective beside a loss that is no function of one step.
    """
    if objective is not None and config.looks_ahead:
        raise ConfigError(f"an objective of your own replaces distill.loss, and {config.loss} was asked; leave one out")
    dynamics = config.sampling.dynamics()
    return Distillation(
        student=student,
        teachers=teachers,
        anchor_field=anchor,
        anchor=Anchor(weight=config.anchor.weight if config.anchor else 0.0),
        dynamics=dynamics,
        grid=grid,
        weights=step_weights(config.weighting, dynamics, grid),
        estimate=objective or ESTIMATORS[config.loss],
    )


def _metrics(gaps: Tensor, labels: Sequence[str]) -> dict[str, float]:
    """Gaps (2, N, B) as `gap`, `gap/LABEL`, `gap/LABEL/STEP` for the teachers, `anchor_gap` for the anchor."""
    rows = {label: [other == label for other in labels] for label in dict.fromkeys(labels)}
    metrics = {"gap": float(gaps[0].nanmean()), "anchor_gap": float(gaps[1].nanmean())}
    metrics = {name: value for name, value in metrics.items() if value == value}
    return metrics | mean_gaps(gaps[0], rows)
