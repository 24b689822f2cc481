"""What a machine offers a run: versions of libraries, its device, its threads, its disk."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from math import inf
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from flowopd.stages.doctor.check import FAILED, OK, WARNING, Check

SHOWN = ("torch", "diffusers", "transformers", "peft", "accelerate")
"""Libraries whose versions are told though nothing is wrong with them."""

GIB = 2**30

BUSY = 1.5
"""Threads that want to run, in those that can, above which they get in each other's way."""

NARROW = 2.0
"""GiB below which a disk is nearly full, whatever is to be kept on it."""


def versions() -> Check:
    """Python and the libraries against the bounds that this package was installed with."""
    wanted = [Requirement(line) for line in requires("flowopd") or ()]
    needed = {r.name: str(r.specifier) for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})}
    return _versions({"python": str(metadata("flowopd")["Requires-Python"]), **needed})


def _versions(needed: Mapping[str, str]) -> Check:
    found = {name: _version(name) for name in needed}
    wrong = {
        name: bounds
        for name, bounds in needed.items()
        if found[name] is None or not SpecifierSet(bounds).contains(found[name], prereleases=True)
    }
    if wrong:
        fact = ", ".join(f"{name} {found[name] or 'is missing'}, needed {bounds}" for name, bounds in wrong.items())
        libraries = " ".join(f"'{name}{bounds}'" for name, bounds in wrong.items() if name != "python")
        mend = f"pip install -U {libraries}" if libraries else "use another Python"
        return Check("versions", FAILED, fact, mend)
    return Check("versions", OK, ", ".join(f"{name} {found[name]}" for name in ("python", *SHOWN) if name in found))


def _version(name: str) -> str | None:
    if name == "python":
        return platform.python_version()
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def device(name: str, dtype: str = "float32") -> Check:
    """A device by torch's name: that it computes, its memory, and how it takes the dtype of the frozen base."""
    try:
        place = torch.device(name)
        torch.ones(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        return Check("device", FAILED, f"{name} does not compute ({reason})", "take another `device`, or leave it out")
    fact = f"{place}: {_described(place)}; bfloat16 {_bfloat16(place)}"
    if dtype != "float32" and place.type == "cpu":
        mend = "float32 is quicker here: --set dtype=float32"
        return Check("device", WARNING, f"{fact}, and the recipe wants {dtype}", mend)
    if dtype == "bfloat16" and _bfloat16(place) == "no":
        return Check("device", WARNING, f"{fact}, but the recipe wants it", "it is emulated: use a newer device")
    return Check("device", OK, fact)


def _described(place: torch.device) -> str:
    if place.type == "cuda":
        each = torch.cuda.get_device_properties(place)
        free, total = torch.cuda.mem_get_info(place)
        return f"{each.name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, {torch.cuda.device_count()} in all"
    memory = psutil.virtual_memory()
    return f"{cores():g} cores, {memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"


def _bfloat16(place: torch.device) -> str:
    """Whether a device multiplies in bfloat16 at full speed."""
    if place.type == "cpu":
        return "slow"
    if place.type == "cuda":
        return "yes" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    try:
        torch.ones(1, device=place, dtype=torch.bfloat16)
    except (RuntimeError, TypeError):
        return "no"
    return "yes"


def cores() -> float:
    """Processor cores that this process may use, as its affinity and its container's quota allow."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, _quota(Path("/sys/fs/cgroup/cpu.max")))


def _quota(file: Path) -> float:
    try:
        limit, period = file.read_text().split()
        return inf if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return inf


def threads() -> Check:
    """The threads of all local processes, and of whatever else runs, against the cores there are."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return _threads(torch.get_num_threads(), processes, cores(), psutil.getloadavg()[0])


def _threads(each: int, processes: int, cores: float, load: float) -> Check:
    fact = f"{each} thread(s) in {processes} process(es) on {cores:g} core(s), load {load:.1f}"
    if each * processes > max(cores, processes):
        return Check("threads", WARNING, fact, f"export OMP_NUM_THREADS={max(1, int(cores // processes))}")
    if each * processes + load > BUSY * max(cores, processes):
        fewer = ", or export OMP_NUM_THREADS=1" if each > 1 else ""
        return Check("threads", WARNING, fact, f"something else runs here: wait for it{fewer}")
    return Check("threads", OK, fact)


def disk(out: Path, needed: Mapping[str, float] | None = None) -> Check:
    """The room where a run's folder is, or will be, against the bytes that its parts need."""
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free, total = shutil.disk_usage(place).free, sum((needed or {}).values())
    fact = f"{free / GIB:.1f} GiB free at {place}"
    if needed:
        parts = " and ".join(f"{size / GIB:.2f} GiB of {name}" for name, size in needed.items())
        fact += f"; the run takes {parts}"
    if total > free:
        return Check("disk", FAILED, fact, "free some, or choose another --out")
    if free - total < NARROW * GIB:
        return Check("disk", WARNING, fact, "that is nearly full: free some, or choose another --out")
    return Check("disk", OK, fact)
