"""The gradient of one update of on-policy distillation (Flow-OPD, 2605.08063)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowopd.dynamics import Dynamics
from flowopd.objectives import Anchor, ReverseKL, SampledLogRatio, squared_gap
from flowopd.queries import Queries
from flowopd.rollout import rollout
from flowopd.routing import mix
from flowopd.sampling import Batch
from flowopd.shapes import Grid, PerStep, Routes
from flowopd.types import Condition, Step
from flowopd.velocity import VelocityField

Estimator = Callable[[Step, Dynamics, Tensor, Tensor], Tensor]
"""(step, its dynamics, target velocity (B, *shape), weight w) -> loss (B,): its expected gradient in the student, at
the step's states, is that of w mean_D ||v_S - target||^2."""


@dataclass(frozen=True, eq=False)
class Distillation:
    """Who learns from whom, and how: fields, samplers, the step weights w (N,), and how the gradient is estimated."""

    student: VelocityField
    teachers: Sequence[VelocityField]
    anchor_field: VelocityField | None
    anchor: Anchor
    dynamics: Sequence[Dynamics]
    grid: Grid
    weights: PerStep
    estimate: Estimator


def closed_form(step: Step, _dynamics: Dynamics, target: Tensor, w: Tensor) -> Tensor:
    """The reverse KL itself: no sampling variance at the step's states."""
    return ReverseKL()(step.v, target, w)[0]


def log_ratio(step: Step, dynamics: Dynamics, target: Tensor, w: Tensor) -> Tensor:
    """The policy gradient of the reverse KL at the sampled next states, brought to the closed form's weight.

    Raises ConfigError if the step has no noise.
    """
    student, teacher = (
        dynamics.transition(step.x, v, step.t, step.t_next).log_prob(step.x_next)[None] for v in (step.v, target)
    )
    kl = step.x[0].numel() * dynamics.kl_weight(step.t, step.t_next)
    return w / kl * SampledLogRatio()(student, teacher)[0]


ESTIMATORS: Mapping[str, Estimator] = {"closed_form": closed_form, "log_ratio": log_ratio}


def distill_step(
    d: Distillation, batch: Batch, routes: Routes, queries: Queries, shape: Sequence[int], share: float = 1.0
) -> Tensor:
    """Add `share` times the gradient of the mean loss over the batch to the student's parameters.

    The student walks its own trajectory from noise (B, *shape). At every queried state x the teachers to which a
    sample is routed say their velocity, and the loss is w(t) mean_D ||v_S - sum_k alpha_k v_k||^2, plus
    lambda w(t) mean_D ||v_S - v_anchor||^2 for every sample. Backward runs at once, so the activations of one step
    live at a time. Returns the gaps (2, N, B): mean_D squared distance to the target and to the anchor, nan where
    a step was not queried or there is no such teacher.
    """
    steps = len(d.grid) - 1
    gaps = torch.full((2, steps, len(batch)), torch.nan)
    query_weight = dict(zip(queries.indices, queries.weights, strict=True))
    for step in rollout(d.student, d.dynamics, batch.start(shape), d.grid, batch.cond, batch.noise, queries.indices):
        if step.index not in query_weight:
            continue
        w, i = d.weights[step.index], step.index
        target, held_to = frozen_velocities(d, routes, step, batch.cond)
        losses = []
        if target is not None:
            losses.append(d.estimate(step, d.dynamics[i], target, w))
            gaps[0, i] = squared_gap(step.v.detach(), target).cpu()
        if held_to is not None:
            losses.append(d.anchor(step.v, held_to, w)[0])
            gaps[1, i] = squared_gap(step.v.detach(), held_to).cpu()
        (share * query_weight[i] / steps * torch.stack(losses).sum(0).mean()).backward()
    return gaps


@torch.no_grad()
def frozen_velocities(
    d: Distillation, routes: Routes, step: Step, cond: Condition
) -> tuple[Tensor | None, Tensor | None]:
    """What the teachers say, `sum_k alpha_k v_k`, and what the anchor says, (B, *shape) each; None without any.

    A frozen field is asked once, for the samples that need it: a teacher for those that are routed to it, the anchor
    for all of them. So an anchor that is a sample's own teacher costs nothing.
    """
    k = len(d.teachers)
    fields = [*d.teachers, *([] if d.anchor_field in (None, *d.teachers) else [d.anchor_field])]
    needed = torch.zeros(len(routes), len(fields), dtype=torch.bool)
    needed[:, :k] = routes[:, :k].cpu() != 0
    if d.anchor_field is not None:
        needed[:, fields.index(d.anchor_field)] = True
    velocities = torch.zeros(len(fields), *step.x.shape, device=step.x.device)
    for velocity, field, rows in zip(velocities, fields, needed.T, strict=True):
        where = rows.nonzero().squeeze(1).to(step.x.device)
        if len(where):
            velocity[where] = field(step.x[where], step.t, cond.rows(where)).float()
    target = mix(routes, velocities[:k]) if d.teachers else None
    return target, None if d.anchor_field is None else velocities[fields.index(d.anchor_field)]


def mean_gaps(gaps: Tensor, names: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    """`gap/NAME` and `gap/NAME/STEP`, means over the rows of each name that were queried, from gaps (N, B)."""
    metrics = {}
    for name, mine in names.items():
        part = gaps[:, torch.tensor(list(mine))]
        means = {f"gap/{name}/{i}": row.nanmean() for i, row in enumerate(part)}
        means[f"gap/{name}"] = part.nanmean()
        metrics |= {key: float(value) for key, value in means.items() if not value.isnan()}
    return metrics
