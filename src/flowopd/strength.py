"""How much an adapter counts: its weight changes times a factor, from none of it over all of it to more than that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peft.tuners.lora import LoraLayer

from flowopd.adapters import Adapters


@contextmanager
def strengthened(adapters: Adapters, name: str, factor: float) -> Iterator[None]:
    """Inside, the adapter's weight changes count `factor` times: 0 is the base, 1 the adapter as it is.

    Afterwards its scales are what they were, bit for bit.
    """
    layers = [m for m in adapters.transformer.modules() if isinstance(m, LoraLayer) and name in m.scaling]
    scales = [layer.scaling[name] for layer in layers]
    try:
        for layer, scale in zip(layers, scales, strict=True):
            layer.scaling[name] = factor * scale
        yield
    finally:
        for layer, scale in zip(layers, scales, strict=True):
            layer.scaling[name] = scale
