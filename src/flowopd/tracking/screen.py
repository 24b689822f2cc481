"""What a stage shows while it goes: a live bar on a terminal, else a plain line now and then, or nothing."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flowopd.processes import is_main
from flowopd.quiet import QUIET, is_on

console = Console(stderr=True)

EVERY = 10.0
"""Seconds between two plain lines, at the least; the first and the last are always shown."""

RECENT, BARS = 24, "▁▂▃▄▅▆▇█"
"""How many values a sparkline has, and the heights it draws them with."""

MAIN = ("gap", "reward", "loss")
"""What is shown of a stage: the first of these that it has."""

STEP = re.compile(r"/\d+$")


class Screen(Protocol):
    """One stage on the terminal."""

    def start(self) -> None:
        """The stage begins."""
        ...

    def resume(self, done: int) -> None:
        """So many updates were done before."""
        ...

    def show(self, done: int, metrics: Mapping[str, float], note: str) -> None:
        """An update is done, the `done`-th, with these metrics."""
        ...

    def stop(self) -> None:
        """The stage ends."""
        ...


def open_screen(stage: str, total: int, samples: int) -> Screen:
    """The screen for `total` updates of so many `samples` each: the bar on a terminal, lines elsewhere.

    Of several processes the main one shows; FLOWOPD_QUIET shows nothing.
    """
    if not shows():
        return Silent()
    return Bar(stage, total, samples) if console.is_terminal else Lines(stage, total, samples)


def shows() -> bool:
    """Whether this process shows progress at all."""
    return is_main() and not is_on(QUIET)


class Silent:
    """Shows nothing."""

    def start(self) -> None:
        """Nothing."""

    def resume(self, done: int) -> None:
        """Nothing."""

    def show(self, done: int, metrics: Mapping[str, float], note: str) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""


class Pace:
    """Samples a second since the stage began or went on, as far as there is a number to tell."""

    def __init__(self, samples: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._samples, self._clock, self._begin, self._before = samples, clock, clock(), 0

    def restart(self, done: int) -> None:
        """Count from here."""
        self._begin, self._before = self._clock(), done

    def seconds(self) -> float:
        """Since the count began."""
        return self._clock() - self._begin

    def rate(self, done: int) -> str:
        """Such as `3.2 samples/s`; empty for stages that draw no samples."""
        seconds = self.seconds()
        made = self._samples * (done - self._before)
        return f"{made / seconds:.3g} samples/s" if made and seconds > 0 else ""

    def left(self, done: int, total: int) -> str:
        """Such as `1:20 left`."""
        if done <= self._before or done >= total:
            return ""
        rest = int(self.seconds() / (done - self._before) * (total - done))
        minutes, seconds = divmod(rest, 60)
        return (
            f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left" if minutes >= 60 else f"{minutes}:{seconds:02} left"
        )


class Bar:
    """A live bar with the time that is left, the rate, the gap of each label, and how the main figure went."""

    def __init__(self, stage: str, total: int, samples: int) -> None:
        self._stage, self._total, self._pace = stage, total, Pace(samples)
        self._values: deque[float] = deque(maxlen=RECENT)
        columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"))
        fields = TextColumn("{task.fields[rate]} {task.fields[note]}")
        self._progress = Progress(TextColumn("{task.description}"), *columns, fields, console=console)

    def start(self) -> None:
        """Show the empty bar."""
        self._progress.start()
        self._task = self._progress.add_task(self._stage, total=self._total, rate="", note="")

    def resume(self, done: int) -> None:
        """Fill it up to here."""
        self._pace.restart(done)
        self._progress.update(self._task, completed=done)

    def show(self, done: int, metrics: Mapping[str, float], note: str) -> None:
        """Move it on."""
        self._values.extend(value for _, value in headline(metrics)[:1])
        said = f"{note or summary(metrics)} {sparkline(self._values)}".strip()
        self._progress.update(self._task, completed=done, rate=self._pace.rate(done), note=said)

    def stop(self) -> None:
        """Leave it as it is."""
        self._progress.stop()


class Lines:
    """Plain lines for logs: the first update, the last, and one every few seconds in between."""

    def __init__(
        self, stage: str, total: int, samples: int, clock: Callable[[], float] = time.monotonic, every: float = EVERY
    ) -> None:
        self._stage, self._total, self._every, self._clock = stage, total, every, clock
        self._pace, self._last = Pace(samples, clock), float("-inf")
        self._unsaid = ""

    def start(self) -> None:
        """Nothing yet."""

    def resume(self, done: int) -> None:
        """Say where the stage goes on."""
        self._pace.restart(done)
        if 0 < done < self._total:
            self._say(f"{self._stage} goes on after {done}/{self._total}")

    def show(self, done: int, metrics: Mapping[str, float], note: str) -> None:
        """A line, if it is time for one."""
        parts = (self._pace.rate(done), self._pace.left(done, self._total), note or summary(metrics))
        line = ", ".join([f"{self._stage} {done}/{self._total}", *(part for part in parts if part)])
        due = done == self._total or self._clock() - self._last >= self._every
        self._unsaid = "" if due else line
        if due:
            self._last = self._clock()
            self._say(line)

    def stop(self) -> None:
        """The last update, if it was not told."""
        if self._unsaid:
            self._say(self._unsaid)

    def _say(self, line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def headline(metrics: Mapping[str, float]) -> list[tuple[str, float]]:
    """The main figure of an update, and the gap or reward of each label."""
    main = [(name, metrics[name]) for name in MAIN if name in metrics][:1]
    parts = [(name, value) for name, value in metrics.items() if name.startswith(("gap/", "reward/"))]
    return [*main, *((name, value) for name, value in parts if not STEP.search(name))]


def summary(metrics: Mapping[str, float]) -> str:
    """The headline in words, such as `gap 0.03, text 0.02, quality 0.04`."""
    return ", ".join(f"{name.rpartition('/')[2]} {value:.3g}" for name, value in headline(metrics))


def sparkline(values: deque[float] | list[float]) -> str:
    """The values as heights between their least and their greatest; those that are not finite are gaps."""
    finite = [value for value in values if abs(value) < float("inf")]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] if abs(value) < float("inf") else " " for value in values)
