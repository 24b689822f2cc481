"""What a run writes down while it goes: `metrics.jsonl`, the boards that its recipe names, and what it shows."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

from flowopd.processes import any_of, is_main
from flowopd.tracking.boards import Board, Place, open_boards
from flowopd.tracking.screen import open_screen

OnUpdate = Callable[[int, Mapping[str, float]], object]
"""(update, its metrics) -> True to end the stage after it, anything else to go on; each process calls its own."""

BY_STEP = re.compile(r"(.*)/(\d+)$")
"""The name of a metric of one step of a rollout."""


class Tracker:
    """One stage's rows in `metrics.jsonl`, one JSON object an update, on its boards, and on the terminal.

    `samples` is how many an update draws, for the rate that is shown; `track` names the boards, None is TensorBoard if
    it is installed; `settings` is what boards show of the run. Of several processes the main one writes and shows.

    Raises ConfigError for a board whose library is not installed.
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
        run.mkdir(parents=True, exist_ok=True)
        self._file = run / "metrics.jsonl"
        self._boards: list[Board] = open_boards(track, Place(run, stage, settings or {})) if self._writes else []
        self._start = time.monotonic()
        self._screen = open_screen(stage, total, samples)

    def __enter__(self) -> Tracker:
        self._screen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._screen.stop()
        for board in self._boards:
            board.close()

    def rewind(self, step: int) -> None:
        """Go on after `step` updates: rows of this stage from later steps, which a resume repeats, are dropped."""
        self._screen.resume(step)
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
        """Write the row of `step`; `note` is shown in place of a summary of the metrics."""
        row = {
            "stage": self.stage,
            "step": step,
            "seconds": round(time.monotonic() - self._start, 3),
            **metrics,
        }
        if self._writes:
            with self._file.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
        for board in self._boards:
            board.scalars(step, metrics)
            for name, values in by_step(metrics).items():
                board.by_step(step, f"{name}/by_step", values)
        self._screen.show(step + 1, metrics, note)

    def ends(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether `on_update`, told of an update, ends the stage; in any process, so in all of them."""
        return self._on_update is not None and any_of(self._on_update(step, metrics) is True)


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
