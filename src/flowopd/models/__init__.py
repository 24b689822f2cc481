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
    t5: bool = True,
    gradient_checkpointing: bool = False,
    compiled: bool = False,
) -> Model:
    """The model of a pipeline folder, hub id or `package:` name; its weights are loaded when they are needed.

    `t5` False encodes prompts by the CLIPs alone; `gradient_checkpointing` recomputes the activations of each block in
    the backward; `compiled` compiles each block by `torch.compile` when it is first used.
    Raises CheckpointError if there is no such pipeline, or its family is not known.
    """
    source = Source(name, revision)
    pipeline = PIPELINES.get(name) or source.pipeline
    if pipeline not in FAMILIES:
        raise CheckpointError(f"model {name} is a {pipeline}; known families: {', '.join(FAMILIES)}")
    make = FAMILIES[pipeline]
    return make(
        source, device=device, dtype=dtype, t5=t5, gradient_checkpointing=gradient_checkpointing, compiled=compiled
    )
