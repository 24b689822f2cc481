"""Advantage-weighted matching (2509.25050): GRPO with the flow-matching loss for a transition's log-probability.

The likelihood of an image is judged by how well the policy denoises it, so images may come from any sampler, the ODE
too. At the policy that drew the images the gradient is that of DiffusionNFT (2509.16117).
"""

from dataclasses import dataclass

import torch

from flowopd.errors import ConfigError
from flowopd.objectives.gap import squared_gap
from flowopd.shapes import Batch, Metrics, PerSample
from flowopd.types import Condition
from flowopd.velocity import VelocityField, along


@dataclass(frozen=True, kw_only=True)
class AdvantageMatching:
    """`loss = A mean_D (v - (eps - x_0))^2 + kl mean_D (v - v_reference)^2` at `x_t = (1 - t) x_0 + t eps`.

    Raises ConfigError unless `kl` >= 0.
    """

    kl: float = 0.0

    def __post_init__(self) -> None:
        if not self.kl >= 0:
            raise ConfigError(f"AdvantageMatching needs kl >= 0, got {self.kl}")

    def __call__(
        self,
        field: VelocityField,
        x0: Batch,
        cond: Condition,
        t: PerSample,
        eps: Batch,
        advantages: PerSample,
        reference: VelocityField | None = None,
    ) -> tuple[PerSample, Metrics]:
        """Loss (B,) on drawn images `x0` and noise `eps`, both (B, *shape), at times `t` (B,) in [0, 1].

        Raises ConfigError if `kl` > 0 without a reference.
        """
        if reference is None and self.kl > 0:
            raise ConfigError(f"kl = {self.kl} needs a reference field; pass one, or set kl to 0")
        x_t = (1 - along(t, x0)) * x0 + along(t, x0) * eps
        v = field(x_t, t, cond)
        gap = squared_gap(v, eps - x0)
        assert gap.shape == advantages.shape
        metrics = {"matching": gap.detach().mean()}
        if reference is None:
            return advantages * gap, metrics
        with torch.no_grad():
            held_to = reference(x_t, t, cond)
        kl = squared_gap(v, held_to)
        return advantages * gap + self.kl * kl, {**metrics, "kl": kl.detach().mean()}
