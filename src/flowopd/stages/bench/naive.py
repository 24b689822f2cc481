"""The field's schedule, in this code's own words, to measure against.

A whole rollout without a gradient, then for each step a student forward, the teachers', the anchor's, and a backward,
one after the other. The loss is that of every schedule; only what is computed for it differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowopd.crews import Task, even_parts
from flowopd.queries import Queries
from flowopd.rollout import Walker, record
from flowopd.schedules import Visit, learnt
from flowopd.step import Distillation
from flowopd.types import Condition, Trajectory
from flowopd.velocity import VelocityField


def naive(d: Distillation, task: Task, plan: Sequence[Queries]) -> Tensor:
    """The gradient as every schedule gives it; an anchor that is a sample's own teacher is asked again."""
    batch = task.batch
    with torch.no_grad():
        walk = record(d.student, d.dynamics, batch.start(task.shape), d.grid, batch.cond, batch.noise)
    return learnt(d, task, _visits(d, task, walk, plan), plan)


def _visits(d: Distillation, task: Task, walk: Trajectory, plan: Sequence[Queries]) -> Iterator[Visit]:
    """The steps in their order, each of the samples that query it."""
    apart = replace(d, anchor_field=None if d.anchor_field is None else _Apart(d.anchor_field))
    walker = Walker.of(d.student, d.dynamics, d.grid, task.device)
    for i in range(len(d.grid) - 1):
        for who in even_parts([b for b, queries in enumerate(plan) if i in queries.indices], task.size):
            rows = task.rows(who)
            cond = task.batch.cond.rows(rows)
            step = walker.again(i, walk.states[i][rows], walk.states[i + 1][rows], rows, cond)
            yield Visit(who, step, task.frozen_at(apart, who, rows)(step.x, step.t))


@dataclass(frozen=True, eq=False)
class _Apart:
    """A field under another identity, so that nobody knows that it has been asked already."""

    field: VelocityField

    def __call__(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.field(x, t, cond)
