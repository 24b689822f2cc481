"""`metrics.jsonl` read as it grows: what was read is kept as columns of numbers, and never read again."""

from __future__ import annotations

import json
import math
import os
import threading
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowopd.stages.report.series import Curve, elapsed

CHUNK = 2**20
"""Bytes that are read at once; a longer line is no row."""

MARK = 256
"""Bytes before the place that was read to, which must still be there: else the file was written anew."""

MOST_KEYS = 2_000
"""Keys of a stage that are kept."""


class Columns:
    """The rows of one stage: `steps`, and a column of numbers for each key, NaN where a row has none."""

    def __init__(self) -> None:
        self.steps = array("q")
        self._values: dict[str, array[float]] = {}
        self._keys: tuple[str, ...] = ()
        self._append: list[Callable[[float], object]] = []

    @property
    def keys(self) -> list[str]:
        """In order of appearance."""
        return list(self._values)

    def add(self, step: int, row: Mapping[str, Any]) -> None:
        """One more row; what is not a number is passed over. Rows with the keys of the one before are quick."""
        keys = tuple(row)
        if keys != self._keys:
            self._keys, self._append = keys, [self._column(key, value) for key, value in row.items()]
        for append, value in zip(self._append, row.values(), strict=True):
            append(value if type(value) is float else _float(value))
        self.steps.append(step)

    def values(self, key: str) -> np.ndarray:
        """Float32 (n,), a number or NaN for every row; all NaN for an unknown key."""
        column = np.array(self._values.get(key, ()), np.float32)
        return np.pad(column, (0, len(self.steps) - len(column)), constant_values=np.nan)

    def curve(self, key: str) -> Curve:
        """The rows in which the key has a finite number, maybe none."""
        steps, values = np.array(self.steps, np.int64), self.values(key)
        finite = np.isfinite(values)
        return Curve(steps[finite], values[finite])

    def last(self, key: str) -> float | None:
        """The number of the last row that has a finite one."""
        values = self.values(key)
        finite = np.flatnonzero(np.isfinite(values))
        return float(values[finite[-1]]) if len(finite) else None

    @property
    def seconds(self) -> float:
        """What the stage took so far."""
        return elapsed(self.curve("seconds").values.astype(np.float64))

    def _column(self, key: str, value: object) -> Callable[[float], object]:
        """What appends to a key's column, filled up to here; nothing for words, steps, and keys beyond MOST_KEYS."""
        if key == "step" or isinstance(value, str) or (key not in self._values and len(self._values) >= MOST_KEYS):
            return _nothing
        column = self._values.setdefault(key, array("f"))
        column.extend([math.nan] * (len(self.steps) - len(column)))
        return column.append


class Tail:
    """What `metrics.jsonl` of a run holds, as far as it was read; threads hold `lock` while they look at it."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, threading.RLock()
        self._generation, self._offset = 0, 0
        self._inode: int | None = None
        self._mark, self._cut = b"", False
        self._begin(None)
        self._behind = path.stat().st_size if path.exists() else 0

    @property
    def version(self) -> tuple[int, int]:
        """Differs whenever what was read differs."""
        return self._generation, self._offset

    @property
    def behind(self) -> int:
        """Bytes of whole lines that may still be to be read."""
        return self._behind

    def advance(self) -> None:
        """Read at most CHUNK bytes more. A file that was cut, or written anew, is read from its start."""
        with self.lock:
            try:
                with self.path.open("rb") as file:
                    self._read(file.fileno())
            except FileNotFoundError:
                self._begin(None)

    def _read(self, file: int) -> None:
        state = os.fstat(file)
        start = self._offset - len(self._mark)
        same = state.st_ino == self._inode and os.pread(file, len(self._mark), start) == self._mark
        if not same:
            self._begin(state.st_ino)
        block = os.pread(file, CHUNK, self._offset)
        whole = block[: block.rfind(b"\n") + 1]
        if not whole and len(block) == CHUNK:
            self._skip(block)
        elif whole:
            self._take(whole)
        self._behind = max(0, state.st_size - self._offset) if whole or len(block) == CHUNK else 0

    def _take(self, whole: bytes) -> None:
        lines = whole.split(b"\n")[:-1]
        if self._cut:
            lines, self._cut = lines[1:], False
        for line in lines:
            self._row(line)
        self._pass(whole)

    def _skip(self, block: bytes) -> None:
        """A line that is too long is one fault, however often it is met."""
        self.faults += not self._cut
        self._cut = True
        self._pass(block)

    def _pass(self, block: bytes) -> None:
        self._offset += len(block)
        self._mark = (self._mark + block)[-MARK:]

    def _row(self, line: bytes) -> None:
        row = parsed(line)
        if row is not None:
            self.stages.setdefault(row["stage"], Columns()).add(row["step"], row)
        elif line.strip():
            self.faults += 1

    def _begin(self, inode: int | None) -> None:
        self._generation += self._inode != inode or self._offset > 0
        self._inode, self._offset, self._behind = inode, 0, 0
        self._mark, self._cut = b"", False
        self.stages: dict[str, Columns] = {}
        self.faults = 0


def parsed(line: bytes) -> dict[str, Any] | None:
    """A row of metrics, with a `stage` and a `step`; None for anything else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("stage"), str) or type(row.get("step")) is not int:
        return None
    return row if abs(row["step"]) < 2**63 else None


def last_rows(path: Path, size: int = CHUNK // 16) -> dict[str, dict[str, Any]]:
    """The last whole row of every stage that has one in the last `size` bytes of a file; the newest comes last."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - size))
            block = file.read(size)
    except FileNotFoundError:
        return {}
    lines = block[: block.rfind(b"\n") + 1].split(b"\n")[:-1]
    rows = [row for line in (lines if end <= size else lines[1:]) if (row := parsed(line))]
    last: dict[str, dict[str, Any]] = {}
    for row in rows:
        last.pop(row["stage"], None)
        last[row["stage"]] = row
    return last


def _float(value: object) -> float:
    """A number as it is kept; NaN for what is none, or too large."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _nothing(value: float) -> None:
    """Keeps nothing."""
