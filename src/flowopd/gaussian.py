"""The transition of one sampling step, `N(mean, std^2 I)`: the only place that knows a variance."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowopd.errors import ConfigError
from flowopd.shapes import Batch, PerSample, Scalar


def widen(x: Tensor) -> Tensor:
    """`x` in float32 at least, so that differences of close bf16 or fp16 values keep their digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True, eq=False)
class Gaussian:
    """`N(mean, std^2 I)` with mean (B, *shape) and one scalar `std` >= 0; `std` 0 is a step of an ODE."""

    mean: Batch
    std: Scalar

    def sample(self, noise: Batch) -> Batch:
        """`mean + std * noise`; `noise` is standard normal, of the shape of `mean`."""
        return widen(self.mean) + self.std * widen(noise)

    def log_prob(self, x: Batch) -> PerSample:
        """Log-density of `x`, summed over the D elements. Raises ConfigError if `std` is 0."""
        self._need_noise("log-probability")
        z = ((widen(x) - widen(self.mean)) / self.std).flatten(1)
        return -0.5 * z.square().sum(1) - z.shape[1] * (self.std.log() + 0.5 * math.log(2 * math.pi))

    def kl(self, other: "Gaussian") -> PerSample:
        """`KL(self || other) = ||mean - other.mean||^2 / (2 std^2)`, summed over the D elements.

        Raises ConfigError if `std` is 0 or differs from that of `other`.
        """
        self._need_noise("KL divergence")
        if float(self.std) != float(other.std):
            raise ConfigError(
                f"the KL is between transitions of one std, got {float(self.std):.6g} and "
                f"{float(other.std):.6g}; build both from the same dynamics and times"
            )
        return (widen(self.mean) - widen(other.mean)).flatten(1).square().sum(1) / (2 * self.std.square())

    def _need_noise(self, what: str) -> None:
        if float(self.std) == 0:
            raise ConfigError(
                f"the {what} of a step without noise (std 0, the ODE) is infinite; "
                "use weighting `ode` or `velocity`, or stochastic dynamics"
            )
