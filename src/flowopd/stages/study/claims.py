"""Claims put to the test: over prompts, which the runs share, and over the seeds of the runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import singledispatch

import numpy as np
from scipy.stats import t

from flowopd.errors import ConfigError
from flowopd.results import Estimate
from flowopd.stages.judging import Scores
from flowopd.stages.study.judged import Judged
from flowopd.stages.study.records import Verdict
from flowopd.suite import Claim, Closes, parted


def verdict(claim: Claim | Closes, rows: Mapping[str, Judged]) -> Verdict:
    """The claim with what was measured, as far as all its lines are there.

    Raises ConfigError for a model or metric that a row has not, and for rows that were judged on other prompts.
    """
    places = [parted(name) for name in claim.lines]
    if any(row not in rows for row, _ in places):
        return Verdict(claim=claim)
    for row, model in places:
        if model not in rows[row].models:
            known = ", ".join(rows[row].models)
            raise ConfigError(f"claim {claim.says!r}: row {row!r} has no model {model!r}; it has: {known}")
    return _measured(claim, rows)


def between_seeds(a: Sequence[float], b: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of `a` less that of `b`, a value a training seed (Welch's t).

    A side of one seed counts as known; None if both are.
    """
    several = [np.asarray(side) for side in (a, b) if len(side) > 1]
    if not several:
        return None
    parts = [float(side.var(ddof=1)) / len(side) for side in several]
    known = sum(part**2 / (len(side) - 1) for part, side in zip(parts, several, strict=True))
    half = float(t.ppf(0.975, sum(parts) ** 2 / known)) * math.sqrt(sum(parts)) if known else 0.0
    middle = float(np.mean(a) - np.mean(b))
    return middle - half, middle + half


@singledispatch
def _measured(claim: Claim | Closes, rows: Mapping[str, Judged]) -> Verdict:
    raise AssertionError(claim)


@_measured.register
def _(claim: Claim, rows: Mapping[str, Judged]) -> Verdict:
    return _difference(claim, rows) if claim.over_metrics is None else _ratio(claim, rows)


def _difference(claim: Claim, rows: Mapping[str, Judged]) -> Verdict:
    (row, of), (other, over) = map(parted, claim.lines)
    a, b = rows[row], rows[other]
    difference = _less(a, a.scores(of), b, b.scores(over))
    means = a.by_seed(of, claim.metrics), b.by_seed(over, claim.metrics)
    return Verdict(
        claim=claim, measured=a.average(difference, claim.metrics), over_seeds=_over_seeds(row, other, *means)
    )


def _ratio(claim: Claim, rows: Mapping[str, Judged]) -> Verdict:
    """The ratio of two means. Over prompts its interval has that of either (variances recovered from limits: Zou and
    Donner, Statistics in Medicine 27, 2008); over seeds it is that of their logarithms."""
    (row, of), (other, over) = map(parted, claim.lines)
    a, b = (
        rows[row].average(rows[row].scores(of), claim.metrics),
        rows[other].average(rows[other].scores(over), claim.over_metrics or ()),
    )
    means = rows[row].by_seed(of, claim.metrics), rows[other].by_seed(over, claim.over_metrics or ())
    if not all(value > 0 for side in means for value in side):
        return Verdict(claim=claim)
    ratio = a.mean / b.mean
    low = ratio - math.hypot(a.mean - a.ci95[0], ratio * (b.ci95[1] - b.mean)) / b.mean
    high = ratio + math.hypot(a.ci95[1] - a.mean, ratio * (b.mean - b.ci95[0])) / b.mean
    logs = _over_seeds(row, other, *([math.log(value) for value in side] for side in means))
    seeds = None if logs is None else (math.exp(logs[0]), math.exp(logs[1]))
    return Verdict(claim=claim, measured=Estimate(mean=ratio, ci95=(low, high), n=min(a.n, b.n)), over_seeds=seeds)


@_measured.register
def _(claim: Closes, rows: Mapping[str, Judged]) -> Verdict:
    """The share of a gap that is closed; its interval is that of what is left of it, prompt by prompt, over the gap (a
    ratio estimator: Cochran, "Sampling Techniques", 6.4). No measurement where the expert is not above the base."""
    (row, of), (base_row, base), (expert_row, expert) = map(parted, claim.lines)
    student, below, above = rows[row], rows[base_row], rows[expert_row]
    start, gap = below.scores(base), _less(above, above.scores(expert), below, below.scores(base))
    gain = _less(student, student.scores(of), below, start)
    whole, won = (student.average(each, [claim.metric]).mean for each in (gap, gain))
    if whole <= 0:
        return Verdict(claim=claim)
    share = won / whole
    left = student.average({claim.metric: gain[claim.metric] - share * gap[claim.metric]}, [claim.metric])
    low, high = (share + end / whole for end in left.ci95)
    from_base = below.average(start, [claim.metric]).mean
    seeds = between_seeds([(mean - from_base) / whole for mean in student.by_seed(of, [claim.metric])], [0.0])
    return Verdict(claim=claim, measured=Estimate(mean=share, ci95=(low, high), n=left.n), over_seeds=seeds)


def _less(a: Judged, above: Scores, b: Judged, below: Scores) -> Scores:
    """The differences, prompt by prompt, of the metrics that both have.

    Raises ConfigError if one was taken on other prompts.
    """
    shared = [name for name in above if name in below]
    other = [name for name in shared if a.prompts[name] != b.prompts[name]]
    if other:
        raise ConfigError(f"rows {a.row!r} and {b.row!r} have {other[0]!r} of other prompts; compare them on the same")
    return {name: above[name] - below[name] for name in shared}


def _over_seeds(row: str, other: str, a: Sequence[float], b: Sequence[float]) -> tuple[float, float] | None:
    """Seeds of one row are compared run by run."""
    if row == other and len(a) == len(b):
        return between_seeds([x - y for x, y in zip(a, b, strict=True)], [0.0])
    return between_seeds(a, b)
