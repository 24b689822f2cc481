"""The field's schedule, in this code's own words, to measure against.

A whole rollout without a gradient, then for each step a student forward, the teachers', the anchor's, and a backward,
one after the other. The loss is that of every schedule; only what is computed for it differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowopd.queries import Queries
from flowopd.rollout import record, revisit
from flowopd.sampling import Batch
from flowopd.schedules import learnt
from flowopd.shapes import Routes
from flowopd.step import Distillation, frozen_fields
from flowopd.types import Condition
from flowopd.velocity import VelocityField


def naive(
    d: Distillation, batch: Batch, routes: Routes, queries: Queries, shape: Sequence[int], share: float = 1.0
) -> Tensor:
    """The gradient as every schedule gives it; an anchor that is a sample's own teacher is asked again."""
    with torch.no_grad():
        walk = record(d.student, d.dynamics, batch.start(shape), d.grid, batch.cond, batch.noise)
    apart = replace(d, anchor_field=None if d.anchor_field is None else _Apart(d.anchor_field))
    frozen = frozen_fields(apart, routes, batch.cond)
    visits = ((revisit(d.student, d.dynamics, walk, i, batch.cond), i) for i in queries.indices)
    answered = ((step, frozen(walk.states[i], step.t)) for step, i in visits)
    return learnt(d, answered, queries, share, batch.cond)


@dataclass(frozen=True, eq=False)
class _Apart:
    """A field under another identity, so that nobody knows that it has been asked already."""

    field: VelocityField

    def __call__(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.field(x, t, cond)
