"""Claims put to the test: over prompts, which the runs share, and over the seeds of the runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch

import numpy as np
from scipy.stats import t

from flowopd.errors import ConfigError
from flowopd.results import Estimate, share_closed
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
        _refuse_unknown(claim, row, "model", [model], rows[row].models)
    return _measured(claim, [_Side(rows[row], model) for row, model in places])


@dataclass(frozen=True)
class _Side:
    """A line of a claim."""

    judged: Judged
    model: str

    @property
    def scores(self) -> Scores:
        return self.judged.scores(self.model)

    def by_seed(self, metrics: Sequence[str]) -> Mapping[int, float]:
        return self.judged.by_seed(self.model, metrics)


@singledispatch
def _measured(claim: Claim | Closes, sides: Sequence[_Side]) -> Verdict:
    raise AssertionError(claim)


@_measured.register
def _(claim: Claim, sides: Sequence[_Side]) -> Verdict:
    of, over = sides
    metrics = claim.metrics or of.judged.counted
    if claim.over_metrics is not None:
        return _ratio(claim, of, metrics, over, claim.over_metrics or metrics)
    gain = _less(claim, of, over, metrics)
    seeds = over_seeds([(1.0, of, of.by_seed(metrics)), (-1.0, over, over.by_seed(metrics))])
    return Verdict(claim=claim, measured=of.judged.average(gain, metrics), over_seeds=seeds)


def _ratio(claim: Claim, of: _Side, metrics: Sequence[str], over: _Side, under: Sequence[str]) -> Verdict:
    """The ratio of two means. Over prompts its interval has that of either (variances recovered from limits: Zou and
    Donner, Statistics in Medicine 27, 2008); over seeds it is that of their logarithms."""
    _refuse_unknown(claim, of.judged.row, "metric", metrics, of.scores)
    _refuse_unknown(claim, over.judged.row, "metric", under, over.scores)
    a, b = of.judged.average(of.scores, metrics), over.judged.average(over.scores, under)
    above, below = of.by_seed(metrics), over.by_seed(under)
    if min(*above.values(), *below.values()) <= 0:
        return Verdict(claim=claim, lacks="no ratio of means that are not positive")
    ratio = a.mean / b.mean
    low = ratio - math.hypot(a.mean - a.ci95[0], ratio * (b.ci95[1] - b.mean)) / b.mean
    high = ratio + math.hypot(a.ci95[1] - a.mean, ratio * (b.mean - b.ci95[0])) / b.mean
    logs = over_seeds([(1.0, of, _logs(above)), (-1.0, over, _logs(below))])
    seeds = None if logs is None else (math.exp(logs[0]), math.exp(logs[1]))
    return Verdict(claim=claim, measured=Estimate(mean=ratio, ci95=(low, high), n=min(a.n, b.n)), over_seeds=seeds)


def _logs(means: Mapping[int, float]) -> dict[int, float]:
    return {seed: math.log(mean) for seed, mean in means.items()}


@_measured.register
def _(claim: Closes, sides: Sequence[_Side]) -> Verdict:
    """The share of a gap that is closed; its intervals are those of what is left of it over the gap (a ratio estimator:
    Cochran, "Sampling Techniques", 6.4)."""
    (student, base, expert), metrics = sides, [claim.metric]
    gain, gap = (_less(claim, side, base, metrics) for side in (student, expert))
    whole, won = (student.judged.average(each, metrics).mean for each in (gap, gain))
    share = share_closed(0.0, whole, won)
    if share is None:
        return Verdict(claim=claim, lacks="no gap: the expert is not above the base")
    left = student.judged.average({claim.metric: gain[claim.metric] - share * gap[claim.metric]}, metrics)
    weights = (1.0, share - 1, -share)
    seeds = over_seeds([(weight, side, side.by_seed(metrics)) for weight, side in zip(weights, sides, strict=True)])
    low, high = (share + end / whole for end in left.ci95)
    over = None if seeds is None else (share + seeds[0] / whole, share + seeds[1] / whole)
    return Verdict(claim=claim, measured=Estimate(mean=share, ci95=(low, high), n=left.n), over_seeds=over)


def _less(claim: Claim | Closes, of: _Side, over: _Side, metrics: Sequence[str]) -> Scores:
    """The differences of these metrics, prompt by prompt.

    Raises ConfigError if a side has not all of them, or was judged on other prompts.
    """
    for side in (of, over):
        _refuse_unknown(claim, side.judged.row, "metric", metrics, side.scores)
    other = [name for name in metrics if of.judged.prompts[name] != over.judged.prompts[name]]
    if other:
        rows = f"rows {of.judged.row!r} and {over.judged.row!r}"
        raise ConfigError(f"claim {claim.says!r}: {rows} have other prompts of {other[0]!r}; compare rows of the same")
    return {name: of.scores[name] - over.scores[name] for name in metrics}


def _refuse_unknown(
    claim: Claim | Closes, row: str, kind: str, wanted: Sequence[str], known: Sequence[str] | Scores
) -> None:
    missing = [name for name in wanted if name not in known]
    if missing:
        there = ", ".join(known)
        raise ConfigError(f"claim {claim.says!r}: row {row!r} has no {kind} {missing[0]!r}; it has: {there}")


def over_seeds(terms: Sequence[tuple[float, _Side, Mapping[int, float]]]) -> tuple[float, float] | None:
    """The 95 % interval of a sum of lines, each times a weight, from the means of their seeds.

    Lines of one row are summed run by run. What nothing random went into is known; None where a line that training made
    has one seed alone, or all are known.
    """
    several = [(weight, side, means) for weight, side, means in terms if len(means) > 1]
    if any(len(means) == 1 and side.judged.is_trained(side.model) for _, side, means in terms) or not several:
        return None
    known = sum(weight * next(iter(means.values())) for weight, _, means in terms if len(means) == 1)
    rows: dict[str, list[tuple[float, Mapping[int, float]]]] = {}
    for weight, side, means in several:
        rows.setdefault(side.judged.row, []).append((weight, means))
    sides = [_joint(mine) for mine in rows.values()]
    return welch(sides, known) if min(map(len, sides)) > 1 else None


def _joint(terms: Sequence[tuple[float, Mapping[int, float]]]) -> list[float]:
    """The weighted sum of lines of one row, for each seed that all of them have."""
    shared = [seed for seed in terms[0][1] if all(seed in means for _, means in terms)]
    return [sum(weight * means[seed] for weight, means in terms) for seed in shared]


def welch(sides: Sequence[Sequence[float]], known: float = 0.0) -> tuple[float, float]:
    """The 95 % interval of the sum of the means of independent samples, each of two values or more, and what is known
    (Welch, Biometrika 34, 1947)."""
    parts = [float(np.var(side, ddof=1)) / len(side) for side in sides]
    freedom = sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
    half = float(t.ppf(0.975, sum(parts) ** 2 / freedom)) * math.sqrt(sum(parts)) if freedom else 0.0
    middle = known + sum(float(np.mean(side)) for side in sides)
    return middle - half, middle + half
