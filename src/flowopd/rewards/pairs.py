"""A batch to score: as many pictures as prompts, and pictures that are pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flowopd.errors import DataError
from flowopd.prompts import Prompt


def check_pairs(pictures: np.ndarray, prompts: Sequence[Prompt]) -> None:
    """Raises DataError unless `pictures` is (B, H, W, 3) uint8 with one prompt for each of its B rows."""
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8:
        raise DataError(
            f"a reward scores pictures (B, H, W, 3) uint8, got {pictures.shape} {pictures.dtype}; "
            "decode latents first, and give a single picture a leading axis"
        )
    if len(pictures) != len(prompts):
        raise DataError(f"{len(pictures)} pictures came with {len(prompts)} prompts; give one prompt a picture")
