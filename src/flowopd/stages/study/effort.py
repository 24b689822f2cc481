"""Quality against compute over the runs of a row: the points of their curves, and who reaches whose best when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flowopd.recipe import Recipe
from flowopd.results import AVERAGE, GRPO_MIX, SFT, shares_closed
from flowopd.stages.curve import CURVE, DISTILL, Curve, Point, Yardstick, foundations
from flowopd.stages.judging import for_average
from flowopd.stages.report.contents import read_rows
from flowopd.stages.study.keep import judged_otherwise
from flowopd.stages.study.records import Reached, Spot
from flowopd.suite import Reach, Run


def spots(runs: Sequence[Run], held: Yardstick) -> list[Spot]:
    """The training of a row, at the updates that the curves of all seeds have; of the seeds that have a whole curve.

    That is the stage which ends in its student, or else in its mix, after the fine-tuning that it starts from.
    Gaps closed are those of the yardstick. Raises DataError for a damaged file.
    """
    whole = [points for run in runs if (points := whole_curve(run))]
    if not whole:
        return []
    shown = shown_stages(runs[0].recipe)
    curves = [{(p.stage, p.update): p for p in points if p.stage in shown} for points in whole]
    common = [key for key in curves[0] if all(key in curve for curve in curves)]
    made = [_spot([curve[key] for curve in curves], held) for key in common]
    return sorted(made, key=lambda spot: (spot.passes, shown.index(spot.stage), spot.update))


def whole_curve(run: Run) -> Sequence[Point]:
    """The points of a run's curve, once its last checkpoint is judged, and as the suite asks; none before.

    Raises DataError if the file is damaged.
    """
    if not (run.folder / CURVE).exists():
        return ()
    last, curve = shown_stages(run.recipe)[-1], Curve.load(run.folder / CURVE)
    steps = [row["step"] for row in read_rows(run.folder / "metrics.jsonl") if row["stage"] == last]
    whole = any(point.stage == last and point.update > max(steps, default=0) for point in curve.points)
    config = run.recipe.evaluate
    asked = None if config is None else for_average(config)
    return curve.points if whole and not judged_otherwise(curve.settings, run, asked) else ()


def shown_stages(recipe: Recipe) -> list[str]:
    """The stages of a recipe whose checkpoints are one line: of the student, or of the mix."""
    last = DISTILL if recipe.distill is not None else GRPO_MIX
    return [*(stage for stage in foundations(recipe, last) if stage == SFT), last]


def best(curve: Sequence[Spot]) -> Spot | None:
    """The spot with the largest average, the earliest of equals."""
    return max(curve, key=lambda spot: spot.average, default=None)


def first_as_good(curve: Sequence[Spot], average: float) -> Spot | None:
    """The first spot whose average is that or more."""
    return next((spot for spot in curve if spot.average >= average), None)


def after_passes(curve: Sequence[Spot], passes: float) -> Spot | None:
    """The last spot that had taken so many passes or fewer."""
    return max((spot for spot in curve if spot.passes <= passes), key=lambda spot: spot.passes, default=None)


def reached(claim: Reach, curves: Mapping[str, Sequence[Spot]]) -> Reached:
    """The claim with what was measured, as far as both rows have their curves."""
    of, over = (curves.get(name, ()) for name in (claim.of, claim.over))
    top = best(over)
    first = None if top is None else first_as_good(of, top.average)
    return Reached(claim=claim, measured=bool(of) and bool(over), best=top, first=first)


def _spot(points: Sequence[Point], held: Yardstick) -> Spot:
    """The mean over seeds of the points after one update."""
    means = {name: float(np.mean([point.metrics[name].mean for point in points])) for name in points[0].metrics}
    seconds = [point.seconds for point in points if point.seconds is not None]
    experts = {name: mean for name, mean in held.experts.items() if name in means}
    return Spot(
        stage=points[0].stage,
        update=points[0].update,
        passes=float(np.mean([point.passes for point in points])),
        seconds=float(np.mean(seconds)) if len(seconds) == len(points) else None,
        average=means[AVERAGE],
        seeds=len(points),
        closed=shares_closed(means, held.base, experts).get(AVERAGE),
    )
