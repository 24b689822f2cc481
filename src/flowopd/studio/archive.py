"""What the studio knows of its runs: their files, read once for each change, and their tails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

from flowopd.errors import DataError
from flowopd.results import Results
from flowopd.stages.report.contents import read_object
from flowopd.studio.folders import Folders
from flowopd.studio.tail import Tail, last_rows

Content = TypeVar("Content")

PATIENCE = 0.15
"""Seconds that one question spends on reading on; the rest is read by the questions that follow."""


@dataclass(frozen=True)
class Read(Generic[Content]):
    """A file's content, None where it is missing or damaged; `fault` says what is wrong with it."""

    content: Content | None = None
    fault: str | None = None


@dataclass
class Archive:
    """Files and tails of all runs in some folders."""

    folders: Folders
    _files: dict[tuple[Path, str], tuple[object, Read[Any]]] = field(default_factory=dict)
    _tails: dict[Path, Tail] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def results(self, run: Path) -> Read[Results]:
        """The run's `results.json`."""
        return self._read(run / "results.json", Results.load)

    def manifest(self, run: Path) -> Read[dict[str, Any]]:
        """The run's `manifest.json`."""
        return self._read(run / "manifest.json", read_object)

    def last_rows(self, run: Path) -> dict[str, dict[str, Any]]:
        """The last row of every stage near the end of `metrics.jsonl`."""
        return self._read(run / "metrics.jsonl", last_rows).content or {}

    def tail(self, run: Path) -> Tail:
        """The run's metrics, as far as they were read."""
        with self._lock:
            return self._tails.setdefault(run, Tail(run / "metrics.jsonl"))

    def advance(self, runs: Iterable[Path], patience: float = PATIENCE) -> int:
        """Read on in the metrics of these runs in turn, for about so many seconds; how many bytes are left."""
        deadline = time.monotonic() + patience
        waiting = [self.tail(run) for run in runs]
        todo = list(waiting)
        while todo:
            for tail in todo:
                tail.advance()
                if time.monotonic() > deadline:
                    return sum(tail.behind for tail in waiting)
            todo = [tail for tail in todo if tail.behind]
        return 0

    def _read(self, path: Path, load: Callable[[Path], Content]) -> Read[Content]:
        """What `load` makes of a file, again only when the file has changed."""
        try:
            state = path.stat()
        except OSError:
            return Read()
        stamp, key = (state.st_mtime_ns, state.st_size, state.st_ino), (path, load.__qualname__)
        known = self._files.get(key)
        if known is None or known[0] != stamp:
            known = self._files[key] = (stamp, _loaded(path, load))
        return known[1]


def _loaded(path: Path, load: Callable[[Path], Content]) -> Read[Content]:
    try:
        return Read(load(path))
    except (DataError, OSError) as error:
        return Read(fault=str(error))
