"""Transformer configs of public models, as their hubs show them: what a plan needs, without weights or a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SD35: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "qk_norm": "rms_norm",
}

TRANSFORMERS: Mapping[str, Mapping[str, Any]] = {
    "stabilityai/stable-diffusion-3.5-medium": {
        **_SD35,
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "pos_embed_max_size": 384,
        "dual_attention_layers": tuple(range(13)),
    },
    "stabilityai/stable-diffusion-3.5-large": {
        **_SD35,
        "num_layers": 38,
        "num_attention_heads": 38,
        "caption_projection_dim": 2432,
        "pos_embed_max_size": 192,
        "dual_attention_layers": (),
    },
}

PIPELINES = dict.fromkeys(TRANSFORMERS, "StableDiffusion3Pipeline")
"""The class of each one's pipeline."""

ENCODERS = {"clip_l": 123_650_304, "clip_g": 694_659_840, "t5_xxl": 4_762_310_656}
"""Parameters of the text encoders that all these models have."""

TEXT_TOKENS, PIXELS, SHIFT = 77 + 256, 8, 3.0
"""In all these models: tokens of CLIP's and T5's block, pixels along one side of a latent, shift of the time grid."""

LICENCES: Mapping[str, Mapping[str, str]] = {
    "stabilityai/stable-diffusion-3.5-": {"license": "other", "license_name": "stabilityai-ai-community"},
}
"""What a model card says of the licence of models whose ids begin so."""

UNKNOWN_LICENCE: Mapping[str, str] = {"license": "unknown"}


def licence_of(name: str) -> Mapping[str, str]:
    """The licence of a model by its id, in the words of a model card; `unknown` for others than published ones."""
    return next((words for start, words in LICENCES.items() if name.startswith(start)), UNKNOWN_LICENCE)
