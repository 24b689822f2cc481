"""The formats that a trained adapter goes out in: each is written here, and read back as other programs read it."""

from __future__ import annotations

from collections.abc import Mapping

from flowopd.formats.base import Format, Trained
from flowopd.formats.comfyui import Comfyui
from flowopd.formats.lora import Diffusers, Peft
from flowopd.formats.merged import Merged

WHOLE = "merged"
"""The format that holds weights of the base, in a dtype to choose; the others hold the change alone, in fp32."""

FORMATS: Mapping[str, Format] = {
    "diffusers": Diffusers(),
    "peft": Peft(),
    "comfyui": Comfyui(),
    WHOLE: Merged(),
}

__all__ = ["FORMATS", "WHOLE", "Comfyui", "Diffusers", "Format", "Merged", "Peft", "Trained"]
