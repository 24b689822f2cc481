"""The memory of an update, measured in a process of its own, where nothing else has left a trace."""

from __future__ import annotations

import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import psutil
import torch

from flowopd.stages.bench.settings import BenchConfig
from flowopd.stages.bench.subject import bare_model, new_ledger, untaught, update_of, with_teachers

STATUS = Path("/proc/self/status")
KIB = 1024


@dataclass(frozen=True)
class Memory:
    """Bytes: the most that an update had, what a further teacher adds while it is loaded, and an adapter's own size."""

    peak: int
    teacher: int
    adapter: int


def memory_of(config: BenchConfig) -> Memory:
    """The memory of one update in a fresh process: resident, or allocated on an accelerator."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(_measured, config).result()


def _measured(config: BenchConfig) -> Memory:
    torch.set_num_threads(config.threads or torch.get_num_threads())
    subject = untaught(config, bare_model(config))
    first = with_teachers(subject, 1) if config.teachers > 1 else subject
    before = _held(subject.model.device)
    taught = with_teachers(first, config.teachers)
    added = _held(subject.model.device) - before
    update_of(taught, config, new_ledger(taught))(0)
    adapter = taught.adapters.nbytes(taught.teachers[0])
    return Memory(_peak(subject.model.device), added // (config.teachers - len(first.teachers)), adapter)


def _held(device: torch.device) -> int:
    if device.type == "cpu":
        return int(psutil.Process().memory_info().rss)
    return int(torch.accelerator.memory_allocated(device))


def _peak(device: torch.device) -> int:
    """The most that this process has held. On Linux `ru_maxrss` begins with the parent's, `VmHWM` does not."""
    if device.type != "cpu":
        return int(torch.accelerator.max_memory_allocated(device))
    if STATUS.exists():
        (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * KIB
    unit = 1 if sys.platform == "darwin" else KIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
