"""Quality against compute: every checkpoint of a run judged, beside what its training had taken until then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from flowopd.configs import EvaluateConfig, SftConfig
from flowopd.lora_file import sha256_of
from flowopd.processes import only_main, wait
from flowopd.recipe import Recipe
from flowopd.records import File, Record
from flowopd.results import AVERAGE, BASE, GRPO_MIX, MERGE, SFT, TEACHER, Estimate, shares_closed
from flowopd.session import Session
from flowopd.stages.checkpoints import checkpoint_hash, known_checkpoints, parted, stage_folder
from flowopd.stages.judging import Judging, hashed, settings_of
from flowopd.stages.report.contents import read_rows
from flowopd.stages.report.series import elapsed
from flowopd.stages.sample import FOLDERS
from flowopd.stages.workload import Workload, workloads

CURVE = "curve.json"
DISTILL = "distill"


Row = Mapping[str, Estimate]
"""Estimates by metric."""


class Place(Record):
    """A stage after so many updates, whose weights those are, and what it had taken by then.

    `passes` and `seconds` count the stages that it builds on too: those of the teachers and of the cold start that the
    run trained itself. A pass is one row through the transformer, a backward counts as two. `seconds` is None where
    metrics.jsonl does not tell. `update` 0 is what the stage started from.
    """

    stage: str
    update: int
    model: str
    sha256: str
    passes: float
    seconds: float | None

    @property
    def weights(self) -> tuple[str, str]:
        """Whose weights these are: the model's name and its hash."""
        return self.model, self.sha256

    def judged(self, metrics: Row, held: Yardstick) -> Point:
        """The place with how good it was found to be."""
        return Point(**dict(self), metrics=dict(metrics), gap_closed=held.shares(metrics))


class Point(Place):
    """A place, and how good it was."""

    metrics: dict[str, Estimate]
    gap_closed: dict[str, float | None]


class Yardstick(Record):
    """The means of the base, and those of the experts by the metrics that they own: gaps are from one to the other."""

    base: dict[str, float] = Field({})
    experts: dict[str, float] = Field({})

    def shares(self, row: Row) -> dict[str, float | None]:
        """The shares of the gaps that a row closes, and of them all as `average`; nothing without base or experts."""
        return shares_closed({name: estimate.mean for name, estimate in row.items()}, self.base, self.experts)


class Curve(File):
    """`curve.json`: points by stage and update; `settings` is what their metrics depend on, with a hash."""

    made_by: ClassVar[str] = "flowopd eval --checkpoints"

    version: Literal[1] = Field(default=1, validation_alias="schema", serialization_alias="schema")
    settings: dict[str, Any]
    yardstick: Yardstick = Yardstick()
    points: tuple[Point, ...] = ()


def write_curve(judging: Judging, rows: Mapping[str, Row]) -> Curve:
    """Judge every checkpoint that a run has kept, and what its stages started from, into OUT/curve.json.

    `rows` are models judged already, by name, on these metrics and maybe others. A point that is in the file under the
    same settings is not drawn again, and stays when its checkpoint is gone; the file is written after each new one.
    Raises CheckpointError for a damaged checkpoint, DataError for a damaged file, NumericsError for a score that is
    not finite.
    """
    session, file = judging.session, judging.session.out / CURVE
    old, places = _old(file, _settings(session, judging.config)), _places(session, judging.config)
    wait()
    held = yardstick(judging.config, rows)
    held = held if held.experts else old.yardstick
    names = (*judging.config.metrics, AVERAGE)
    found: dict[tuple[str, str], Row] = {point.weights: point.metrics for point in old.points}
    found |= {p.weights: {name: rows[p.model][name] for name in names} for p in places if p.model in rows}

    def keep() -> Curve:
        judged = {(point.stage, point.update): point for point in old.points}
        judged |= {(p.stage, p.update): p.judged(found[p.weights], held) for p in places if p.weights in found}
        curve = Curve(settings=old.settings, yardstick=held, points=tuple(judged[key] for key in sorted(judged)))
        only_main(lambda: curve.save(file))
        return curve

    todo = list(dict.fromkeys(place.weights for place in places if place.weights not in found))
    if todo:
        with session.tracker("curve", len(todo)) as tracker:
            tracker.rewind(0)
            for i, (model, weights) in enumerate(todo):
                found[model, weights] = judging.estimates(judging.scores(model))
                keep()
                tracker.log(i, {name: row.mean for name, row in found[model, weights].items()}, model)
    return keep()


def yardstick(config: EvaluateConfig, rows: Mapping[str, Row]) -> Yardstick:
    """That of the base and the experts among these rows; empty without the base, or any expert."""
    owned = {name: f"{TEACHER}{metric.owner}" for name, metric in config.metrics.items() if metric.owner}
    experts = {name: rows[teacher][name].mean for name, teacher in owned.items() if teacher in rows}
    if BASE not in rows or not experts:
        return Yardstick()
    return Yardstick(base={name: estimate.mean for name, estimate in rows[BASE].items()}, experts=experts)


def _old(file: Path, settings: dict[str, Any]) -> Curve:
    """What was found under these settings."""
    curve = Curve.load(file) if file.exists() else Curve(settings={})
    return curve if curve.settings.get("hash") == settings["hash"] else Curve(settings=settings)


def _settings(session: Session, config: EvaluateConfig) -> dict[str, Any]:
    """What the points depend on: how models are judged, and how they were trained."""
    trained = session.recipe.identity("teachers", "routes", "route_by", "coldstart", "grpo_mix", "distill")
    return hashed({**settings_of(session, config), "training": trained})


def _places(session: Session, config: EvaluateConfig) -> list[Place]:
    """The start and the checkpoints of every stage of which some were kept, as many as are asked for."""
    recipe, run = session.recipe, session.out
    kept: dict[str, list[str]] = {}
    for model in known_checkpoints(recipe, run):
        kept.setdefault(parted(model)[0], []).append(model)
    kept = {stage: thinned(models, config.checkpoints) for stage, models in kept.items()}
    works = {work.stage: work for work in workloads(session)}
    logged = [row for row in _logged(run) if row["stage"] in works]
    spent = {stage: _Spent(work, [row for row in logged if row["stage"] == stage]) for stage, work in works.items()}
    places: list[Place] = []
    for stage in works:
        models = kept.get(stage_folder(stage), [])
        before = [spent[other] for other in foundations(recipe, stage)]
        for model, weights in {**_start(session, stage), **_hashes(run, models)}.items() if models else ():
            update = parted(model)[1] if model in models else 0
            passes = sum(other.passes() for other in before) + spent[stage].passes(update)
            clocks = [*(other.seconds() for other in before), spent[stage].seconds(update)]
            seconds = None if None in clocks else sum(clock for clock in clocks if clock is not None)
            places.append(
                Place(stage=stage, update=update, model=model, sha256=weights, passes=passes, seconds=seconds)
            )
    return places


def thinned(models: Sequence[str], most: bool | int) -> list[str]:
    """At most so many of them, evenly spread, with the last; all of them if `most` is True."""
    count = len(models) if most is True else min(most, len(models))
    return [models[len(models) * (i + 1) // count - 1] for i in range(count)]


def _logged(run: Path) -> list[Mapping[str, Any]]:
    file = run / "metrics.jsonl"
    return list(read_rows(file)) if file.exists() else []


@dataclass(frozen=True, eq=False)
class _Spent:
    """What a stage took, from its plan and its rows of metrics.jsonl."""

    work: Workload
    rows: Sequence[Mapping[str, Any]]

    def passes(self, update: int | None = None) -> float:
        """Of so many updates, or of all that were made."""
        made = int(self.rows[-1]["step"]) + 1 if self.rows else self.work.optim.updates
        return self.work.passes_until(made if update is None else update)

    def seconds(self, update: int | None = None) -> float | None:
        """Of so many updates, or of all that were made; None if not all of them are logged."""
        clock = [row["seconds"] for row in self.rows if update is None or row["step"] < update]
        if len(clock) < (1 if update is None else update):
            return None
        return elapsed(np.array(clock))


def foundations(recipe: Recipe, stage: str) -> list[str]:
    """The stages of the run that a stage builds on, by the names that they are logged under."""
    teachers = [f"{TEACHER}{name}" for name, teacher in recipe.teachers.items() if teacher.train is not None]
    cold = [*teachers, SFT] if isinstance(recipe.coldstart, SftConfig) else teachers
    mixed = cold if recipe.grpo_mix is not None and recipe.grpo_mix.start == "coldstart" else []
    return {SFT: teachers, GRPO_MIX: mixed, DISTILL: cold}.get(stage, [])


def start_of(recipe: Recipe, stage: str) -> str:
    """The model that a stage starts from."""
    cold = recipe.coldstart
    if cold is None or not (stage == DISTILL or (stage == GRPO_MIX and recipe.grpo_mix.start == "coldstart")):
        return BASE
    return SFT if isinstance(cold, SftConfig) else MERGE


def _start(session: Session, stage: str) -> dict[str, str]:
    """The model that a stage starts from with the hash of its weights; nothing if it is gone."""
    model = start_of(session.recipe, stage)
    if model == BASE:
        return {BASE: session.model.source.fingerprint()}
    folder = session.out / FOLDERS[model]
    return {model: sha256_of(folder)} if folder.exists() else {}


def _hashes(run: Path, models: Sequence[str]) -> dict[str, str]:
    return {model: checkpoint_hash(run, model) for model in models}
