"""Do tasks pull one adapter apart? Cosines between the gradients of their losses, beside the noise of these gradients.

Each repeat draws two batches of every task, none shared with another task or repeat. An entry (i, j) is the cosine of a
batch of task i and another one of task j: with i = j it says how well a gradient is known at all, and how large the
other entries could be if all tasks wanted the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from rich.progress import track
from torch import Tensor, nn

from flowopd.conditioning import Conditioning
from flowopd.configs import AdapterConfig, DistillConfig
from flowopd.errors import ConfigError
from flowopd.nonfinite import Plain
from flowopd.processes import only_main, sum_gradients, wait
from flowopd.prompts import Prompt
from flowopd.recipe import Recipe
from flowopd.records import File, Record
from flowopd.results import GRPO_MIX, STUDENT
from flowopd.session import BASE, Router, Session
from flowopd.stages.checkpoints import CHECKPOINT, parted
from flowopd.stages.curve import DISTILL, start_of
from flowopd.stages.distill import lesson_of
from flowopd.stages.grpo import PolicyUpdate, apportioned, make_task
from flowopd.stages.learners import window_starts
from flowopd.stages.mix import mix_policy
from flowopd.stages.router import routes_of
from flowopd.stages.sample import available_models, model_lora
from flowopd.stages.updates import DistillUpdate, Place
from flowopd.tracking.screen import console, shows
from flowopd.wordings import with_wordings

INTERFERENCE = "interference.json"
START = "start"
"""Stands for the model that a stage starts from."""

ENOUGH = 4
"""Repeats from which on a spread says something."""

Matrix = list[list[float | None]]


class Cosines(Record):
    """Cosines (K, K) between the gradients of `tasks`, for the loss of `stage` at the weights of `model`.

    `mean` and `spread` (the standard deviation) are over the repeats in which both gradients are not zero: None where
    there is none, or not a second one. `counts` (K, K) is how many those are. `norms` are the mean norms of a batch's
    gradient.
    """

    stage: str
    model: str
    seed: int
    repeats: int
    tasks: list[str]
    mean: Matrix
    spread: Matrix
    norms: dict[str, float]
    counts: list[list[int]] | None = None

    def cosine(self, a: str, b: str) -> tuple[float, float | None] | None:
        """That of two tasks, or of two batches of one, with its standard error over the repeats.

        No error of fewer than `ENOUGH` repeats, nor where a record does not say of how many it is; None if there is no
        cosine.
        """
        i, j = self.tasks.index(a), self.tasks.index(b)
        mean, spread, count = self.mean[i][j], self.spread[i][j], self._count(i, j)
        if mean is None:
            return None
        return mean, None if spread is None or count < ENOUGH else spread / count**0.5

    def without_noise(self, a: str, b: str) -> tuple[float, float] | None:
        """What the cosine of two tasks comes to where batches are so large that two of one task agree, with its error.

        The cosine over the root of the two tasks' own, errors by propagation. None where a gradient is not told from
        noise: two batches of its task agree by less than two standard errors.
        """
        found = [self.cosine(*pair) for pair in ((a, b), (a, a), (b, b))]
        known = [(one[0], one[1]) for one in found if one is not None and one[1] is not None]
        if len(known) < 3 or any(mean <= 2 * error for mean, error in known[1:]):
            return None
        (between, error), (own_a, error_a), (own_b, error_b) = known
        root = (own_a * own_b) ** 0.5
        drift = between / 2 * np.hypot(error_a / own_a, error_b / own_b)
        return between / root, float(np.hypot(error, drift) / root)

    def _count(self, i: int, j: int) -> int:
        """Of how many repeats an entry is; of a record that does not say all, if no entry lacks any."""
        if self.counts is not None:
            return self.counts[i][j]
        return self.repeats if all(value is not None for row in self.spread for value in row) else 0


class Interference(File):
    """`interference.json`: what was measured in a run, by stage and model."""

    made_by: ClassVar[str] = "flowopd interference"

    version: Literal[1] = Field(default=1, validation_alias="schema", serialization_alias="schema")
    measured: tuple[Cosines, ...] = ()


@dataclass(frozen=True, eq=False)
class Tasks:
    """What a stage trains, the adapter `name`, and by task what leaves an update's gradient on its prompts alone.

    Updates are alike but for their prompts and noise where their numbers are the same modulo `cycle`.
    """

    name: str
    shape: AdapterConfig
    updates: Callable[[], Mapping[str, Callable[[int], object]]]
    cycle: int = 1


def write_interference(
    session: Session, stage: str | None = None, model: str | None = None, repeats: int = 8
) -> list[Cosines]:
    """Measure a model's tasks into OUT/interference.json, beside what is there of other stages and models.

    `stage` is whose loss, `distill` or `grpo_mix`, by default those that the recipe has, or that whose model it is;
    `model` is a row, a checkpoint, or `start`, by default what the stage made. The weights are taken into an adapter of
    the stage's own shape, which is left as it is. Raises ConfigError for a stage or a model that there is not, fewer
    repeats than one, or a single task.
    """
    if repeats < 1:
        raise ConfigError(f"there must be a repeat at least, got {repeats}")
    file = session.out / INTERFERENCE
    before = Interference.load(file).measured if file.exists() else ()
    wait()
    found = []
    for name in _stages(session.recipe, stage, model):
        weights = {None: MADE[name], START: start_of(session.recipe, name)}.get(model, model)
        found.append(measured(session, name, str(weights), repeats))
    new = {(one.stage, one.model) for one in found}
    kept = [one for one in before if (one.stage, one.model) not in new]
    only_main(lambda: Interference(measured=(*kept, *found)).save(file))
    return found


def measured(session: Session, stage: str, model: str, repeats: int) -> Cosines:
    """The cosines of one stage's tasks at the weights of one model."""
    available_models(session, [model])
    tasks = STAGES[stage](session)
    session.create(tasks.name, tasks.shape, None if model == BASE else model_lora(session, model))
    updates = tasks.updates()
    if len(updates) < 2:
        raise ConfigError(f"{stage} has one task, {', '.join(updates)}, which interferes with none; give more")
    parameters = list(session.adapters.parameters(tasks.name).values())

    def gradients(numbers: Sequence[int]) -> Tensor:
        pairs = zip(updates.values(), numbers, strict=True)
        return torch.stack([_gradient(update, number, parameters) for update, number in pairs])

    found = []
    with session.adapters.using(tasks.name):
        for repeat in track(range(repeats), f"{stage}, {model}", console=console, disable=not shows()):
            found.append(_compared(*map(gradients, _numbers(repeat, len(updates), tasks.cycle))))
    session.adapters.remove(tasks.name)
    values, norms = (np.stack(each) for each in zip(*found, strict=True))
    return Cosines(
        stage=stage,
        model=model,
        seed=session.recipe.seed,
        repeats=repeats,
        tasks=list(updates),
        mean=_over_repeats(values, np.mean, 1),
        spread=_over_repeats(values, partial(np.std, ddof=1), 2),
        norms=dict(zip(updates, norms.mean(0).tolist(), strict=True)),
        counts=np.isfinite(values).sum(0).tolist(),
    )


def _numbers(repeat: int, tasks: int, cycle: int) -> list[list[int]]:
    """The numbers (2, K) of a repeat's updates, which no other repeat has: alike modulo the cycle."""
    first = 2 * repeat * tasks
    return [[cycle * (first + half * tasks + k) + repeat % cycle for k in range(tasks)] for half in (0, 1)]


def _gradient(update: Callable[[int], object], number: int, parameters: Sequence[nn.Parameter]) -> Tensor:
    """The whole gradient (P,) of one update on the CPU, in fp32; none is left in the parameters."""
    update(number)
    sum_gradients(parameters)
    flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
    for parameter in parameters:
        parameter.grad = None
    return flat.float().cpu()


def _compared(first: Tensor, second: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Cosines (K, K) of gradients (K, P) of two independent batches, nan where one is zero, and their norms (K,)."""
    norms = torch.stack([half.norm(dim=1) for half in (first, second)])
    cosines = first @ second.mT / torch.outer(*norms)
    return ((cosines + cosines.mT) / 2).double().numpy(), norms.mean(0).double().numpy()


def _over_repeats(values: np.ndarray, statistic: Callable[[np.ndarray], float], least: int) -> Matrix:
    """A statistic of the finite values (R, K, K) of each entry; None where there are fewer than `least`."""
    _, rows, columns = values.shape
    finite = [[values[np.isfinite(values[:, i, j]), i, j] for j in range(columns)] for i in range(rows)]
    return [[float(statistic(one)) if len(one) >= least else None for one in row] for row in finite]


def _of_distillation(session: Session) -> Tasks:
    """Each label's own loss at the states of the student's trajectories, in closed form, anchor and all."""
    config = session.recipe.distill
    assert config is not None
    prompts = session.training_prompts()
    session.load_teachers()
    every = [prompt for group in prompts.values() for prompt in group]
    conditioning = session.encode(with_wordings(every))
    route, _ = routes_of(session, every, conditioning)
    closed = config.model_copy(update={"loss": "closed_form", "updates_per_rollout": 1, "labels_per_update": None})

    def updates() -> Mapping[str, Callable[[int], object]]:
        return {
            label: _taught(session, closed, route, {label: group}, conditioning) for label, group in prompts.items()
        }

    return Tasks(STUDENT, config.adapter, updates)


def _taught(
    session: Session,
    config: DistillConfig,
    route: Router,
    prompts: Mapping[str, Sequence[Prompt]],
    conditioning: Conditioning,
) -> DistillUpdate:
    """An update of the student on these prompts by label."""
    view, teachers = Plain(conditioning), list(session.recipe.teachers) if config.distillation else []
    lesson = lesson_of(session, config, teachers, view)
    return DistillUpdate(config, Place.of(session), lesson, route, prompts, conditioning)


def _of_mix(session: Session) -> Tasks:
    """Each task's own loss by group advantages, on as many prompts as it has of an update."""
    config = session.recipe.grpo_mix
    assert config is not None
    session.reach_judges(task.reward for task in config.tasks.values())
    policy, counts = (
        mix_policy(config),
        apportioned(config.prompts_per_update, [t.share for t in config.tasks.values()]),
    )
    ready = {name: make_task(session, task) for name, task in config.tasks.items()}
    conditioning = session.encode([prompt for task in ready.values() for prompt in task.prompts])

    def updates() -> Mapping[str, Callable[[int], object]]:
        sized = [config.model_copy(update={"prompts_per_update": count}) for count in counts]
        return {
            name: PolicyUpdate(session, replace(policy, config=own), [task], Plain(conditioning))
            for own, (name, task) in zip(sized, ready.items(), strict=True)
        }

    return Tasks(policy.name, config.adapter, updates, cycle=len(window_starts(config)))


STAGES: Mapping[str, Callable[[Session], Tasks]] = {DISTILL: _of_distillation, GRPO_MIX: _of_mix}
MADE = {DISTILL: STUDENT, GRPO_MIX: GRPO_MIX}
"""What each stage makes."""


def _stages(recipe: Recipe, stage: str | None, model: str | None) -> list[str]:
    """Whose losses are meant: of a stage's own model that stage's, else all that the recipe has."""
    there = [name for name, part in ((DISTILL, recipe.distill), (GRPO_MIX, recipe.grpo_mix)) if part is not None]
    if not there or (stage is not None and stage not in there):
        wanted = f"no {stage!r}" if stage else "no `distill` and no `grpo_mix`"
        raise ConfigError(f"the recipe has {wanted}; its losses are: {', '.join(there) or 'none'}")
    if stage is not None:
        return [stage]
    own = {STUDENT: DISTILL, GRPO_MIX: GRPO_MIX}.get(str(model))
    if model is not None and model.startswith(CHECKPOINT) and model.rpartition("/")[2].isdecimal():
        own = parted(model)[0]
    return [own] if own in there else there
