"""What a run writes down while it goes: `metrics.jsonl`, the boards that its recipe names, and what it shows."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

from flowopd.durable import append_text, flush_file, make_folder, replace_text
from flowopd.errors import DataError
from flowopd.lock import held
from flowopd.processes import everywhere, is_main
from flowopd.tracking.boards import Board, Place, open_boards
from flowopd.tracking.screen import console, open_screen, shows

OnUpdate = Callable[[int, Mapping[str, float]], object]
"""(update, its metrics) -> True to end the stage after it, anything else to go on; each process calls its own."""

BY_STEP = re.compile(r"(.*)/(\d+)$")
"""The name of a metric of one step of a rollout."""


def say(line: str) -> None:
    """One line on standard error, unless nothing is to be shown; of several processes the main one speaks."""
    if shows():
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def warn(line: str) -> None:
    """One line on standard error, above the bar; of several processes the main one speaks."""
    if is_main():
        console.print(f"warning: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)


class Tracker:
    """One stage's rows in `metrics.jsonl`, one JSON object an update, on its boards, and on the terminal.

    `samples` is how many an update draws, for the rate that is shown; `track` names the boards, None is TensorBoard if
    it is installed; `settings` is what boards show of the run. Of several processes the main one writes and shows.

    Raises ConfigError for a board whose library is not installed, and on entering a run that another process writes.
    """

    def __init__(
        self,
        run: Path,
        stage: str,
        total: int,
        on_update: OnUpdate | None = None,
        *,
        samples: int = 0,
        track: Sequence[str] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.stage, self.total, self._writes, self._on_update = stage, total, is_main(), on_update
        make_folder(run)
        self._file, self._rows, self._hold = run / "metrics.jsonl", 0, held(run)
        self._boards: list[Board] = open_boards(track, Place(run, stage, settings or {})) if self._writes else []
        self._start = time.monotonic()
        self._screen = open_screen(stage, total, samples)

    def __enter__(self) -> Tracker:
        self._hold.__enter__()
        self._screen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._screen.stop()
        for board in self._boards:
            board.close()
        self._hold.__exit__(kind, value, trace)

    def rewind(self, step: int, rows: int = 0) -> None:
        """Go on after `step` updates: rows of this stage from later steps, which a resume repeats, are dropped.

        So is a last line that does not end, which a full disk may leave. Says so on standard error if fewer than `rows`
        of this stage are left. Raises DataError for a line that is not JSON, CheckpointError if it cannot be written.
        """
        self._screen.resume(step)
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
        """Write the row of `step`; `note` is shown in place of a summary. A value that is not finite is left out."""
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
        for board in self._boards:
            board.scalars(step, metrics)
            for name, values in by_step(metrics).items():
                board.by_step(step, f"{name}/by_step", values)
        self._screen.show(step + 1, metrics, note)

    def ends(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether `on_update`, told of an update, ends the stage; in any process, so in all of them."""
        return self._on_update is not None and any(everywhere(self._on_update(step, metrics) is True))


def show_picture(
    run: Path, name: str, picture: Image.Image, track: Sequence[str] | None, settings: Mapping[str, Any]
) -> None:
    """A picture of a run on its boards, as a stage of its own, `samples`."""
    for board in open_boards(track, Place(run, "samples", settings)):
        board.picture(0, name, picture)
        board.close()


def by_step(metrics: Mapping[str, float]) -> dict[str, list[float]]:
    """The metrics of single steps, `NAME/0`, `NAME/1` ..., by name in the order of the steps."""
    found = [(match[1], int(match[2]), value) for name, value in metrics.items() if (match := BY_STEP.match(name))]
    names = dict.fromkeys(name for name, _, _ in found)
    return {name: [value for other, _, value in sorted(found) if other == name] for name in names}


def _row(line: str, where: str) -> dict[str, object]:
    """The object in a line. Raises DataError if there is none."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON ({error.msg} at column {error.colno}); mend or delete the line") from None
    if not isinstance(row, dict):
        raise DataError(f"{where} holds {type(row).__name__} where an object belongs; mend or delete the line")
    return row
