"""Samples of an update that are walked together: those whose rollouts query the same steps, a micro-batch at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowopd.queries import Queries
from flowopd.sampling import Batch
from flowopd.shapes import Routes

Plan = tuple[Queries, ...]
"""The queried steps of a sample's rollout: in the update that walks it, and in those that learn from it again."""


@dataclass(frozen=True, eq=False)
class Cohort:
    """Samples with one plan, their routes (B, K), and their rows (B) among those that were parted."""

    batch: Batch
    routes: Routes
    rows: Tensor
    plan: Plan

    def __len__(self) -> int:
        return len(self.batch)


def cohorts(batch: Batch, routes: Routes, plans: Sequence[Plan], size: int) -> list[Cohort]:
    """The samples of a batch with their routes (B, K) and plans (B), in cohorts of at most `size`, in their order."""
    rows: dict[Plan, list[int]] = {}
    for row, plan in enumerate(plans):
        rows.setdefault(plan, []).append(row)
    parts = [(plan, torch.tensor(mine).split(size)) for plan, mine in rows.items()]
    return [Cohort(batch.rows(part), routes[part], part, plan) for plan, mine in parts for part in mine]


def joined(cohorts: Sequence[Cohort], values: Sequence[Tensor]) -> Tensor:
    """What each cohort's samples gave, (..., b), as one (..., B) in the order of the batch that was parted."""
    order = torch.cat([cohort.rows for cohort in cohorts]).argsort()
    found = torch.cat(list(values), -1)
    return found[..., order.to(found.device)]
