"""When the gradient of an update is taken: while the student walks, or afterwards at the states it left.

A schedule adds the gradient of the mean loss over a task's samples to the student's parameters and returns the gaps
(2, N, B) to the target and to the anchor, nan where a step was not queried or there is no such field. All of them learn
by `step.learn`, so they have the same gradient up to rounding; they differ in what they compute. No sample walks beyond
its last queried step: no picture is needed, so the rest of a trajectory is not either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flowopd.crews import Crews, Steps, Task
from flowopd.gaussian import widen
from flowopd.queries import Queries
from flowopd.rollout import Walker
from flowopd.step import Distillation, Said, learn, reward
from flowopd.types import Step


class Schedule(Protocol):
    """One update's gradient at the queries of each sample (B); see the head of this file."""

    def __call__(self, d: Distillation, task: Task, plan: Sequence[Queries]) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Visit:
    """A step of the samples `who`, and what the frozen fields said there if they were asked."""

    who: Sequence[int]
    step: Step
    said: Said | None


@dataclass(frozen=True, eq=False)
class Kept:
    """What is kept of a visit of the samples `who`: step `index` led them from `x` to `x_next`."""

    who: Sequence[int]
    index: int
    x: Tensor
    x_next: Tensor
    said: Said


@dataclass(frozen=True, eq=False)
class Walk:
    """A rollout that is learnt from again: its visits to the steps that are queried later."""

    task: Task
    kept: Sequence[Kept]


def fused(d: Distillation, task: Task, plan: Sequence[Queries]) -> Tensor:
    """The student's forward of the rollout is its forward of the training.

    Backward runs at once at every queried state, so nothing is computed twice and the activations of one step live at
    a time.
    """
    queried = _steps(plan)
    return learnt(d, task, _visits(d, task, queried, queried), plan)


def replay(d: Distillation, task: Task, plan: Sequence[Queries]) -> Tensor:
    """A rollout without a gradient, then a forward with one at each of its queried states."""
    nothing = [Queries((), ())] * len(task)
    _, walk = walked(d, task, nothing, later=_steps(plan))
    return relearnt(d, walk, plan)


def walked(d: Distillation, task: Task, plan: Sequence[Queries], later: Steps) -> tuple[Tensor, Walk]:
    """`fused`, and the walk itself for further updates, in which each sample will query its steps `later`."""
    queried, kept = _steps(plan), list[Kept]()
    wanted = [{*now, *then} for now, then in zip(queried, later, strict=True)]
    visits = _keeping(kept, later, _visits(d, task, queried, wanted))
    return learnt(d, task, visits, plan), Walk(task, kept)


def rewarded(d: Distillation, task: Task) -> tuple[Tensor, Walk]:
    """A walk of all steps without a gradient, and the rewards (N, B) of its steps (`step.reward`).

    Raises ConfigError if a step has no noise.
    """
    steps, kept = range(len(d.grid) - 1), list[Kept]()
    everywhere, nowhere = [steps] * len(task), [()] * len(task)
    rewards = torch.zeros(len(steps), len(task), device=task.device)
    for visit in _keeping(kept, everywhere, _visits(d, task, nowhere, everywhere)):
        step, said = visit.step, visit.said
        if said is not None and said.target is not None:
            rewards[step.index, step.rows] = reward(step, d.dynamics[step.index], said.target, d.weights[step.index])
    return rewards, Walk(task, kept)


def relearnt(d: Distillation, walk: Walk, plan: Sequence[Queries]) -> Tensor:
    """The gradient of another update on a walk that is there; returns gaps as a schedule does.

    The states are those of the policy that walked, which the student has left by as many updates. The closed form needs
    no importance weight for that: it is a loss at given states, and only their distribution is an older one. A policy
    gradient holds for the policy that walked, so for no second update.
    """
    return learnt(d, walk.task, _again(d, walk, _steps(plan)), plan)


def learnt(d: Distillation, task: Task, visits: Iterable[Visit], plan: Sequence[Queries]) -> Tensor:
    """The gradient at the queried ones of some visits, one after the other; returns the gaps (2, N, B)."""
    steps, among = len(d.grid) - 1, task.among or len(task)
    weights = [dict(zip(queries.indices, queries.weights, strict=True)) for queries in plan]
    gaps = torch.full((2, steps, len(task)), torch.nan, device=task.device)
    for visit in visits:
        step, own = visit.step, [weights[b].get(visit.step.index) for b in visit.who]
        if visit.said is not None and None not in own:
            shares = torch.tensor([w / steps / among for w in own if w is not None])
            gaps[:, step.index, step.rows] = learn(d, step, visit.said, shares.to(task.device, non_blocking=True))
    return gaps


def _visits(d: Distillation, task: Task, trained: Steps, wanted: Steps) -> Iterator[Visit]:
    """Every sample's steps up to its last wanted one; the frozen fields are asked at its wanted ones.

    At its trained ones, which are wanted too, the student's velocity carries a gradient.
    """
    if not len(task):
        return
    walker, crews = Walker.of(d.student, d.dynamics, d.grid, task.device), Crews(d, task, trained, wanted)
    x = widen(task.batch.start(task.shape))
    for i in crews.steps:
        x_next = x
        for crew in crews.at(i):
            step = walker.step(i, x[crew.rows], crew.rows, crew.batch.cond, crew.batch.noise, crew.learns)
            yield Visit(crew.who, step, crew.frozen(step.x, step.t) if crew.frozen else None)
            x_next = x_next.index_copy(0, crew.rows, step.x_next)
        x = x_next


def _again(d: Distillation, walk: Walk, queried: Steps) -> Iterator[Visit]:
    """The student once more at those of the kept visits that are queried."""
    task = walk.task
    walker = Walker.of(d.student, d.dynamics, d.grid, task.device)
    for kept in walk.kept:
        mine = [j for j, b in enumerate(kept.who) if kept.index in queried[b]]
        if mine:
            who, here = [kept.who[j] for j in mine], task.rows(mine)
            rows = task.rows(who)
            step = walker.again(kept.index, kept.x[here], kept.x_next[here], rows, task.batch.cond.rows(rows))
            yield Visit(who, step, kept.said.rows(here))


def _keeping(kept: list[Kept], later: Steps, visits: Iterable[Visit]) -> Iterator[Visit]:
    for visit in visits:
        step, said = visit.step, visit.said
        if said is not None and any(step.index in later[b] for b in visit.who):
            kept.append(Kept(visit.who, step.index, step.x, step.x_next, said))
        yield visit


def _steps(plan: Sequence[Queries]) -> Steps:
    return [queries.indices for queries in plan]
