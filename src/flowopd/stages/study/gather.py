"""From the folders of a suite's runs to a study: means over seeds, intervals over prompts, claims put to the test."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowopd.manifest import read_manifest
from flowopd.provenance import makers
from flowopd.results import TEACHER
from flowopd.session import Session
from flowopd.stages.curve import Yardstick, yardstick
from flowopd.stages.interference import INTERFERENCE, Cosines, Interference
from flowopd.stages.report.contents import read_rows
from flowopd.stages.report.series import elapsed, gap_curves, gap_tables
from flowopd.stages.study.claims import verdict
from flowopd.stages.study.effort import reached, spots, whole_curve
from flowopd.stages.study.judged import Judged
from flowopd.stages.study.keep import changes, is_done
from flowopd.stages.study.records import Column, Cost, Gap, Line, Made, Spot, Study
from flowopd.stages.study.wall import gathered
from flowopd.stages.workload import workloads
from flowopd.suite import Reach, Run, Suite, experts_recipe, load_runs, load_suite, parted

POINTS = 120
"""Points of a curve that a study keeps at most."""


def gather(path: Path, out: Path) -> Study:
    """The study of the suite in `path`, whose runs lie in `out`; a run without results, or made by another recipe than
    the suite's today, is listed as missing.

    Raises ConfigError for a wrong suite, DataError for damaged files.
    """
    suite, runs = load_suite(path), load_runs(path, out)
    stale = {name_of(run): changed for run in runs if is_done(run) and (changed := changes(run))}
    done = [run for run in runs if is_done(run) and name_of(run) not in stale]
    rows = {name: mine for name in suite.rows if (mine := [run for run in done if run.row == name])}
    judged = {name: Judged(mine) for name, mine in rows.items()}
    lines = {f"{row}/{model}": mine.line(model) for row, mine in judged.items() for model in mine.models}
    curves, experts = _curves(suite, rows, lines), _experts(suite, path)
    return Study(
        suite=f"{path.parent.name}/{path.name}",
        made={name_of(run): _made(read_manifest(run.folder)) for run in done},
        rows=suite.rows,
        tables=suite.tables,
        pictures=suite.pictures,
        columns=_columns(judged.values()),
        drawing={name: row.drawing for name, row in judged.items()},
        lines=lines,
        costs={row: _cost(mine, experts) for row, mine in rows.items()},
        experts=experts,
        gaps={row: gap for row, mine in rows.items() if (gap := _gap(mine[0])) is not None},
        verdicts=[
            reached(claim, curves) if isinstance(claim, Reach) else verdict(claim, judged) for claim in suite.claims
        ],
        compute=suite.compute,
        curves=curves,
        interference=_interference(suite, runs),
        wall=gathered(suite.pictures.wall or (), done, out),
        stale=stale,
        missing=[name_of(run) for run in runs if not is_done(run)],
        curveless=[name_of(run) for run in done if _lacks_curve(run)],
    )


def name_of(run: Run) -> str:
    """A run as a page names it."""
    return f"{run.row}/seed-{run.seed}"


def _lacks_curve(run: Run) -> bool:
    """Whether a run's checkpoints are to be judged and are not."""
    recipe = run.recipe
    asked = recipe.evaluate is not None and recipe.evaluate.checkpoints is not False
    return asked and (recipe.distill or recipe.grpo_mix) is not None and not whole_curve(run)


def _made(manifest: Mapping[str, Any]) -> Made:
    """The commits and machines that made a run."""
    found = makers(manifest)
    commits = [f"{str(one['git_commit'])[:10]}{'*' if one.get('git_changed') else ''}" for one in found]
    machines = [", ".join(f"{name} {value}" for name, value in one["hardware"].items()) for one in found]
    return Made(commits=list(dict.fromkeys(commits)), machines=list(dict.fromkeys(machines)))


def _columns(rows: Iterable[Judged]) -> dict[str, Column]:
    """What each metric is, in the first row that has it."""
    found: dict[str, Column] = {}
    for row in rows:
        found |= {name: column for name, column in row.columns().items() if name not in found}
    return found


def _curves(suite: Suite, rows: Mapping[str, Sequence[Run]], lines: Mapping[str, Line]) -> dict[str, list[Spot]]:
    """The curve of each row whose runs have one."""
    row, held = suite.compute.experts if suite.compute else None, Yardstick()
    if row in rows:
        models = {parted(name)[1]: line.metrics for name, line in lines.items() if parted(name)[0] == row}
        held = yardstick(rows[row][0].recipe.evaluate, models)
    found = {name: spots(mine, held) for name, mine in rows.items()}
    return {name: curve for name, curve in found.items() if curve}


def _interference(suite: Suite, runs: Sequence[Run]) -> dict[str, list[Cosines]]:
    """What was measured of each model that is shown, in the first run of its row that has it."""
    found: dict[str, list[Cosines]] = {}
    for name in suite.pictures.interference or ():
        row, model = parted(name)
        for run in runs:
            file = run.folder / INTERFERENCE
            if run.row == row and name not in found and file.exists():
                mine = [one for one in Interference.load(file).measured if one.model == model]
                found |= {name: mine} if mine else {}
    return found


def _cost(runs: Sequence[Run], experts: Mapping[str, float]) -> Cost:
    recipe = runs[0].recipe
    works = workloads(Session(recipe, runs[0].folder))
    seconds = [sum(_seconds(run, work.stage) for work in works) for run in runs]
    learns = recipe.distill is not None or recipe.coldstart is not None
    given = [f"{TEACHER}{name}" for name, teacher in recipe.teachers.items() if teacher.train is None and learns]
    taught = sum(experts.get(name, 0.0) for name in given)
    return Cost(seconds=float(np.mean(seconds)), passes={work.stage: work.passes for work in works}, taught=taught)


def _experts(suite: Suite, path: Path) -> dict[str, float]:
    """The passes of the experts' own training, as their recipe says."""
    recipe = experts_recipe(suite, path)
    works = [] if recipe is None else workloads(Session(recipe, path.parent))
    return {work.stage: work.passes for work in works if work.stage.startswith(TEACHER)}


def _seconds(run: Run, stage: str) -> float:
    """What a stage's updates took, over all the times that it was taken up again."""
    rows = read_rows(run.folder / "metrics.jsonl")
    return elapsed(np.array([row["seconds"] for row in rows if row["stage"] == stage]))


def _gap(run: Run) -> Gap | None:
    """The gaps of a run's distillation, if it has one."""
    rows = [row for row in read_rows(run.folder / "metrics.jsonl") if row["stage"] == "distill"]
    labels = list(gap_curves(rows))
    tables = list(gap_tables(rows, labels).values())
    if not tables:
        return None
    first, last = ({label: _numbers(table[:, i]) for i, label in enumerate(labels)} for table in tables)
    every = -(-len(rows) // POINTS)
    return Gap(first=first, last=last, curve=[(int(row["step"]), float(row["gap"])) for row in rows[::every]])


def _numbers(values: np.ndarray) -> list[float | None]:
    return [None if math.isnan(value) else float(value) for value in values]
