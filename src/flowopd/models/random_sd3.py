"""A Stable Diffusion 3 of random weights, without files: what an update costs does not depend on what a model knows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from diffusers import SD3Transformer2DModel

from flowopd.models.published import PIXELS, SHIFT
from flowopd.models.sd3 import Sd3
from flowopd.models.source import Source
from flowopd.schedule import sigma_grid
from flowopd.shapes import Grid
from flowopd.types import Condition

SMALL: Mapping[str, Any] = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 6,
    "attention_head_dim": 64,
    "num_attention_heads": 8,
    "joint_attention_dim": 512,
    "caption_projection_dim": 512,
    "pooled_projection_dim": 512,
    "pos_embed_max_size": 32,
    "qk_norm": "rms_norm",
}
"""A transformer of 55 million parameters with 64 image tokens."""

TEXT_TOKENS = 24


class RandomSd3(Sd3):
    """`Sd3` by a transformer's config alone; it has no text encoders and no autoencoder."""

    def __init__(self, config: Mapping[str, Any] = SMALL, **options: Any) -> None:
        super().__init__(Source("random"), **options)
        self._config = dict(config)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The transformer's config."""
        return self._config

    @cached_property
    def transformer(self) -> SD3Transformer2DModel:
        """Drawn from seed 0, on the device, in evaluation mode."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            transformer = SD3Transformer2DModel(**self._config)
        return self._made_ready(transformer.to(self.dtype))

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """(C, H, W) of the latents of a picture of that size in pixels; None is the size of the config."""
        own = PIXELS * self._config["sample_size"]
        return self._config["in_channels"], (height or own) // PIXELS, (width or own) // PIXELS

    def grid(self, steps: int) -> Grid:
        """As the published models sample."""
        return sigma_grid(steps, SHIFT)

    def blank(self, rows: int) -> Condition:
        """A condition of so many rows on the meta device, of TEXT_TOKENS tokens."""
        embeds = torch.empty(rows, TEXT_TOKENS, self._config["joint_attention_dim"], device="meta")
        pooled = torch.empty(rows, self._config["pooled_projection_dim"], device="meta")
        return Condition({"prompt_embeds": embeds, "pooled_prompt_embeds": pooled})
