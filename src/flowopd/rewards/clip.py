"""What CLIP sees and reads: embeddings of unit length, by transformers' `CLIPModel`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoProcessor, CLIPModel

from flowopd.hub import fetched


class Clip:
    """A CLIP by hub id or folder; `processor` where the weights come without one, `model` where they are elsewhere.

    Raises CheckpointError if a part cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        *,
        processor: str | None = None,
        model: CLIPModel | None = None,
        device: str | torch.device = "cpu",
        batch: int = 16,
    ) -> None:
        self._model = (model or fetched(CLIPModel, name)).eval().requires_grad_(False).to(device)
        self._processor: Any = fetched(AutoProcessor, processor or name)
        self._device, self._batch = device, batch

    @property
    def side(self) -> int:
        """Pixels along one side of what this CLIP looks at."""
        return self._model.config.vision_config.image_size

    @property
    def scale(self) -> float:
        """The factor that this CLIP's cosines were trained with."""
        return self._model.logit_scale.exp().item()

    @torch.inference_mode()
    def see(self, pictures: Sequence[Image.Image] | np.ndarray) -> Tensor:
        """(N, E) fp32 of N pictures: PIL, or (N, H, W, 3) uint8."""
        images = [p if isinstance(p, Image.Image) else Image.fromarray(p) for p in pictures]
        return self._embedded(images, self._see)

    @torch.inference_mode()
    def read(self, texts: Sequence[str]) -> Tensor:
        """(N, E) fp32 of N texts; what is longer than CLIP reads is cut off."""
        return self._embedded(list(texts), self._read)

    def match(self, pictures: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """The cosine (B,) float64 of each of B pictures (B, H, W, 3) with its own text."""
        return (self.see(pictures) * self.read(texts)).sum(-1).cpu().double().numpy()

    def _embedded(self, items: list[Any], embed: Any) -> Tensor:
        parts = [embed(items[i : i + self._batch]) for i in range(0, len(items), self._batch)]
        return normalize(torch.cat(parts).float(), dim=-1)

    def _see(self, images: list[Image.Image]) -> Tensor:
        inputs = self._processor(images=images, return_tensors="pt").to(self._device)
        return self._model.get_image_features(**inputs).pooler_output

    def _read(self, texts: list[str]) -> Tensor:
        inputs = self._processor(text=texts, padding="max_length", truncation=True, return_tensors="pt")
        return self._model.get_text_features(**inputs.to(self._device)).pooler_output
