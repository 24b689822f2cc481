"""GPUs by the names that commands know them by, with what their makers' data sheets say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class Gpu:
    """A GPU's memory in GiB and its peak of dense bf16 products in FLOPs a second."""

    memory: float
    flops: float


GPUS: Mapping[str, Gpu] = {
    "rtx3090": Gpu(24, 71e12),
    "rtx4090": Gpu(24, 165e12),
    "a10": Gpu(24, 125e12),
    "l40s": Gpu(48, 362e12),
    "a100-40gb": Gpu(40, 312e12),
    "a100-80gb": Gpu(80, 312e12),
    "h100": Gpu(80, 989e12),
    "h200": Gpu(141, 989e12),
}
"""As their makers' data sheets have them."""

CPU = "cpu"
"""The name of this machine's processors."""


def unknown_gpu(name: str) -> str:
    """What to say of a GPU that is not among GPUS."""
    near = [gpu for gpu in GPUS if name and name.lower() in gpu] or get_close_matches(name.lower(), GPUS, n=1)
    asked = f"; did you mean {near[0]!r}?" if near else ";"
    return f"there is no GPU {name!r}{asked} known: {', '.join(GPUS)}, and {CPU}"
