"""What every model family offers to the rest, and how a family is found from its pipeline's class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from flowopd.models.source import Source
from flowopd.shapes import Grid
from flowopd.types import Condition
from flowopd.velocity import VelocityField


class Model(Protocol):
    """A text-to-image model, its parts loaded when they are needed."""

    source: Source
    device: torch.device
    dtype: torch.dtype
    encoding: Sequence[str]
    targets: Sequence[str]
    make_field: Callable[[Any], VelocityField]

    @property
    def transformer(self) -> nn.Module:
        """The frozen base."""
        ...

    def grid(self, steps: int) -> Grid:
        """The model's own times (steps + 1,)."""
        ...

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """(C, H, W) of the latents of a picture of that size in pixels."""
        ...

    def check_whole(self, source: Source) -> str | None:
        """The subfolder of a source with another transformer, which has to fit."""
        ...

    def whole(self, source: Source, offload: bool) -> VelocityField:
        """The velocity of another transformer of this family."""
        ...

    def encoder_bytes(self) -> int:
        """What the text encoders take while they are in memory."""
        ...

    def skeleton(self) -> nn.Module:
        """The base without weights, on the meta device."""
        ...

    def blank(self, rows: int) -> Condition:
        """A condition of so many rows without content, on the meta device."""
        ...

    @property
    def load_options(self) -> dict[str, None]:
        """What loading the plain pipeline needs for it to condition as `encode` does."""
        ...

    @property
    def call_options(self) -> dict[str, int]:
        """What a call of the plain pipeline needs for it to condition as `encode` does."""
        ...

    def cut(self, texts: Sequence[str]) -> list[str]:
        """Those of the prompts whose end no text encoder reads, as they are too long."""
        ...

    def encode(self, texts: Sequence[str]) -> Condition:
        """The conditioning of B prompts."""
        ...

    def free_encoders(self) -> None:
        """Let the text encoders go."""
        ...

    def decode(self, latents: Tensor) -> np.ndarray:
        """Pictures (B, H, W, 3) uint8."""
        ...
