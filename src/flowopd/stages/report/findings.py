"""What a run's results say: who stands above whom, what was gained and forgotten, and how it was made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flowopd.results import AVERAGE, BASE, GRPO_MIX, MERGE, SFT, STUDENT, TEACHER, Estimate, Results
from flowopd.stages.report.contents import Run

SHOWN_ELSEWHERE = ("owners", "no_gap", "doubtful_gap", "load", "call")
"""Settings of the results that stand beside the gaps or in the lines of code, and not among the facts."""


@dataclass(frozen=True)
class Rival:
    """How the student's average stands to another model's: level with it where they are not told apart."""

    title: str
    estimate: Estimate
    standing: str


@dataclass(frozen=True)
class Change:
    """A difference of means to the base. `tint` is its share, 0..1, of the largest one in its metric.

    `clear` says that the two means are told apart.
    """

    difference: float
    tint: float
    clear: bool


def rivals(results: Results) -> list[Rival]:
    """What the student's average is held against: its best expert, its start and GRPO-Mix, if evaluated."""
    averages = {model: row[AVERAGE] for model, row in results.models.items() if AVERAGE in row}
    student = averages.get(STUDENT)
    if student is None:
        return []
    teachers = [model for model in averages if model.startswith(TEACHER)]
    strongest = sorted(teachers, key=lambda model: -averages[model].mean)[:1]
    titles = {model: f"its best expert, {model.removeprefix(TEACHER)}" for model in strongest}
    titles |= {MERGE: "the merge alone", SFT: "the fine-tuned start alone", GRPO_MIX: "GRPO-Mix"}
    return [
        Rival(name, averages[model], _standing(student, averages[model]))
        for model, name in titles.items()
        if model in averages
    ]


def best(results: Results) -> dict[str, float]:
    """The highest mean of each metric."""
    return {
        metric: max(row[metric].mean for row in results.models.values() if metric in row) for metric in results.metrics
    }


def changes(results: Results) -> dict[str, dict[str, Change]]:
    """Every model but the base, held against the base: {model: {metric: change}}, empty without a base."""
    base = results.models.get(BASE, {})
    others = {model: row for model, row in results.models.items() if model != BASE}
    table: dict[str, dict[str, Change]] = {model: {} for model in others if base}
    for metric, start in base.items():
        differences = {model: row[metric].mean - start.mean for model, row in others.items() if metric in row}
        largest = max(map(abs, differences.values()), default=0.0) or 1.0
        for model, difference in differences.items():
            clear = others[model][metric].is_told_from(start)
            table[model][metric] = Change(difference, abs(difference) / largest, clear)
    return table


def moved(changes_of_model: Mapping[str, Change]) -> dict[str, list[str]]:
    """The metrics of one model by what became of them: `gained`, `lost` and `level` with the base; no average."""
    sorted_out: dict[str, list[str]] = {"gained": [], "lost": [], "level": []}
    for metric, change in changes_of_model.items():
        if metric != AVERAGE:
            direction = "gained" if change.difference > 0 else "lost"
            sorted_out[direction if change.clear else "level"].append(metric)
    return sorted_out


def facts(run: Run) -> dict[str, dict[str, str]]:
    """How the run was made and evaluated: {group: {dotted name: value}}."""
    manifest = run.manifest or {}
    settings = run.results.settings if run.results else {}
    nested = {name: value for name, value in manifest.items() if isinstance(value, Mapping)}
    groups: dict[str, Mapping[str, Any]] = {
        "run": {name: value for name, value in manifest.items() if name not in nested},
        **nested,
        "evaluation": {name: value for name, value in settings.items() if name not in SHOWN_ELSEWHERE},
    }
    return {group: dict(_flat(tree)) for group, tree in groups.items() if tree}


def _standing(student: Estimate, other: Estimate) -> str:
    if not student.is_told_from(other):
        return "level with"
    return "above" if student.mean > other.mean else "below"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested mappings by dotted name."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
