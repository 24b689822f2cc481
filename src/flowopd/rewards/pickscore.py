"""PickScore (2305.01569): which picture people would pick for a prompt, by a CLIP-H fine-tuned on their picks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from flowopd.prompts import Prompt
from flowopd.rewards.base import Scores
from flowopd.rewards.clip import Clip
from flowopd.rewards.pairs import check_pairs

MODEL = "yuvalkirstain/PickScore_v1"
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

FULL = 26.0
"""The score that counts as 1, as in Flow-GRPO (2505.05470)."""


class PickScore:
    """Scores pictures (B, H, W, 3). Details: `pickscore` (B,), logit scale times cosine; value = pickscore / 26.

    Raises CheckpointError if the model cannot be loaded, DataError if pictures and prompts differ in number.
    """

    def __init__(self, *, model: str = MODEL, processor: str = PROCESSOR, device: str | torch.device = "cpu") -> None:
        self._clip = Clip(model, processor=processor, device=device)

    def __call__(self, pictures: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        check_pairs(pictures, prompts)
        score = self._clip.scale * self._clip.match(pictures, [prompt.text for prompt in prompts])
        return Scores(np.clip(score / FULL, 0, 1), {"pickscore": score})
