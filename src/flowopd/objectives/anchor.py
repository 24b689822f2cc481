"""MAR: every sample is also held to a frozen, task-agnostic anchor, whatever its route (2605.08063)."""

from dataclasses import dataclass

from flowopd.errors import ConfigError
from flowopd.objectives.reverse_kl import ReverseKL
from flowopd.shapes import Batch, Metrics, PerSample, Scalar


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """`loss = weight * step_weight * mean_D (v - sg(v_anchor))^2`; ConfigError unless `weight` >= 0."""

    weight: float = 0.02

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ConfigError(f"the anchor's weight must not be negative, got {self.weight}; the paper uses 0.02")

    def __call__(self, v: Batch, v_anchor: Batch, step_weight: Scalar | PerSample | float) -> tuple[PerSample, Metrics]:
        """Loss (B,) of velocities `v` against the anchor's, both (B, *shape), with the step's weight."""
        loss, metrics = ReverseKL()(v, v_anchor, step_weight)
        return self.weight * loss, {f"anchor_{name}": value for name, value in metrics.items()}
