"""Stable Diffusion 3 and 3.5: the velocity field of a diffusers `SD3Transformer2DModel`."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import SD3Transformer2DModel
from torch import Tensor

from flowopd.types import Condition


@dataclass(frozen=True)
class Sd3Field:
    """The transformer as a `VelocityField`; `cond` carries `prompt_embeds` (B, L, E) and `pooled_prompt_embeds` (B, P)."""

    transformer: SD3Transformer2DModel

    def __call__(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The velocity (B, C, H, W) at states x (B, C, H, W) and times t in [0, 1], a scalar or (B,)."""
        return self.transformer(
            hidden_states=x.to(self.transformer.dtype),
            timestep=1000 * t.expand(len(x)),
            encoder_hidden_states=cond["prompt_embeds"],
            pooled_projections=cond["pooled_prompt_embeds"],
            return_dict=False,
        )[0]
