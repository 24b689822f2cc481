"""HPS v2.1 (2306.09341): which picture people prefer for a prompt, by a CLIP-H fine-tuned on their choices.

The weights are open_clip's; transformers' CLIP takes them, so nothing of HPSv2's own code is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from flowopd.hub import fetched, fetched_tensors, filled
from flowopd.prompts import Prompt
from flowopd.rewards.base import Scores
from flowopd.rewards.clip import Clip
from flowopd.rewards.openclip import from_openclip
from flowopd.rewards.pairs import check_pairs

MODEL = "xswu/HPSv2/HPS_v2.1_compressed.pt"
CLIP = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""The network's shape and processor: what HPSv2 was fine-tuned from."""


class HpsV2:
    """Scores pictures (B, H, W, 3). Details: `hpsv2` (B,), the cosine, about 0.2 to 0.4; value = max(cosine, 0).

    Papers print the cosine (.2998), HPSv2's own benchmark 100 times the cosine (29.98). `model` is a hub id with a
    file in it, or a path. Raises CheckpointError if a model cannot be loaded, DataError if pictures and prompts differ
    in number.
    """

    def __init__(self, *, model: str = MODEL, clip: str = CLIP, device: str | torch.device = "cpu") -> None:
        weights = from_openclip(fetched_tensors(model))
        self._clip = Clip(clip, model=filled(CLIPModel(fetched(CLIPConfig, clip)), weights, model), device=device)

    def __call__(self, pictures: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        check_pairs(pictures, prompts)
        whole = np.stack([on_square(picture, self._clip.side) for picture in pictures])
        cosine = self._clip.match(whole, [prompt.text for prompt in prompts])
        return Scores(np.clip(cosine, 0, 1), {"hpsv2": cosine})


def on_square(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture (H, W, 3) as (side, side, 3), whole, in the middle of black: what HPSv2 looks at."""
    height, width, _ = picture.shape
    scale = side / max(height, width)
    small = Image.fromarray(picture).resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side, side))
    square.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return np.asarray(square)
