"""Which picture people of the mini world would pick for a prompt, by a small net taught on their picks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from flowopd.errors import DataError
from flowopd.mini.preference import likings, load_taste
from flowopd.mini.world import SIZE
from flowopd.prompts import Prompt
from flowopd.rewards.base import Scores
from flowopd.rewards.pairs import check_pairs


class MiniPreference:
    """Scores pictures (B, 64, 64, 3): value is the share of people who would pick it over an average one of its prompt.

    Details: `liking` (B,), the logit of the value. Raises CheckpointError if the net's asset is missing, DataError if
    pictures have another size or another number than prompts.
    """

    def __init__(self) -> None:
        self._net, self._average = load_taste()

    def __call__(self, pictures: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        check_pairs(pictures, prompts)
        if pictures.shape[1:3] != (SIZE, SIZE):
            raise DataError(f"this judge knows pictures of {SIZE} x {SIZE} pixels alone, got {pictures.shape[1:3]}")
        liking = likings(self._net, pictures, [prompt.text for prompt in prompts]) - self._average
        return Scores(expit(liking), {"liking": liking})
