"""From the folders of a suite's runs to a study: means over seeds, intervals over prompts, claims put to the test."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flowopd.manifest import read_manifest
from flowopd.results import TEACHER, Estimate, bootstrap_average
from flowopd.session import Session
from flowopd.stages.curve import Yardstick, yardstick
from flowopd.stages.evaluate import PER_PROMPT
from flowopd.stages.interference import INTERFERENCE, Cosines, Interference
from flowopd.stages.judging import Scores, counted, estimated, groups_of
from flowopd.stages.report.contents import read_rows
from flowopd.stages.report.series import elapsed, gap_curves, gap_tables
from flowopd.stages.sample import evaluation_prompts, metric_prompts
from flowopd.stages.study.effort import reached, spots
from flowopd.stages.study.keep import changes, is_done
from flowopd.stages.study.records import Cost, Gap, Line, Spot, Study, Verdict
from flowopd.stages.study.wall import gathered
from flowopd.stages.workload import workloads
from flowopd.suite import Claim, Reach, Run, Suite, experts_recipe, load_runs, load_suite, parted

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
    scores = {name: _scores(mine) for name, mine in rows.items()}
    judged = {name: _Judged(mine[0]) for name, mine in rows.items()}
    lines = {
        f"{row}/{model}": _line(judged[row], by_seed)
        for row, models in scores.items()
        for model, by_seed in models.items()
    }
    curves, experts = _curves(suite, rows, lines), _experts(suite, path)
    manifests = [read_manifest(run.folder) for run in done]
    return Study(
        suite=f"{path.parent.name}/{path.name}",
        commits=sorted({str(manifest["git_commit"]) for manifest in manifests}),
        hardware=sorted({json.dumps(manifest["hardware"], sort_keys=True) for manifest in manifests}),
        rows=suite.rows,
        tables=suite.tables,
        pictures=suite.pictures,
        lines=lines,
        costs={row: _cost(mine, experts) for row, mine in rows.items()},
        experts=experts,
        gaps={row: gap for row, mine in rows.items() if (gap := _gap(mine[0])) is not None},
        verdicts=[
            reached(claim, curves) if isinstance(claim, Reach) else _verdict(claim, scores, judged)
            for claim in suite.claims
        ],
        compute=suite.compute,
        curves=curves,
        interference=_interference(suite, runs),
        wall=gathered(suite.pictures.wall or (), done, out),
        stale=stale,
        missing=[name_of(run) for run in runs if not is_done(run)],
    )


def name_of(run: Run) -> str:
    """A run as a page names it."""
    return f"{run.row}/seed-{run.seed}"


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


class _Judged:
    """What a row was judged on: the groups of every metric's prompts, and which metrics are averaged."""

    def __init__(self, run: Run) -> None:
        self.config = run.recipe.evaluate
        prompts = evaluation_prompts(Session(run.recipe, run.folder), self.config)
        self.prompts = metric_prompts(self.config, prompts)
        self.groups = {name: groups_of(self.config.metrics[name], mine) for name, mine in self.prompts.items()}
        self.counted = counted(self.config)

    def estimates(self, scores: Scores) -> dict[str, Estimate]:
        return estimated(self.config, self.prompts, scores)

    def average(self, scores: Scores, metrics: Sequence[str]) -> Estimate:
        names = metrics or self.counted
        return bootstrap_average({name: scores[name] for name in names}, self.groups)


def _scores(runs: Sequence[Run]) -> dict[str, dict[int, Scores]]:
    """{model: {seed: scores}} of the runs of a row."""
    found: dict[str, dict[int, Scores]] = {}
    for run in runs:
        for model, row in json.loads((run.folder / PER_PROMPT).read_text()).items():
            found.setdefault(model, {})[run.seed] = {name: np.asarray(values) for name, values in row.items()}
    return found


def _mean(by_seed: Mapping[int, Scores]) -> Scores:
    """Each prompt's mean over the seeds."""
    first = next(iter(by_seed.values()))
    return {name: np.mean([scores[name] for scores in by_seed.values()], axis=0) for name in first}


def _line(judged: _Judged, by_seed: Mapping[int, Scores]) -> Line:
    seeds = {
        seed: {name: estimate.mean for name, estimate in judged.estimates(scores).items()}
        for seed, scores in by_seed.items()
    }
    return Line(metrics=judged.estimates(_mean(by_seed)), by_seed=seeds)


def _verdict(
    claim: Claim, scores: Mapping[str, Mapping[str, Mapping[int, Scores]]], judged: Mapping[str, _Judged]
) -> Verdict:
    """The claim with what was measured, as far as both its lines are there."""
    places = [parted(name) for name in (claim.of, claim.over)]
    if any(model not in scores.get(row, {}) for row, model in places):
        return Verdict(claim=claim, measured=None)
    (of_row, of), (over_row, over) = places
    above, below = _mean(scores[of_row][of]), _mean(scores[over_row][over])
    if claim.over_metrics is None:
        difference = {name: above[name] - below[name] for name in above if name in below}
        return Verdict(claim=claim, measured=judged[of_row].average(difference, claim.metrics))
    a, b = judged[of_row].average(above, claim.metrics), judged[over_row].average(below, claim.over_metrics)
    return Verdict(claim=claim, measured=_ratio(a, b))


def _ratio(a: Estimate, b: Estimate) -> Estimate:
    """a / b; its interval is as wide as the two intervals allow, hence conservative."""
    (low, high), (least, most) = a.ci95, b.ci95
    return Estimate(mean=a.mean / b.mean, ci95=(low / most, high / least), n=min(a.n, b.n))


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
