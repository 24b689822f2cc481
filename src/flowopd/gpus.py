"""GPUs by the names that commands know them by, with what their makers' data sheets say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from flowopd.errors import ConfigError


@dataclass(frozen=True)
class Gpu:
    """A GPU's memory in GiB and its peak of dense bf16 products in FLOPs a second."""

    memory: float
    flops: float


GPUS: Mapping[str, Gpu] = {
    "rtx3090": Gpu(24, 71e12),
    "rtx4090": Gpu(24, 165e12),
    "rtx5090": Gpu(32, 209e12),
    "rtx6000-ada": Gpu(48, 364e12),
    "a6000": Gpu(48, 155e12),
    "a10": Gpu(24, 125e12),
    "l4": Gpu(24, 121e12),
    "l40s": Gpu(48, 362e12),
    "a100-40gb": Gpu(40, 312e12),
    "a100-80gb": Gpu(80, 312e12),
    "h100": Gpu(80, 989e12),
    "h200": Gpu(141, 989e12),
    "b200": Gpu(180, 2250e12),
    "mi300x": Gpu(192, 1307e12),
}
"""As their makers' data sheets have them."""

CPU = "cpu"
"""The name of this machine's processors."""


def gpu_named(name: str, otherwise: str = "") -> str:
    """The key in GPUS, or CPU, of a name in any case. Raises ConfigError, with what else can be done, for another."""
    known = name.strip().lower()
    if known in (*GPUS, CPU):
        return known
    near = [gpu for gpu in GPUS if known and known in gpu] or get_close_matches(known, GPUS, n=1)
    asked = f"; did you mean {near[0]!r}?" if near else ";"
    raise ConfigError(f"there is no GPU {name!r}{asked} known: {', '.join(GPUS)}, and {CPU}{otherwise}")
