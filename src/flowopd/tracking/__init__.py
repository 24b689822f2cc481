"""What a run writes down while it goes: `metrics.jsonl`, and OUT/tensorboard where TensorBoard is installed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flowopd.processes import any_of, is_main

console = Console(stderr=True)

OnUpdate = Callable[[int, Mapping[str, float]], object]
"""(update, its metrics) -> True to end the stage after it, anything else to go on; each process calls its own."""


class Tracker:
    """One stage's rows in `metrics.jsonl`, one JSON object a step, and its bar on the terminal.

    Of several processes the main one alone writes and shows.
    """

    def __init__(self, run: Path, stage: str, total: int, on_update: OnUpdate | None = None) -> None:
        self.stage, self.total, self._writes, self._on_update = stage, total, is_main(), on_update
        run.mkdir(parents=True, exist_ok=True)
        self._file = run / "metrics.jsonl"
        self._board = _board(run / "tensorboard" / stage.replace(":", "-")) if self._writes else None
        self._start = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not self._writes,
        )

    def __enter__(self) -> Tracker:
        self._progress.start()
        self._task = self._progress.add_task(self.stage, total=self.total, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if self._board is not None:
            self._board.close()

    def rewind(self, step: int) -> None:
        """Go on after `step` updates: rows of this stage from later steps, which a resume repeats, are dropped."""
        self._progress.update(self._task, completed=step)
        if not (self._writes and self._file.exists()):
            return
        rows = [line for line in self._file.read_text().splitlines() if line]
        kept = [line for line in rows if not self._repeats(json.loads(line), step)]
        aside = self._file.with_suffix(".tmp")
        aside.write_text("".join(line + "\n" for line in kept))
        aside.rename(self._file)

    def _repeats(self, row: Mapping[str, object], step: int) -> bool:
        return row.get("stage") == self.stage and int(str(row.get("step", -1))) >= step

    def log(self, step: int, metrics: Mapping[str, float], note: str = "") -> None:
        """Write the row of `step`; `note` stands beside the bar."""
        row = {
            "stage": self.stage,
            "step": step,
            "seconds": round(time.monotonic() - self._start, 3),
            **metrics,
        }
        if self._writes:
            with self._file.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)
        self._progress.update(self._task, completed=step + 1, note=note)

    def ends(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether `on_update`, told of an update, ends the stage; in any process, so in all of them."""
        return self._on_update is not None and any_of(self._on_update(step, metrics) is True)


def _board(folder: Path) -> Any:
    """TensorBoard's writer, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
