"""What the rows of `metrics.jsonl` say over time: curves, gaps along the path, and what each stage took."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowopd.results import TEACHER
from flowopd.stages.report.contents import Row


@dataclass(frozen=True, eq=False)
class Curve:
    """One quantity over the updates of a stage: `steps` (n,) rising, `values` (n,) finite, n >= 1."""

    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Cost:
    """What a stage took: its steps (updates, or models that were judged), and seconds of a clock on the wall."""

    steps: int
    seconds: float


def reward_curves(rows: Iterable[Row]) -> dict[str, Curve]:
    """The reward of each expert while it was trained."""
    return _curves(
        (row["stage"].removeprefix(TEACHER), row["step"], row["reward"])
        for row in rows
        if row["stage"].startswith(TEACHER) and "reward" in row
    )


def gap_curves(rows: Iterable[Row]) -> dict[str, Curve]:
    """The gap to each teacher while the student was distilled, from `gap/<teacher>`."""
    return _curves((name[0], row["step"], value) for row in rows for name, value in _gaps(row) if len(name) == 1)


def gap_tables(rows: Sequence[Row], teachers: Sequence[str]) -> dict[str, np.ndarray]:
    """Mean `gap/<teacher>/<i>` (steps of the path, teachers) over the first and the last tenth of updates.

    NaN where a step was never visited; empty if no row has any.
    """
    visits = [
        {(int(name[1]), teachers.index(name[0])): value for name, value in _gaps(row) if len(name) == 2} for row in rows
    ]
    visits = [visit for visit in visits if visit]
    if not visits:
        return {}
    shape = (1 + max(step for visit in visits for step, _ in visit), len(teachers))
    tenth = math.ceil(len(visits) / 10)
    spans = {f"first updates ({tenth})": visits[:tenth], f"last updates ({tenth})": visits[-tenth:]}
    return {span: _mean(chosen, shape) for span, chosen in spans.items()}


def thinned(curve: Curve, points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean step, and least, mean and largest value, of each of at most `points` runs of neighbours."""
    runs = min(points, len(curve.steps))
    if not runs:
        return (np.empty(0),) * 4
    edges = np.arange(runs) * len(curve.steps) // runs
    counts = np.diff(edges, append=len(curve.steps))
    steps, values = curve.steps.astype(np.float64), curve.values.astype(np.float64)
    low, high = np.minimum.reduceat(values, edges), np.maximum.reduceat(values, edges)
    return np.add.reduceat(steps, edges) / counts, low, np.add.reduceat(values, edges) / counts, high


def costs(rows: Iterable[Row]) -> dict[str, Cost]:
    """What each stage took, in order of appearance; a stage whose rows do not tell their seconds counts as 0 s."""
    clocks: dict[str, list[float]] = {}
    for row in rows:
        seconds = row.get("seconds")
        clocks.setdefault(row["stage"], []).append(float(seconds or 0) if _finite(seconds) else 0.0)
    return {stage: Cost(len(clock), elapsed(np.array(clock))) for stage, clock in clocks.items()}


def elapsed(clock: np.ndarray) -> float:
    """Seconds of a stage whose rows carry `clock` (n,), which begins again at 0 with every resumed run."""
    if not len(clock):
        return 0.0
    resumed = np.flatnonzero(np.diff(clock) < 0)
    return float(clock[resumed].sum() + clock[-1])


def _gaps(row: Row) -> Iterator[tuple[list[str], float]]:
    """([teacher], gap) and ([teacher, step], gap) of one row, as far as they are finite."""
    for key, value in row.items():
        if key.startswith("gap/") and _finite(value):
            yield key.split("/")[1:], value


def _mean(visits: Iterable[Mapping[tuple[int, int], float]], shape: tuple[int, int]) -> np.ndarray:
    total, count = np.zeros(shape), np.zeros(shape)
    for visit in visits:
        for place, value in visit.items():
            total[place] += value
            count[place] += 1
    mean: np.ndarray = np.divide(total, count, out=np.full(shape, np.nan), where=count > 0)
    return mean


def _curves(points: Iterable[tuple[str, int, Any]]) -> dict[str, Curve]:
    collected: dict[str, list[tuple[int, float]]] = {}
    for name, step, value in points:
        if _finite(value):
            collected.setdefault(name, []).append((step, value))
    return {name: Curve(*np.array(pairs, np.float64).T) for name, pairs in collected.items()}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
