"""CLIPScore (2104.08718): how well a picture fits its prompt in CLIP's eyes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from flowopd.prompts import Prompt
from flowopd.rewards.base import Scores
from flowopd.rewards.clip import Clip
from flowopd.rewards.pairs import check_pairs

MODEL = "openai/clip-vit-large-patch14"

WEIGHT = 2.5
"""The paper's factor w, which spreads cosines over 0..1."""


class ClipScore:
    """Scores pictures (B, H, W, 3). Details: `cosine` (B,) in -1..1; value = 2.5 max(cosine, 0), at most 1.

    Raises CheckpointError if the model cannot be loaded, DataError if pictures and prompts differ in number.
    """

    def __init__(self, *, model: str = MODEL, device: str | torch.device = "cpu") -> None:
        self._clip = Clip(model, device=device)

    def __call__(self, pictures: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        check_pairs(pictures, prompts)
        cosine = self._clip.match(pictures, [prompt.text for prompt in prompts])
        return Scores(np.clip(WEIGHT * cosine, 0, 1), {"cosine": cosine})
