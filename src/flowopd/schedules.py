"""When the gradient of an update is taken: while the student walks, or afterwards at the states it left.

A schedule adds `share` times the gradient of the mean loss over a batch to the student's parameters and returns the
gaps (2, N, B) to the target and to the anchor, nan where a step was not queried or there is no such field. All of them
learn by `step.learn`, so they have the same gradient up to rounding; they differ in what they compute. None walks
beyond its last queried step: no picture is needed, so the rest of a trajectory is not either.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flowopd.queries import Queries
from flowopd.rollout import revisit, rollout
from flowopd.sampling import Batch
from flowopd.shapes import Routes
from flowopd.step import Distillation, Said, frozen_fields, learn, reward
from flowopd.types import Condition, Step, Trajectory


class Schedule(Protocol):
    """One update's gradient, from noise (B, *shape); see the head of this file."""

    def __call__(
        self, d: Distillation, batch: Batch, routes: Routes, queries: Queries, shape: Sequence[int], share: float = 1.0
    ) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Walk:
    """A rollout that is learnt from again: its states, and what the frozen fields said at some of its steps."""

    cond: Condition
    trajectory: Trajectory
    said: Mapping[int, Said]


def fused(
    d: Distillation, batch: Batch, routes: Routes, queries: Queries, shape: Sequence[int], share: float = 1.0
) -> Tensor:
    """The student's forward of the rollout is its forward of the training.

    Backward runs at once at every queried state, so nothing is computed twice and the activations of one step live at
    a time.
    """
    return learnt(d, _visits(d, batch, routes, shape, queries.indices, queries.indices), queries, share, batch.cond)


def replay(
    d: Distillation, batch: Batch, routes: Routes, queries: Queries, shape: Sequence[int], share: float = 1.0
) -> Tensor:
    """A rollout without a gradient, then a forward with one at each of its queried states."""
    nothing = Queries((), ())
    _, walk = walked(d, batch, routes, nothing, shape, later=queries.indices)
    return relearnt(d, walk, queries, share)


def walked(
    d: Distillation,
    batch: Batch,
    routes: Routes,
    queries: Queries,
    shape: Sequence[int],
    later: Collection[int],
    share: float = 1.0,
) -> tuple[Tensor, Walk]:
    """`fused`, and the walk itself for further updates, which will query the steps `later`."""
    kept, wanted = _Kept(later, [], {}), {*queries.indices, *later}
    visits = kept(_visits(d, batch, routes, shape, queries.indices, wanted))
    return learnt(d, visits, queries, share, batch.cond), kept.walk(d, batch.cond)


def rewarded(d: Distillation, batch: Batch, routes: Routes, shape: Sequence[int]) -> tuple[Tensor, Walk]:
    """A walk of all steps without a gradient, and the rewards (N, B) of its steps (`step.reward`).

    Raises ConfigError if a step has no noise.
    """
    steps = range(len(d.grid) - 1)
    kept = _Kept(steps, [], {})
    rewards = [
        reward(step, d.dynamics[step.index], said.target, d.weights[step.index])
        for step, said in kept(_visits(d, batch, routes, shape, (), steps))
        if said is not None and said.target is not None
    ]
    return torch.stack(rewards), kept.walk(d, batch.cond)


@dataclass(frozen=True, eq=False)
class _Kept:
    """What is kept of visits that pass through it: their states, and what was said at the steps `later`."""

    later: Collection[int]
    states: list[Tensor]
    said: dict[int, Said]

    def __call__(self, visits: Iterable[tuple[Step, Said | None]]) -> Iterator[tuple[Step, Said | None]]:
        for step, answer in visits:
            self.states.extend([step.x_next] if self.states else [step.x, step.x_next])
            if answer is not None and step.index in self.later:
                self.said[step.index] = answer
            yield step, answer

    def walk(self, d: Distillation, cond: Condition) -> Walk:
        return Walk(cond, Trajectory(d.grid[: len(self.states)], torch.stack(self.states)), self.said)


def relearnt(d: Distillation, walk: Walk, queries: Queries, share: float = 1.0) -> Tensor:
    """The gradient of another update on a walk that is there; returns gaps as a schedule does.

    The states are those of the policy that walked, which the student has left by as many updates. The closed form needs
    no importance weight for that: it is a loss at given states, and only their distribution is an older one. A policy
    gradient holds for the policy that walked, so for no second update.
    """
    dynamics = d.dynamics[: len(walk.trajectory.sigmas) - 1]
    visits = (
        (revisit(d.student, dynamics, walk.trajectory, i, walk.cond), walk.said[i]) for i in sorted(queries.indices)
    )
    return learnt(d, visits, queries, share, walk.cond)


def learnt(
    d: Distillation, visits: Iterable[tuple[Step, Said | None]], queries: Queries, share: float, cond: Condition
) -> Tensor:
    """The gradient of the queried ones of some visits, one after the other; returns the gaps of B rows of `cond`."""
    steps = len(d.grid) - 1
    weights = dict(zip(queries.indices, queries.weights, strict=True))
    gaps = torch.full((2, steps, len(cond)), torch.nan, device=cond.device)
    for step, said in visits:
        if said is not None and step.index in weights:
            gaps[:, step.index] = learn(d, step, said, share * weights[step.index] / steps)
    return gaps


def _visits(
    d: Distillation,
    batch: Batch,
    routes: Routes,
    shape: Sequence[int],
    trained: Collection[int],
    wanted: Collection[int],
) -> Iterator[tuple[Step, Said | None]]:
    """The student's steps up to the last wanted one, with what the frozen fields say at the wanted ones."""
    frozen, last = frozen_fields(d, routes, batch.cond), max(wanted)
    for step in rollout(d.student, d.dynamics, batch.start(shape), d.grid, batch.cond, batch.noise, trained):
        yield step, frozen(step.x, step.t) if step.index in wanted else None
        if step.index == last:
            return
