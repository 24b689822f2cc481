"""The flow-matching loss (2210.02747; 2403.03206), for pre-training and for the SFT cold start."""

from dataclasses import dataclass

from flowopd.objectives.gap import squared_gap
from flowopd.shapes import Batch, Metrics, PerSample
from flowopd.types import Condition
from flowopd.velocity import VelocityField, along


@dataclass(frozen=True, kw_only=True)
class FlowMatching:
    """`loss = mean_D (v(x_t, t) - (eps - x_0))^2` at `x_t = (1 - t) x_0 + t eps`."""

    def __call__(
        self, field: VelocityField, x0: Batch, cond: Condition, t: PerSample, eps: Batch
    ) -> tuple[PerSample, Metrics]:
        """Loss (B,) on data `x0` and noise `eps`, both (B, *shape), at times `t` (B,) in [0, 1]."""
        x_t = (1 - along(t, x0)) * x0 + along(t, x0) * eps
        loss = squared_gap(field(x_t, t, cond), eps - x0)
        return loss, {"flow_matching": loss.detach().mean()}
