"""Does a long run keep its memory and its pace? Distils the mini demo's experts for some minutes and fits both.

Exit code 1 if the 95 % interval of a slope lies wholly above its bar. Seconds are those of the processor, which another
program on the machine changes little; those of the clock are shown beside them.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
from scipy import stats

from flowopd.pipeline import open_run
from flowopd.recipe import load_recipe, recipe_path
from flowopd.stages.coldstart import cold_start
from flowopd.stages.distill import distill
from flowopd.stages.guard import Guard

MEMORY, PACE = 2.0, 0.1
"""Bars: MiB in 1,000 updates, and growth of an update's seconds in the whole run as a share of their mean."""

BLOCKS, SETTLING = 30, 0.1
"""Means of so many blocks are fitted, after this share of the updates is left out."""

STATUS = Path("/proc/self/status")

SETS = (
    "distill.samples_per_label=1",
    "distill.sampling.steps=4",
    "distill.optim.updates=1000000",
    "distill.optim.checkpoint_every=20",
    "monitor.every=100",
    "evaluate=null",
)


class Enough(Exception):
    """The minutes are over."""


def own_bytes(process: psutil.Process) -> int:
    """What the process has written to memory, in its swap too; not pages of files, which other programs share.

    Where the system does not tell (it is Linux that does), what would be free if the process ended.
    """
    if not STATUS.exists():
        return int(process.memory_full_info().uss)
    facts = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return sum(int(facts[name].split()[0]) for name in ("RssAnon", "VmSwap")) * 1024


class Record:
    """Memory and times after each update."""

    def __init__(self, minutes: float) -> None:
        self._end, self._process = time.monotonic() + 60 * minutes, psutil.Process()
        self.mib: list[float] = []
        self.clock: list[float] = []
        self.processor: list[float] = []

    def note(self) -> None:
        self.mib.append(own_bytes(self._process) / 2**20)
        self.clock.append(time.monotonic())
        self.processor.append(time.process_time())
        if time.monotonic() > self._end:
            raise Enough


def slope(values: Sequence[float]) -> tuple[float, float, float]:
    """Rise from one update to the next and its 95 % interval, from the means of blocks."""
    settled = np.asarray(values)[int(SETTLING * len(values)) :]
    blocks = np.array_split(settled, BLOCKS)
    places = np.cumsum([len(block) for block in blocks]) - len(blocks[0]) / 2
    fit = stats.linregress(places, [block.mean() for block in blocks])
    half = stats.t.ppf(0.975, BLOCKS - 2) * fit.stderr
    return fit.slope, fit.slope - half, fit.slope + half


def record(minutes: float) -> Record:
    """Distil for so long, every prompt's conditioning read beforehand, since those asked for last stay in memory."""
    found, look, begin = Record(minutes), Guard.look, Guard.begin

    def beginning(self, trainer, checkpoints):
        for prompt in self._trained.prompts:
            self._trained.conditioning([prompt.text])
        begin(self, trainer, checkpoints)

    def looking(self, step, trainer):
        metrics = look(self, step, trainer)
        found.note()
        return metrics

    Guard.look, Guard.begin = looking, beginning
    with tempfile.TemporaryDirectory() as folder:
        session = open_run(load_recipe(recipe_path("mini-demo.yaml"), SETS), Path(folder) / "run")
        cold_start(session)
        try:
            distill(session)
        except Enough:
            return found
    raise AssertionError("the run ended before its time")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    torch.set_num_threads(1)
    found = record(parser.parse_args().minutes)
    count = len(found.mib)
    if count < 4 * BLOCKS:
        print(f"{count} updates are too few to fit; give more --minutes")
        return 1
    mib, low, high = (1000 * value for value in slope(found.mib))
    seconds = {name: np.diff(getattr(found, name)) for name in ("processor", "clock")}
    print(f"{count} updates, {found.mib[0]:.0f} MiB after the first, {found.mib[-1]:.0f} MiB after the last")
    print(f"memory: {mib:+.2f} MiB in 1,000 updates (95 % interval {low:+.2f} to {high:+.2f}), bar {MEMORY:g}")
    growth = {}
    for name, values in seconds.items():
        growth[name] = [value * count / values.mean() for value in slope(values)]
        rise, least, most = growth[name]
        print(f"{name}: {values.mean():.3f} s an update, {rise:+.1%} in the run ({least:+.1%} to {most:+.1%})")
    print(f"bar of the processor's growth: {PACE:.0%}")
    failed = low > MEMORY or growth["processor"][1] > PACE
    print("failed" if failed else "passed")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
