"""The runs side by side: where each stands, how close its student is, what it scores, what it took."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowopd.owner import is_held
from flowopd.results import BASE, STUDENT, TEACHER, Results
from flowopd.studio.archive import Archive
from flowopd.studio.numbers import exact, short

FRESH = 300
"""Seconds since its last line within which an unfinished run counts as running."""

EVALUATION = "eval"


@dataclass(frozen=True)
class RunRow:
    """One run. `updates` are those of its last trained stage, `planned` how many there will be.

    `scores` are of `model`, the furthest that was evaluated: {metric: [mean, low, high]}. `seconds` is None until all
    of its metrics were read. `faults` are files that could not be read, and how many lines.
    """

    id: str
    name: str
    folder: str
    state: str
    stage: str | None
    updates: int | None
    planned: int | None
    gap: float | None
    model: str | None
    scores: dict[str, list[float]]
    gap_closed: dict[str, float | None]
    seconds: float | None
    changed: float
    faults: list[str]


def run_row(archive: Archive, name: str, run: Path) -> RunRow:
    """The row of a run, from what was read of it so far."""
    results, manifest, tail = archive.results(run), archive.manifest(run), archive.tail(run)
    last = archive.last_rows(run)
    trained = {stage: row for stage, row in last.items() if stage != EVALUATION}
    stage = next(reversed(trained), None) or next(reversed(last), None)
    row = last.get(stage, {}) if stage else {}
    recipe = (manifest.content or {}).get("recipe") or {}
    changed = _changed(run)
    model = _furthest(results.content)
    with tail.lock:
        seconds = sum(columns.seconds for columns in tail.stages.values()) if not tail.behind and tail.stages else None
        lines = [f"metrics.jsonl has {tail.faults} lines that are no rows"] if tail.faults else []
    return RunRow(
        id=name,
        name=run.name,
        folder=str(run),
        state=_state(run, recipe, changed),
        stage=next(reversed(last), None),
        updates=row["step"] + 1 if trained else None,
        planned=_planned(recipe, stage or ""),
        gap=_number(row.get("gap")),
        model=model,
        scores=_scores(results.content, model),
        gap_closed=dict(results.content.gap_closed) if results.content else {},
        seconds=None if seconds is None else short(seconds),
        changed=changed,
        faults=[fault for fault in (results.fault, manifest.fault) if fault] + lines,
    )


def _furthest(results: Results | None) -> str | None:
    """The student if it was evaluated, else the last model that is neither the base nor a teacher."""
    models = list(results.models) if results else []
    if STUDENT in models or not models:
        return STUDENT if models else None
    own = [model for model in models if model != BASE and not model.startswith(TEACHER)]
    return (own or models)[-1]


def _scores(results: Results | None, model: str | None) -> dict[str, list[float]]:
    row = results.models.get(model or "", {}) if results else {}
    return {metric: [exact(value) for value in (one.mean, *one.ci95)] for metric, one in row.items()}


def _changed(run: Path) -> float:
    """When the run last wrote (seconds since 1970)."""
    files = (run / name for name in ("metrics.jsonl", "results.json", "manifest.json"))
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


def _state(run: Path, recipe: Mapping[str, Any], changed: float) -> str:
    """`finished` with all that its recipe ends with; else `stopped` when no process writes it, or after FRESH seconds
    of silence where this machine cannot tell; else `running`, or `starting` before its first line of metrics."""
    ends = [name for part, name in (("distill", "student"), ("evaluate", "results.json")) if recipe.get(part)]
    if ends and all((run / name).exists() for name in ends):
        return "finished"
    held, fresh = is_held(run), time.time() - changed < FRESH
    if not fresh if held is None else not held:
        return "stopped"
    return "running" if (run / "metrics.jsonl").exists() else "starting"


def _planned(recipe: Mapping[str, Any], stage: str) -> int | None:
    """How many updates the recipe has for a stage."""
    kind, _, name = stage.partition(":")
    parts = {
        "distill": ("distill",),
        "sft": ("coldstart",),
        "grpo_mix": ("grpo_mix",),
        TEACHER.rstrip(":"): ("teachers", name, "train"),
    }
    node: Any = recipe
    for key in (*parts.get(kind, ("",)), "optim", "updates"):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node if isinstance(node, int) else None


def _number(value: Any) -> float | None:
    return short(value) if isinstance(value, int | float) and abs(value) < float("inf") else None
