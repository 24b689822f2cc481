"""Model families: a pipeline folder or hub id -> velocity field, conditioning and decoding."""

from __future__ import annotations

import torch

from flowopd.errors import CheckpointError
from flowopd.models.base import Model
from flowopd.models.published import PIPELINES
from flowopd.models.sd3 import Sd3
from flowopd.models.source import Source

FAMILIES = {"StableDiffusion3Pipeline": Sd3}

__all__ = ["FAMILIES", "Model", "Source", "open_model"]


def open_model(
    name: str,
    *,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Model:
    """The model of a pipeline folder, hub id or `package:` name; its weights are loaded when they are needed.

    Raises CheckpointError if there is no such pipeline, or its family is not known.
    """
    source = Source(name, revision)
    pipeline = PIPELINES.get(name) or source.pipeline
    if pipeline not in FAMILIES:
        raise CheckpointError(f"model {name} is a {pipeline}; known families: {', '.join(FAMILIES)}")
    return FAMILIES[pipeline](source, device=device, dtype=dtype)
