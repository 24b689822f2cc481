"""What one run, or several, look like in detail: curves, gaps along the path, scores, interference."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowopd.results import Results
from flowopd.stages.report.contents import read_interference
from flowopd.stages.report.findings import changes
from flowopd.stages.report.series import Curve, thinned
from flowopd.studio.numbers import exact, short, shorts
from flowopd.studio.tail import Columns, Tail

MOST_POINTS = 400
"""Points of one curve: a screen has hardly more columns for it."""

ALL_POINTS = 5_000
"""Points of all the curves of one answer together."""

FEWEST_POINTS = 40

BINS = 60
"""Columns of a heat map over the updates."""

GAP = re.compile(r"gap/(.+)/(\d+)")


@dataclass(frozen=True)
class Thin:
    """A curve with few points: mean step and mean value of runs of neighbours, and their range where it differs."""

    steps: list[float | None]
    mean: list[float | None]
    low: list[float | None] | None
    high: list[float | None] | None
    updates: int


@dataclass(frozen=True)
class Gaps:
    """`gap/LABEL/STEP` over the updates: `values[label][step][bin]`, None where a step was not visited in a bin."""

    updates: list[float | None]
    values: dict[str, list[list[float | None]]]
    behind: int


def keys(tails: Mapping[str, Tail]) -> dict[str, list[str]]:
    """{stage: keys} of all that was read of some runs, without the clock.

    Plain ones come first, in order of appearance, then those with a `/`, by name and number.
    """
    found: dict[str, dict[str, None]] = {}
    for tail in tails.values():
        with tail.lock:
            for stage, columns in tail.stages.items():
                found.setdefault(stage, {}).update(dict.fromkeys(columns.keys))
    return {stage: sorted((key for key in names if key != "seconds"), key=_place) for stage, names in found.items()}


def curves(tails: Mapping[str, Tail], stage: str, key: str) -> dict[str, Thin]:
    """The curve of each run that has one, thin enough that all of them together stay small."""
    points = max(FEWEST_POINTS, min(MOST_POINTS, ALL_POINTS // max(1, len(tails))))
    drawn = {}
    for name, tail in tails.items():
        with tail.lock:
            curve = tail.stages.get(stage, Columns()).curve(key)
        if len(curve.steps):
            drawn[name] = _thin(curve, points)
    return drawn


def gaps(tail: Tail, stage: str = "distill", bins: int = BINS) -> Gaps:
    """The gap of each label along the path, the updates gathered in bins."""
    with tail.lock:
        columns = tail.stages.get(stage, Columns())
        places = {match.groups(): key for key in columns.keys if (match := GAP.fullmatch(key))}
        values = {place: columns.values(key) for place, key in places.items()}
        updates = np.array(columns.steps, np.float64)
    groups = np.array_split(np.arange(len(updates)), min(bins, len(updates)) or 1)
    labels = dict.fromkeys(label for label, _ in places)
    steps = 1 + max((int(step) for _, step in places), default=-1)
    table = {label: [_binned(values.get((label, str(step))), groups) for step in range(steps)] for label in labels}
    return Gaps(shorts(updates[group].mean() for group in groups if len(group)), table, tail.behind)


def scores(results: Results) -> dict[str, Any]:
    """Every model on every metric, and each one's difference to the base."""
    return {
        "metrics": results.metrics,
        "models": {
            model: {metric: [exact(value) for value in (one.mean, *one.ci95)] for metric, one in row.items()}
            for model, row in results.models.items()
        },
        "changes": {
            model: {metric: [exact(one.difference), short(one.tint), one.clear] for metric, one in row.items()}
            for model, row in changes(results).items()
        },
        "gap_closed": {metric: None if one is None else exact(one) for metric, one in results.gap_closed.items()},
        "owners": results.settings.get("owners", {}),
        "reasons": results.settings.get("no_gap", {}),
    }


def interference(run: Path) -> dict[str, Any] | None:
    """How the experts lie to each other, over all modules and in each; None without a merge.

    Raises DataError if the file is damaged.
    """
    facts = read_interference(run)
    if facts is None:
        return None
    names = [str(name) for name in facts["names"]]
    modules = facts.get("modules") or {}
    return {
        "names": names,
        "norms": _norms(facts, names),
        "cosines": [shorts(row) for row in facts["cosines"]],
        "modules": [
            {"name": module, "norms": _norms(one, names), "cosines": _pairs(one["cosines"])}
            for module, one in modules.items()
        ],
    }


def _place(key: str) -> tuple[int | str, ...]:
    """What keys are sorted by: nothing for a plain one, else its words and numbers in turn."""
    parts = re.split(r"(\d+)", key) if "/" in key else []
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts))


def _thin(curve: Curve, points: int) -> Thin:
    steps, low, mean, high = thinned(curve, points)
    spread = bool((low != high).any())
    return Thin(
        steps=shorts(steps) if spread else [int(step) for step in steps],
        mean=shorts(mean),
        low=shorts(low) if spread else None,
        high=shorts(high) if spread else None,
        updates=int(curve.steps[-1]) + 1,
    )


def _binned(column: np.ndarray | None, groups: list[np.ndarray]) -> list[float | None]:
    """The mean of the finite values of each group."""
    if column is None:
        return [None] * len(groups)
    finite = [column[group][np.isfinite(column[group])] for group in groups]
    return shorts(float(part.mean()) if len(part) else np.nan for part in finite)


def _norms(facts: Mapping[str, Any], names: list[str]) -> list[float]:
    return [short(facts["norms"][name]) for name in names]


def _pairs(cosines: list[list[float]]) -> list[float | None]:
    """The cosines above the diagonal, row by row."""
    return shorts(value for i, row in enumerate(cosines) for value in row[i + 1 :])
