"""Which folders are runs, by what id they are asked for, and which of their files may be read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from flowopd.errors import DataError

MARKS = ("manifest.json", "metrics.jsonl", "results.json")
"""A folder with one of these is a run."""


class Folders:
    """The runs at some places; a place is a run itself, or holds runs, which are looked for again every time.

    Raises DataError for a place that does not exist.
    """

    def __init__(self, places: Sequence[Path]) -> None:
        missing = [place for place in places if not place.is_dir()]
        if missing:
            raise DataError(f"{missing[0]} is no folder; give the folder of a run, or one that holds runs")
        self.places = [place.resolve() for place in places]

    def runs(self) -> dict[str, Path]:
        """{id: folder}, in order of the places, then by name."""
        found = [run for place in self.places for run in _runs_at(place)]
        return {run_id(run): run for run in dict.fromkeys(found)}

    def run(self, wanted: str) -> Path:
        """The folder of a run. Raises DataError for an id that there is not."""
        run = self.runs().get(wanted)
        if run is None:
            raise DataError(f"there is no run {wanted!r} here; look at the list of runs again")
        return run


def is_run(folder: Path) -> bool:
    """Whether a folder holds what a run writes."""
    return any((folder / mark).is_file() for mark in MARKS)


def run_id(run: Path) -> str:
    """A name for addresses: the folder's own, and a bit of a hash of its whole path."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", run.name).strip("-") or "run"
    return f"{name}-{sha256(str(run).encode()).hexdigest()[:6]}"


def inside(run: Path, *parts: str) -> Path:
    """A path in a run's folder, links followed. Raises DataError for one that leads out of it."""
    name = "/".join(parts)
    path = run.joinpath(*parts).resolve() if "\0" not in name else None
    if path is None or not path.is_relative_to(run.resolve()):
        raise DataError(f"{name!r} leads out of the run {run.name}; it is not shown")
    return path


def _runs_at(place: Path) -> list[Path]:
    if is_run(place):
        return [place]
    return [folder for folder in sorted(place.iterdir()) if folder.is_dir() and is_run(folder)]
