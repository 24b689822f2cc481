"""What a run writes down while it goes: `metrics.jsonl`, and OUT/tensorboard where TensorBoard is installed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
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

from flowopd.durable import append_text, flush_file, make_folder, replace_text, writing
from flowopd.errors import DataError
from flowopd.processes import is_main

console = Console(stderr=True)


def warn(line: str) -> None:
    """One line on standard error, above the bar; of several processes the main one speaks."""
    if is_main():
        console.print(f"warning: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)


class Tracker:
    """One stage's rows in `metrics.jsonl`, one JSON object a step, and its bar on the terminal.

    Of several processes the main one alone writes and shows.
    """

    def __init__(self, run: Path, stage: str, total: int) -> None:
        self.stage, self.total, self._writes = stage, total, is_main()
        make_folder(run)
        self._file, self._rows = run / "metrics.jsonl", 0
        self._events = run / "tensorboard" / stage.replace(":", "-")
        self._board = _board(self._events) if self._writes else None
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
            with writing(self._events):
                self._board.close()

    def rewind(self, step: int, rows: int = 0) -> None:
        """Go on after `step` updates: rows of this stage from later steps, which a resume repeats, are dropped.

        So is a last line that does not end, which a full disk may leave. Says so on standard error if fewer than `rows`
        of this stage are left. Raises DataError for a line that is not JSON, CheckpointError if it cannot be written.
        """
        self._progress.update(self._task, completed=step)
        if not self._writes:
            return
        text = self._file.read_text(encoding="utf-8", errors="replace") if self._file.exists() else ""
        lines = [(line, _row(line, f"{self._file}:{i}")) for i, line in enumerate(text.split("\n")[:-1], 1) if line]
        kept = [(line, row) for line, row in lines if not self._repeats(row, step)]
        rewound = "".join(f"{line}\n" for line, _ in kept)
        if rewound != text:
            replace_text(self._file, rewound)
        self._rows = sum(row.get("stage") == self.stage for _, row in kept)
        if self._rows < rows:
            lost = f"{self._file} holds {self._rows} of the {rows} rows of {self.stage}; the others were lost"
            console.print(lost, soft_wrap=True, markup=False, highlight=False)

    def _repeats(self, row: Mapping[str, object], step: int) -> bool:
        return row.get("stage") == self.stage and int(str(row.get("step", -1))) >= step

    def flush(self) -> int:
        """Have the disk hold the rows so far; returns how many are of this stage."""
        flush_file(self._file)
        return self._rows

    def log(self, step: int, metrics: Mapping[str, float], note: str = "") -> None:
        """Write the row of `step`; `note` stands beside the bar. A value that is not finite is left out."""
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        row = {
            "stage": self.stage,
            "step": step,
            "seconds": round(time.monotonic() - self._start, 3),
            **metrics,
        }
        if self._writes:
            append_text(self._file, json.dumps(row) + "\n")
            self._rows += 1
        if self._board is not None:
            with writing(self._events):
                for name, value in metrics.items():
                    self._board.add_scalar(name, value, step)
        self._progress.update(self._task, completed=step + 1, note=note)


def _board(folder: Path) -> Any:
    """TensorBoard's writer, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    with writing(folder):
        return SummaryWriter(str(folder))


def _row(line: str, where: str) -> dict[str, object]:
    """The object in a line. Raises DataError if there is none."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON ({error.msg} at column {error.colno}); mend or delete the line") from None
    if not isinstance(row, dict):
        raise DataError(f"{where} holds {type(row).__name__} where an object belongs; mend or delete the line")
    return row
