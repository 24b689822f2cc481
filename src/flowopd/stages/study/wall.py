"""A study's wall: the pictures that models of several rows drew for the same prompts, side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from flowopd.names import tile
from flowopd.stages.study.records import Wall
from flowopd.stages.summary import INDEX, spread_over
from flowopd.suite import Run, parted

SAMPLES = Path("samples")
"""The folder of a run's pictures."""


def tiles_of(run: Run, models: Sequence[str]) -> list[Path]:
    """The files of a wall's pictures by these models of a run, relative to its folder."""
    names = [INDEX, *(tile(i, model) for model in models for i in spread_over(len(_prompts(run))))] if models else []
    return [SAMPLES / name for name in names]


def gathered(shown: Sequence[str], runs: Sequence[Run], folder: Path) -> Wall | None:
    """The wall of these models, as ROW/MODEL, from the first run of each row that has its pictures for the prompts of
    the first model; None if there is none."""
    prompts: list[str] = []
    files: dict[str, list[str]] = {}
    for name in shown:
        row, model = parted(name)
        for run in (run for run in runs if run.row == row):
            mine, tiles = _prompts(run), [run.folder / file for file in tiles_of(run, [model])[1:]]
            if name in files or not tiles or mine != (prompts or mine) or not all(file.exists() for file in tiles):
                continue
            prompts, files[name] = mine, [file.relative_to(folder).as_posix() for file in tiles]
    return Wall(prompts=[prompts[i] for i in spread_over(len(prompts))], files=files) if files else None


def _prompts(run: Run) -> list[str]:
    """The prompts of a run's pictures; none if it has no pictures."""
    file = run.folder / SAMPLES / INDEX
    return list(json.loads(file.read_text(encoding="utf-8"))["prompts"]) if file.exists() else []
