"""Seconds of updates that take turns, and the machine's own rate, measured and not looked up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flowopd.models.footprint import ATTENTION
from flowopd.stages.bench.counting import Ledger, clock

SIZES = (1024, 2048)
"""Of the square matrices whose product is timed."""

PRODUCTS = 5


@dataclass(frozen=True)
class Timed:
    """Seconds of one update, and those within the model's forwards and backwards."""

    seconds: float
    inside: float


def interleaved(updates: Sequence[tuple[Callable[[int], Tensor], Ledger]], repeats: int) -> list[list[Timed]]:
    """Each update `repeats` times, in turns: A B A B. One list an update; pairs were measured next to each other."""
    found: list[list[Timed]] = [[] for _ in updates]
    for i in range(repeats):
        for times, (update, ledger) in zip(found, updates, strict=True):
            times.append(_timed(update, ledger, i))
    return found


def _timed(update: Callable[[int], Tensor], ledger: Ledger, i: int) -> Timed:
    start, before = ledger.now(), ledger.inside
    update(i)
    return Timed(ledger.now() - start, ledger.inside - before)


@dataclass(frozen=True)
class Work:
    """Floating-point operations of one update, and attention's own share of them."""

    flops: float
    attention: float


def work_of(update: Callable[[int], Tensor], i: int) -> Work:
    """The operations that torch counts while the update runs."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        update(i)
    found = counter.get_flop_counts()["Global"]
    attention = sum(count for op, count in found.items() if "attention" in str(op))
    total = counter.get_total_flops()
    return Work(float(total), attention / total)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The machine's best rate of matrix products, in floating-point operations a second."""
    now, best = clock(device), 0.0
    for size in SIZES:
        a = torch.ones(size, size, device=device, dtype=dtype)
        for _ in range(PRODUCTS + 1):
            start = now()
            a @ a
            best = max(best, 2 * size**3 / (now() - start))
    return best


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and greatest."""
    return median(values), min(values), max(values)
