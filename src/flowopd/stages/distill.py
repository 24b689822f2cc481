"""On-policy distillation: the student walks, each prompt's expert says where it would have gone (2605.08063)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowopd.checkpoint import Checkpoints
from flowopd.configs import DistillConfig, QueryConfig
from flowopd.durable import write_folder
from flowopd.errors import ConfigError
from flowopd.lora_file import LoraFile, diffusers_lora_files, lora_files, read_lora, sha256_of
from flowopd.noise import seed_of
from flowopd.nonfinite import Plain, View
from flowopd.objectives import Anchor, leave_one_out, to_go
from flowopd.objectives.weighting import step_weights
from flowopd.processes import only_main, own_rows, whole
from flowopd.prompts import Prompt
from flowopd.queries import AllSteps, BetaStep, FixedSteps, Queries, Query, RandomSteps
from flowopd.sampling import Batch
from flowopd.schedules import Walk, fused, relearnt, rewarded, walked
from flowopd.session import BASE, Router, Session
from flowopd.shapes import Grid, Routes
from flowopd.stages.guard import Guard
from flowopd.stages.monitor import Trained
from flowopd.stages.router import routes_of
from flowopd.step import ESTIMATORS, Credited, Distillation, Estimator, mean_gaps
from flowopd.train import Trainer
from flowopd.types import Condition
from flowopd.velocity import VelocityField

STUDENT = "student"


def distill(session: Session) -> Path:
    """Train the student of a recipe; returns its adapter's folder, OUT/student.

    Raises ConfigError if the recipe has no `distill`, or nothing is left to learn from; DataError for a label
    without a route.
    """
    config = _config(session)
    prompts = {label: session.prompts(label, "train") for label in session.recipe.prompts}
    every = [prompt for group in prompts.values() for prompt in group]
    session.route([prompt.label for prompt in every])
    teachers = session.load_teachers() if config.distillation else []
    if config.anchor and config.anchor.model != BASE:
        session.load_teachers([config.anchor.model])
    conditioning = session.encode(every)
    route, facts = routes_of(session, every, conditioning)
    session.create(STUDENT, config.adapter, _cold_start(session))

    def made(view: View, micro_batch: int) -> DistillUpdate:
        sized, place = config.model_copy(update={"micro_batch": micro_batch}), Place.of(session)
        lesson = _distillation(session, teachers, view)
        return update_kind(sized)(sized, place, lesson, route, prompts, view.conditioning)

    trained = Trained(STUDENT, config.sampling, config.micro_batch, every, conditioning)
    watch = Guard(session, trained, repeat=lambda view: made(view, 1))
    trainer = Trainer(session.adapters.parameters(STUDENT), config.optim, watch)
    update = made(Plain(conditioning), config.micro_batch)
    checkpoints = Checkpoints(session.out / "checkpoints" / "distill", _identity(session))
    tracker = session.tracker("distill", config.optim.updates, config.samples_per_label * len(prompts))
    with session.adapters.using(STUDENT):
        trainer.run(lambda step: update(step) | ({} if step else facts), tracker, checkpoints)
    student = session.adapters.lora(STUDENT)
    folder = session.out / STUDENT
    files = {**diffusers_lora_files(student), **lora_files(student, session.recipe.base)}
    only_main(lambda: write_folder(folder, files))
    session.adapters.remove(STUDENT)
    return folder


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
        self.walks: list[Walk] = []

    def __call__(self, step: int) -> dict[str, float]:
        rollout = step - step % self.config.updates_per_rollout
        counts = counts_of(self.config, list(self.prompts), rollout // self.config.updates_per_rollout)
        chosen = [prompt for label, count in counts.items() for prompt in self._choose(label, count, rollout)]
        labels = [prompt.label for prompt in chosen]
        rows = own_rows(len(chosen))
        left = rollout + self.config.updates_per_rollout - step
        again = step > rollout and self.walks
        gaps = self._learn_again(step, len(chosen)) if again else self._learn(step, chosen, rows, left)
        own = torch.cat(gaps, 2) if gaps else torch.empty(2, len(self.distillation.grid) - 1, 0)
        return _metrics(whole(own, rows, len(chosen), dim=2), labels)

    def _learn(self, step: int, chosen: Sequence[Prompt], rows: slice, updates: int) -> list[Tensor]:
        """The gradient on a new rollout of these rows, which serves so many updates; the gaps of each micro-batch."""
        queries, *later = (drawn(self.config, self.seed, step + i) for i in range(updates))
        again = {i for queries in later for i in queries.indices}
        self.walks, gaps = [], []
        for part, route in self._parts(step, chosen, rows):
            place = (self.distillation, part, route, queries, self.shape)
            if again:
                found, walk = walked(*place, again, share=len(part) / len(chosen))
                self.walks.append(walk)
            else:
                found = fused(*place, share=len(part) / len(chosen))
            gaps.append(found)
        return gaps

    def _parts(self, step: int, chosen: Sequence[Prompt], rows: slice) -> list[tuple[Batch, Routes]]:
        """Micro-batches of these rows of the chosen prompts, with their routes."""
        seeds = tuple(seed_of(self.seed, "distill", step, i) for i in range(len(chosen)))
        batch = Batch(self.conditioning([prompt.text for prompt in chosen[rows]]), seeds[rows])
        routes, size = self.route(chosen)[rows], self.config.micro_batch
        return list(zip(batch.split(size), routes.split(size), strict=False))

    def _learn_again(self, step: int, size: int) -> list[Tensor]:
        """The gradient on the walks of the last rollout, of `size` samples in all."""
        queries = drawn(self.config, self.seed, step)
        return [relearnt(self.distillation, walk, queries, share=len(walk.cond) / size) for walk in self.walks]

    def _choose(self, label: str, count: int, step: int) -> list[Prompt]:
        rng = np.random.default_rng(seed_of(self.seed, "prompts", label, step))
        prompts = self.prompts[label]
        return [prompts[i] for i in rng.integers(0, len(prompts), count)]


class ToGoUpdate(DistillUpdate):
    """An update by the policy gradient of whole trajectories: all samples walk, then their steps are credited.

    A step's advantage is the sum of the rewards from it on, less the mean of that over the other samples of its label.
    """

    def _learn(self, step: int, chosen: Sequence[Prompt], rows: slice, updates: int) -> list[Tensor]:
        d, queries, size = self.distillation, drawn(self.config, self.seed, step), self.config.micro_batch
        found = [rewarded(d, part, route, self.shape) for part, route in self._parts(step, chosen, rows)]
        own = torch.cat([rewards for rewards, _ in found], 1) if found else torch.empty(len(d.grid) - 1, 0)
        returns = to_go(whole(own, rows, len(chosen), dim=1))
        advantages = returns - leave_one_out(returns, [prompt.label for prompt in chosen])
        gaps = []
        for (_, walk), mine in zip(found, advantages[:, rows].split(size, 1), strict=False):
            credited = replace(d, estimate=Credited(mine.to(walk.cond.device)))
            gaps.append(relearnt(credited, walk, queries, share=len(walk.cond) / len(chosen)))
        return gaps


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


def drawn(config: DistillConfig, seed: int, step: int) -> Queries:
    """The queried steps of update `step`, a function of the seed and the step alone."""
    generator = torch.Generator().manual_seed(seed_of(seed, "queries", step))
    return query_rule(config.query).draw(config.sampling.steps, generator)


def query_rule(config: QueryConfig) -> Query:
    """The rule that a recipe names."""
    rules = {
        "all": AllSteps,
        "random": lambda: RandomSteps(config.k),
        "beta": lambda: BetaStep(config.a, config.b),
        "fixed": lambda: FixedSteps(config.steps or ()),
    }
    return rules[config.kind]()


def _config(session: Session) -> DistillConfig:
    config = session.recipe.distill
    if config is None:
        raise ConfigError("the recipe has no `distill`; add one, or run another stage")
    if not config.distillation and not (config.anchor and config.anchor.weight > 0):
        raise ConfigError("distill.distillation is off and there is no anchor; nothing is left to learn from")
    return config


def update_on(
    session: Session, config: DistillConfig, route: Router, prompts: Mapping[str, Sequence[Prompt]], view: View
) -> DistillUpdate:
    """An update of the student on these prompts by label, with settings beside the recipe's; all models are loaded."""
    lesson = _distillation(session, list(session.recipe.teachers) if config.distillation else [], view, config)
    return update_kind(config)(config, Place.of(session), lesson, route, prompts, view.conditioning)


def _distillation(
    session: Session, teachers: Sequence[str], view: View, config: DistillConfig | None = None
) -> Distillation:
    config = config or _config(session)
    sampling, anchor = config.sampling, config.anchor

    @cache
    def frozen(name: str, own: float | None = None) -> VelocityField:
        """One field for one name and guidance, so that a teacher that is the anchor too is known as one."""
        if own is None:
            return frozen(name, session.guidance(name, sampling.guidance))
        role = "teacher" if name in teachers else "anchor"
        return view.field(f"{role} {name}", session.field(name, own, view.conditioning))

    return distillation(
        config,
        session.model.grid(sampling.steps),
        student=view.field("the student", session.field(STUDENT, sampling.guidance, view.conditioning)),
        teachers=[frozen(name) for name in teachers],
        anchor=frozen(anchor.model, anchor.guidance) if anchor and anchor.weight > 0 else None,
        objective=session.own.objective,
    )


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


def _cold_start(session: Session) -> LoraFile | None:
    """The adapter that the cold start left, if the recipe has one."""
    return read_lora(session.out / "coldstart") if session.recipe.coldstart else None


def _identity(session: Session) -> dict[str, object]:
    """What the trained weights depend on: the recipe's part, and the content of every file that is read."""
    recipe, config = session.recipe, _config(session)
    named = list(recipe.teachers) if config.distillation else []
    anchor = [config.anchor.model] if config.anchor and config.anchor.model != BASE else []
    return {
        **recipe.identity("routes", "route_by", "coldstart", "distill"),
        **session.own.identity(),
        "sha256": session.hashes(list(dict.fromkeys([*named, *anchor]))),
        "guidance": {name: recipe.teachers[name].guidance for name in named},
        "sha256_prompts": session.training_hashes(),
        "sha256_coldstart": sha256_of(session.out / "coldstart") if recipe.coldstart else None,
    }


def _metrics(gaps: Tensor, labels: Sequence[str]) -> dict[str, float]:
    """Gaps (2, N, B) as `gap`, `gap/LABEL`, `gap/LABEL/STEP` for the teachers, `anchor_gap` for the anchor."""
    rows = {label: [other == label for other in labels] for label in dict.fromkeys(labels)}
    metrics = {"gap": float(gaps[0].nanmean()), "anchor_gap": float(gaps[1].nanmean())}
    metrics = {name: value for name, value in metrics.items() if value == value}
    return metrics | mean_gaps(gaps[0], rows)
