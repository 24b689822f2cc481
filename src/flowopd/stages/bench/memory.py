"""The memory of an update, measured in a process of its own, where nothing else has left a trace.

What a teacher adds is counted instead, its tensors and the objects that hold them: the kernel rounds what a process
holds by more than a small adapter.
"""

from __future__ import annotations

import gc
import resource
import sys
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from flowopd.errors import ConfigError
from flowopd.stages.bench.settings import BenchConfig
from flowopd.stages.bench.subject import bare_model, new_ledger, untaught, update_of, with_teachers

STATUS = Path("/proc/self/status")
KIB = 1024


@dataclass(frozen=True)
class Memory:
    """Bytes: the most that an update had, what each teacher adds, and an adapter's own size."""

    peak: int
    teacher: int
    adapter: int


def memory_of(config: BenchConfig) -> Memory:
    """The memory of one update in a fresh process: resident, or allocated on an accelerator.

    Raises ConfigError if the system ends that process, as it does where memory runs out.
    """
    try:
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as fresh:
            return fresh.submit(_measured, config).result()
    except BrokenProcessPool:
        raise ConfigError(
            f"the system ended an update of {config.batch} samples and {config.teachers} teachers, as it does where "
            "memory runs out; take fewer"
        ) from None


def _measured(config: BenchConfig) -> Memory:
    torch.set_num_threads(config.threads or torch.get_num_threads())
    subject = untaught(config, bare_model(config))
    tracemalloc.start()
    taught = with_teachers(subject, config.teachers)
    gc.collect()
    objects, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    tensors = sum(taught.adapters.nbytes(name) for name in taught.teachers)
    update_of(taught, config, new_ledger(taught))(0)
    adapter = taught.adapters.nbytes(taught.teachers[0])
    return Memory(_peak(subject.model.device), (tensors + objects) // config.teachers, adapter)


def _peak(device: torch.device) -> int:
    """The most that this process has held. On Linux `ru_maxrss` begins with the parent's, `VmHWM` does not."""
    if device.type != "cpu":
        return int(torch.accelerator.max_memory_allocated(device))
    if STATUS.exists():
        (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * KIB
    unit = 1 if sys.platform == "darwin" else KIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
