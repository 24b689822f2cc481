"""The closed form of the reverse KL, the default loss of on-policy distillation.

Student and teacher share a transition's covariance, and its mean is `a x + b v`. At a student's state x,

    KL(pi_S || pi_T) = ||mean_S - mean_T||^2 / (2 std^2) = b^2 / (2 std^2) ||v_S - v_T||^2,

which has no sampling variance at x (2605.08063, version 5; 2605.15055). The state is detached, and the
gradient is through `v_S` only.
"""

from dataclasses import dataclass

from flowopd.objectives.gap import squared_gap
from flowopd.shapes import Batch, Metrics, PerSample, Scalar


@dataclass(frozen=True, kw_only=True)
class ReverseKL:
    """`loss = weight * mean_D (v - sg(target))^2`; with `weight = D * kl_weight` it is `Gaussian.kl`."""

    def __call__(self, v: Batch, target: Batch, weight: Scalar | PerSample | float) -> tuple[PerSample, Metrics]:
        """Loss (B,) of velocities `v` against `target`, both (B, *shape), with the step's `weight`."""
        gap = squared_gap(v, target)
        loss = weight * gap
        assert loss.shape == gap.shape, f"weight must be a scalar or (B,), loss came out {tuple(loss.shape)}"
        return loss, {"gap": gap.detach().mean()}
