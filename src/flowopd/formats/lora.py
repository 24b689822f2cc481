"""Adapters that plain diffusers and plain peft load; both are written in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from flowopd.durable import write_files
from flowopd.formats.base import Format, Trained, plain
from flowopd.lora_file import DIFFUSERS_PREFIX, DIFFUSERS_WEIGHTS, diffusers_lora_files, lora_files


class Diffusers(Format):
    """`pytorch_lora_weights.safetensors`, for `pipe.load_lora_weights(folder)`."""

    def write(self, folder: Path, trained: Trained) -> None:
        """See `Format`."""
        write_files(folder, diffusers_lora_files(trained.lora))

    def reloaded(self, folder: Path, trained: Trained) -> nn.Module:
        """By `load_lora_adapter`, which is what the pipeline's `load_lora_weights` calls."""
        transformer: Any = plain(trained.model)
        prefix = DIFFUSERS_PREFIX.removesuffix(".")
        transformer.load_lora_adapter(folder, weight_name=DIFFUSERS_WEIGHTS, prefix=prefix)
        return transformer.eval()


class Peft(Format):
    """A PEFT folder, for `PeftModel.from_pretrained(pipe.transformer, folder)`."""

    def write(self, folder: Path, trained: Trained) -> None:
        """See `Format`."""
        write_files(folder, lora_files(trained.lora, trained.base))

    def reloaded(self, folder: Path, trained: Trained) -> nn.Module:
        """By `PeftModel.from_pretrained`."""
        return PeftModel.from_pretrained(plain(trained.model), str(folder)).eval()
