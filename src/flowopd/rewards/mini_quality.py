"""How well a picture of the mini world is drawn, by a small net; the prompt plays no part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from flowopd.errors import DataError
from flowopd.mini.quality import QUALITY, Judge, load_judge, qualities
from flowopd.mini.world import SIZE
from flowopd.prompts import Prompt
from flowopd.rewards.base import Scores
from flowopd.rewards.pairs import check_pairs


class MiniQuality:
    """Quality of pictures (B, 64, 64, 3). Details: `q` (B,) in 1..5; value = (q - 1)/4.

    Raises CheckpointError if the net's asset is missing, DataError if pictures have another size or another
    number than prompts.
    """

    judge: ClassVar[Judge] = QUALITY

    def __init__(self) -> None:
        self._net = load_judge(self.judge)

    def __call__(self, pictures: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        check_pairs(pictures, prompts)
        if pictures.shape[1:3] != (SIZE, SIZE):
            raise DataError(f"this judge knows pictures of {SIZE} x {SIZE} pixels alone, got {pictures.shape[1:3]}")
        q = qualities(self._net, pictures)
        return Scores((q - 1) / 4, {"q": q})
