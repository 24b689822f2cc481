"""The LAION aesthetic predictor: how much people like a picture, 1 to 10, from CLIP's view of it alone.

https://github.com/christophschuhmann/improved-aesthetic-predictor
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from flowopd.hub import fetched_tensors
from flowopd.prompts import Prompt
from flowopd.rewards.base import Scores
from flowopd.rewards.clip import Clip
from flowopd.rewards.pairs import check_pairs

MODEL = "openai/clip-vit-large-patch14"
HEAD = "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth"

FULL = 10.0
"""The best score people could give."""


class Head(nn.Module):
    """Linear layers without nonlinearity, as published: unit embeddings (B, width) -> scores (B,)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        scores: Tensor = self.layers(embeddings)
        return scores.squeeze(-1)


class Aesthetic:
    """Scores pictures (B, H, W, 3). Details: `aesthetic` (B,), about 1 to 10; value = aesthetic / 10.

    `head` is a hub id with a file in it, or a path. Raises CheckpointError if a model cannot be loaded, DataError if
    pictures and prompts differ in number.
    """

    def __init__(self, *, model: str = MODEL, head: str = HEAD, device: str | torch.device = "cpu") -> None:
        self._clip = Clip(model, device=device)
        weights = fetched_tensors(head)
        self._head = Head(weights["layers.0.weight"].shape[1])
        self._head.load_state_dict(weights)
        self._head.eval().requires_grad_(False).to(device)

    def __call__(self, pictures: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        check_pairs(pictures, prompts)
        score = self._head(self._clip.see(pictures)).cpu().double().numpy()
        return Scores(np.clip(score / FULL, 0, 1), {"aesthetic": score})
