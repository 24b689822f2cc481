"""ImageReward (2304.05977): how people would rate a picture for a prompt, by a BLIP that reads with it in view.

The published weights go into transformers' BLIP, so nothing of the `image-reward` package is needed. The text encoder
reads the prompt with cross attention to the picture; what it makes of its first token is scored by a small head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPImageProcessor,
)

from flowopd.errors import CheckpointError
from flowopd.hub import fetched, fetched_tensors, filled
from flowopd.prompts import Prompt
from flowopd.rewards.aesthetic import Head
from flowopd.rewards.base import Scores
from flowopd.rewards.pairs import check_pairs

MODEL = "THUDM/ImageReward/ImageReward.pt"
TOKENIZER = "google-bert/bert-base-uncased"

LONGEST = 35
"""Tokens of a prompt that are read."""

MEAN, SPREAD = 0.16717362830052426, 1.0333394966054072
"""The head's mean and standard deviation over its authors' pictures."""

LEAST, MOST = -2.0, 2.0
"""The scores that count as 0 and 1: what pictures get lies between, as others scale it too."""

VISION = BlipVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=224,
    patch_size=16,
    layer_norm_eps=1e-6,
)
TEXT = BlipTextConfig(
    vocab_size=30524,
    hidden_size=768,
    encoder_hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
)
"""BLIP-large as it was pretrained: both sides as the published weights need them."""


class ImageReward:
    """Scores pictures (B, H, W, 3). Details: `imagereward` (B,), about -2 to 2, as papers print it.

    value = (imagereward + 2)/4, held within 0..1. `model` is a hub id with a file in it, or a path. Raises
    CheckpointError if a model cannot be loaded, DataError if pictures and prompts differ in number.
    """

    def __init__(
        self,
        *,
        model: str = MODEL,
        tokenizer: str = TOKENIZER,
        vision: BlipVisionConfig = VISION,
        text: BlipTextConfig = TEXT,
        device: str | torch.device = "cpu",
        batch: int = 16,
    ) -> None:
        weights = from_published(fetched_tensors(model))
        self._net = filled(Net(vision, text), weights, model).to(device)
        self._tokenizer: Any = fetched(AutoTokenizer, tokenizer)
        side = vision.image_size
        self._processor: Any = CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
        self._device, self._batch = device, batch

    def __call__(self, pictures: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        check_pairs(pictures, prompts)
        texts = [prompt.text for prompt in prompts]
        starts = range(0, len(texts), self._batch)
        raw = [self._rate(pictures[i : i + self._batch], texts[i : i + self._batch]) for i in starts]
        score = (torch.cat(raw).cpu().double().numpy() - MEAN) / SPREAD
        return Scores(np.clip((score - LEAST) / (MOST - LEAST), 0, 1), {"imagereward": score})

    @torch.inference_mode()
    def _rate(self, pictures: np.ndarray, texts: list[str]) -> Tensor:
        words = self._tokenizer(texts, padding="max_length", truncation=True, max_length=LONGEST, return_tensors="pt")
        seen = self._processor(images=list(pictures), return_tensors="pt").to(self._device)
        words = words.to(self._device)
        rated: Tensor = self._net(seen["pixel_values"], words["input_ids"], words["attention_mask"])
        return rated


class Net(nn.Module):
    """Pictures (B, 3, S, S) with the tokens (B, L) of their prompts -> what the head says, (B,)."""

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig) -> None:
        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = Head(text.hidden_size)

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(input_ids=tokens, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
        rated: Tensor = self.head(read[:, 0])
        return rated


VIEW, LAYER = r"blip\.visual_encoder\.", r"blip\.visual_encoder\.blocks\.(\d+)\."
NAMES = (
    (r"mlp\.(layers\..+)", r"head.\1"),
    (r"blip\.text_encoder\.(encoder\..+|embeddings\.\w+\..+)", r"text.\1"),
    (VIEW + r"cls_token", r"vision.embeddings.class_embedding"),
    (VIEW + r"pos_embed", r"vision.embeddings.position_embedding"),
    (VIEW + r"patch_embed\.proj\.(\w+)", r"vision.embeddings.patch_embedding.\1"),
    (VIEW + r"norm\.(\w+)", r"vision.post_layernorm.\1"),
    (LAYER + r"norm([12])\.(\w+)", r"vision.encoder.layers.\1.layer_norm\2.\3"),
    (LAYER + r"attn\.qkv\.(\w+)", r"vision.encoder.layers.\1.self_attn.qkv.\2"),
    (LAYER + r"attn\.proj\.(\w+)", r"vision.encoder.layers.\1.self_attn.projection.\2"),
    (LAYER + r"mlp\.(fc[12]\.\w+)", r"vision.encoder.layers.\1.mlp.\2"),
)
"""Published names and `Net`'s."""

UNUSED = r"blip\.(vision_proj|text_proj)\.\w+|blip\.text_encoder\.embeddings\.position_ids"
"""What the file carries over from BLIP's pretraining and no score depends on."""


def renamed(name: str) -> str | None:
    """Where a tensor of the published file goes in `Net`; None for what is not used.

    For example `blip.visual_encoder.blocks.3.norm1.bias` -> `vision.encoder.layers.3.layer_norm1.bias`. Raises
    CheckpointError for a name that ImageReward does not have.
    """
    for published, own in NAMES:
        if found := re.fullmatch(published, name):
            return found.expand(own)
    if re.fullmatch(UNUSED, name):
        return None
    raise CheckpointError(f"{name} is no tensor of ImageReward; give its file ImageReward.pt")


def from_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors under `Net`'s names. Raises CheckpointError as `renamed` does."""
    return {new: tensor for old, tensor in tensors.items() if (new := renamed(old)) is not None}
