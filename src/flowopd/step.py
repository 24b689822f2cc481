"""The loss of on-policy distillation at one state of the student (Flow-OPD, 2605.08063), and who is asked there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowopd.dynamics import Dynamics
from flowopd.gaussian import widen
from flowopd.objectives import Anchor, DetachedSurrogate, ReverseKL, SampledLogRatio, squared_gap
from flowopd.routing import mix
from flowopd.shapes import Grid, PerStep, Routes
from flowopd.types import Condition, Step
from flowopd.velocity import VelocityField, ask

Estimator = Callable[[Step, Dynamics, Tensor, Tensor], Tensor]
"""(step, its dynamics, target velocity (B, *shape), weight w) -> loss (B,): its expected gradient in the student, at
the step's states, is that of w mean_D ||v_S - target||^2, but for a control."""


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
    student, teacher = (_log_prob(step, dynamics, v)[None] for v in (step.v, target))
    return w / _kl_weight(step, dynamics) * SampledLogRatio()(student, teacher)[0]


def detached(step: Step, dynamics: Dynamics, target: Tensor, w: Tensor) -> Tensor:
    """CONTROL: `log_ratio` with its reward's mean over the next states, minus the KL, as a detached reward.

    That reward says nothing of which next state was drawn, so the expected gradient is zero. The ratio is 1 while the
    student walks, so nothing is clipped. Raises ConfigError if the step has no noise.
    """
    kl, log_prob = _kl_weight(step, dynamics), _log_prob(step, dynamics, step.v)
    return w / kl * DetachedSurrogate()(step.v, target, kl, log_prob, log_prob)[0]


def reward(step: Step, dynamics: Dynamics, target: Tensor, w: Tensor) -> Tensor:
    """`w / (D w_KL) (log pi_T - log pi_S)` of the sampled next states, (B,): what `log_ratio` rewards a step with.

    Its mean over the next states is `-w mean_D ||v_S - target||^2`. Raises ConfigError if the step has no noise.
    """
    student, teacher = (_log_prob(step, dynamics, v.detach()) for v in (step.v, target))
    return w / _kl_weight(step, dynamics) * (teacher - student)


@dataclass(frozen=True, eq=False)
class Credited:
    """An estimator for the samples of one walk: the policy gradient with these advantages (N, B) of its steps."""

    advantages: Tensor

    def __call__(self, step: Step, dynamics: Dynamics, _target: Tensor, _w: Tensor) -> Tensor:
        return -self.advantages[step.index, step.rows] * _log_prob(step, dynamics, step.v)


ESTIMATORS: Mapping[str, Estimator] = {
    "closed_form": closed_form,
    "log_ratio": log_ratio,
    "log_ratio_to_go": log_ratio,
    "detached": detached,
}
"""By the words of `distill.loss`. The sum to go begins as `log_ratio`: what follows a step is `Credited` to it."""


def _log_prob(step: Step, dynamics: Dynamics, v: Tensor) -> Tensor:
    """The log-density (B,) of the next states of a step under the transition of velocity `v`, summed over D."""
    return dynamics.transition(step.x, v, step.t, step.t_next).log_prob(step.x_next)


def _kl_weight(step: Step, dynamics: Dynamics) -> Tensor:
    """The KL of two transitions of a step per squared velocity gap, a mean over D."""
    return step.x[0].numel() * dynamics.kl_weight(step.t, step.t_next)


@dataclass(frozen=True, eq=False)
class Said:
    """What the frozen fields say at a state, (B, *shape) each: `sum_k alpha_k v_k`, and the anchor; None without."""

    target: Tensor | None
    held_to: Tensor | None

    def rows(self, index: Tensor) -> Said:
        """What they say to the samples at these positions."""
        return Said(*(None if v is None else v[index] for v in (self.target, self.held_to)))


def learn(d: Distillation, step: Step, said: Said, shares: Tensor) -> Tensor:
    """Add the gradient of the samples' losses at one state, each times its share (B), to the student's parameters.

    The loss is w(t) mean_D ||v_S - sum_k alpha_k v_k||^2, plus lambda w(t) mean_D ||v_S - v_anchor||^2, for every
    sample. Returns the gaps (2, B) on the state's device: mean_D squared distance to the target and to the anchor, nan
    where there is none.
    """
    w, losses = d.weights[step.index], []
    gaps = torch.full((2, len(step.x)), torch.nan, device=step.x.device)
    if said.target is not None:
        losses.append(d.estimate(step, d.dynamics[step.index], said.target, w))
        gaps[0] = squared_gap(step.v.detach(), said.target)
    if said.held_to is not None:
        losses.append(d.anchor(step.v, said.held_to, w)[0])
        gaps[1] = squared_gap(step.v.detach(), said.held_to)
    (shares * torch.stack(losses).sum(0)).sum().backward()
    return gaps


@dataclass(frozen=True, eq=False)
class Frozen:
    """The frozen fields of a batch, each with the samples that need it; asked at one state after another.

    A field is asked once: a teacher for the samples that are routed to it, the anchor for all of them. So an anchor
    that is a sample's own teacher costs nothing. Adapters of one base pass in one forward, each with its own rows.
    Hard routes take one slot of velocities, whatever the number of teachers, soft ones as many as a sample has
    teachers: `weights` (B, slots) are theirs.
    """

    weights: Routes | None
    asked: Sequence[_Asked]

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor) -> Said:
        """What they say at states x (B, *shape) and time t, in float32."""
        held_to = velocities = None
        if self.weights is not None:
            velocities = torch.zeros(self.weights.shape[1], *x.shape, device=x.device)
        answers = ask([(asked.field, x[asked.rows], asked.cond) for asked in self.asked], t)
        for asked, v in zip(self.asked, map(widen, answers), strict=True):
            if velocities is not None:
                velocities[asked.slots, asked.taught] = v[asked.answers]
            if asked.is_anchor:
                held_to = v
        return Said(None if velocities is None else mix(self.weights, velocities), held_to)


@dataclass(frozen=True, eq=False)
class _Asked:
    """One frozen field: the rows it is asked for, with their conditions, and where its answers go.

    Of its answers those at `answers` are a teacher's, for the samples `taught` in their `slots`.
    """

    field: VelocityField
    rows: Tensor | slice
    cond: Condition
    answers: Tensor | slice
    slots: Tensor
    taught: Tensor
    is_anchor: bool


def frozen_fields(d: Distillation, routes: Routes, cond: Condition) -> Frozen:
    """The frozen fields for a batch with these routes (B, K) on the CPU and these conditions, found once."""
    slots = max(1, int((routes != 0).sum(1).max())) if d.teachers else 0
    weights, order = routes.topk(slots, dim=1)
    asked = []
    for k, field in enumerate(d.teachers):
        taught, slot = ((order == k) & (weights != 0)).nonzero(as_tuple=True)
        is_anchor = field is d.anchor_field
        if len(taught) or is_anchor:
            asked.append(_asked(field, cond, taught.to(cond.device), slot.to(cond.device), is_anchor))
    if d.anchor_field is not None and not any(field is d.anchor_field for field in d.teachers):
        nobody = torch.empty(0, dtype=torch.long, device=cond.device)
        asked.append(_asked(d.anchor_field, cond, nobody, nobody, True))
    return Frozen(weights.to(cond.device) if d.teachers else None, asked)


def _asked(field: VelocityField, cond: Condition, taught: Tensor, slots: Tensor, is_anchor: bool) -> _Asked:
    everyone = slice(None)
    if is_anchor:
        return _Asked(field, everyone, cond, taught, slots, taught, True)
    rows = everyone if len(taught) == len(cond) else taught
    return _Asked(field, rows, cond.rows(rows), everyone, slots, taught, False)


def mean_gaps(gaps: Tensor, names: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    """`gap/NAME` and `gap/NAME/STEP`, means over the rows of each name that were queried, from gaps (N, B)."""
    metrics = {}
    for name, mine in names.items():
        part = gaps[:, torch.tensor(list(mine))]
        means = {f"gap/{name}/{i}": row.nanmean() for i, row in enumerate(part)}
        means[f"gap/{name}"] = part.nanmean()
        metrics |= {key: float(value) for key, value in means.items() if not value.isnan()}
    return metrics
