"""What an evaluation found: means over prompts with their intervals, and the record kept as `results.json`.

Every metric is better when larger. Intervals are percentile bootstraps over prompts, so pictures of one
prompt are averaged before they come here; equal values give an interval of no width, however few they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from flowopd.errors import DataError
from flowopd.records import File, Record

BASE, MERGE, SFT, GRPO_MIX, STUDENT, TEACHER = "base", "merge", "sft", "grpo_mix", "student", "teacher:"
"""Names of models in a record; a teacher's own name follows `teacher:`."""

AVERAGE = "average"
"""The metric that is the mean of all others, each brought to 0..1."""


FEW = 20
"""Prompts below which two means are never told apart: a bootstrap of a handful gives an interval far too narrow."""


RESAMPLES = 2000
"""Of an interval's bootstrap; with one alone a mean is the same and its interval says nothing."""


class Estimate(Record):
    """A mean over `n` prompts and its 95 % interval. For example `mean=0.92 ci95=(0.89, 0.94) n=320`."""

    mean: float
    ci95: tuple[float, float]
    n: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Estimate:
        if self.ci95[0] > self.ci95[1]:
            raise ValueError(f"ci95 must be (low, high), got {self.ci95}")
        return self

    def overlaps(self, other: Estimate) -> bool:
        """Whether the two intervals share a value."""
        return self.ci95[0] <= other.ci95[1] and other.ci95[0] <= self.ci95[1]

    def __str__(self) -> str:
        """`0.871 ± 0.020`, half of the interval; the mean alone of a single prompt."""
        return f"{self.mean:.3f}" + (f" ± {(self.ci95[1] - self.ci95[0]) / 2:.3f}" if self.n > 1 else "")

    def is_told_from(self, other: Estimate) -> bool:
        """Whether the means differ by more than noise: the intervals share no value, and no mean is of too FEW."""
        return min(self.n, other.n) >= FEW and not self.overlaps(other)


class Results(File):
    """`results.json`: estimates by model and metric, and how much of each teacher's gain reached the student.

    `settings` is free; all other fields are strict. `per_prompt` is the file of single scores, relative to
    the run's folder.
    """

    made_by: ClassVar[str] = "flowopd eval"

    version: Literal[1] = Field(default=1, validation_alias="schema", serialization_alias="schema")
    settings: dict[str, Any] = Field({})
    models: dict[str, dict[str, Estimate]] = Field({})
    gap_closed: dict[str, float | None] = Field({})
    per_prompt: str | None = None

    @property
    def metrics(self) -> list[str]:
        """Every metric that some model has, in order of appearance, the average last."""
        names = dict.fromkeys(metric for row in self.models.values() for metric in row)
        return sorted(names, key=lambda metric: metric == AVERAGE)

    @property
    def prompts(self) -> dict[str, int]:
        """How many prompts each metric was taken on; the fewest, where models differ."""
        rows = self.models.values()
        return {metric: min(row[metric].n for row in rows if metric in row) for metric in self.metrics}

    @property
    def doubtful(self) -> list[str]:
        """The metrics whose gap is within the noise of its ends."""
        return list(self.settings.get("doubtful_gap", ()))

    def __str__(self) -> str:
        """Every model and metric, and the gap closed, in Markdown.

        `0.90?` is the share of a gap whose ends, base and expert, are not told apart; `none` of one that there is not.
        """
        lines = [line("", *self.metrics), line("---", *("---:" for _ in self.metrics))]
        for model, row in self.models.items():
            lines.append(line(model, *(str(row.get(metric, "")) for metric in self.metrics)))
        if self.gap_closed:
            lines.append(line("gap closed", *map(self._closed, self.metrics)))
        return "\n".join(lines)

    def _closed(self, metric: str) -> str:
        if metric not in self.gap_closed:
            return ""
        share = self.gap_closed[metric]
        return "none" if share is None else f"{share:.2f}{'?' if metric in self.doubtful else ''}"

    def estimate(self, model: str, metric: str) -> Estimate:
        """Raises DataError if that model has no such metric."""
        row = self.models.get(model, {})
        if metric not in row:
            raise DataError(f"the results hold no {metric!r} of {model!r}; evaluate that model on it")
        return row[metric]


def line(*cells: str) -> str:
    """A line of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"


def bootstrap(values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """The mean of `values` (n,), one a prompt, with its interval.

    Raises DataError if there is none, or one is not finite.
    """
    return bootstrap_grouped(values, np.zeros(len(values), np.int64), seed, resamples)


def bootstrap_grouped(
    values: np.ndarray,
    groups: Sequence[str] | np.ndarray,
    seed: int = 0,
    resamples: int = RESAMPLES,
    weights: Mapping[Any, float] | None = None,
) -> Estimate:
    """The mean of the groups' means, as GenEval's over its tasks; prompts are drawn within their group.

    Groups of one prompt show no spread of their own: they are drawn together (collapsed strata: Cochran, "Sampling
    Techniques", 5A.12), a single such group with the smallest other, so the interval is too wide if anything.
    `values` (n,) and `groups` (n,) go together; `weights` by group replace the even mean. Raises DataError if
    they differ in length, there is no value, or one is not finite.
    """
    values, groups = np.asarray(values, np.float64), np.asarray(groups)
    if values.ndim != 1 or values.shape != groups.shape or not len(values):
        raise DataError(f"an interval needs a value and a group a prompt, got {values.shape} and {groups.shape}")
    if not np.isfinite(values).all():
        where = int(np.flatnonzero(~np.isfinite(values))[0])
        raise DataError(f"score {where} is {values[where]}; a reward must give a number for every picture")
    rng = np.random.default_rng(seed)
    names, member, counts = np.unique(groups, return_inverse=True, return_counts=True)
    even = np.array([weights[name] for name in names] if weights else np.ones(len(names)), np.float64)
    shares = (even / even.sum() / counts)[member]
    draws = sum(_resampled_sums(values[rows], shares[rows], rng, resamples) for rows in _strata(member, counts))
    low, high = np.percentile(draws, (2.5, 97.5))
    return Estimate(mean=float(values @ shares), ci95=(low, high), n=len(values))


def bootstrap_average(
    values: Mapping[str, np.ndarray], groups: Mapping[str, Sequence[str]], resamples: int = RESAMPLES
) -> Estimate:
    """The mean over metrics of each one's mean over its groups, from a value and a group for each of its prompts.

    It is as much worth as its smallest metric: `n` is the prompts of that one. Raises DataError as `bootstrap_grouped`
    does.
    """
    joint = np.concatenate([[f"{name}/{group}" for group in groups[name]] for name in values])
    shares = {f"{name}/{group}": 1 / len(set(groups[name])) for name in values for group in groups[name]}
    whole = bootstrap_grouped(np.concatenate(list(values.values())), joint, resamples=resamples, weights=shares)
    return whole.model_copy(update={"n": min(map(len, values.values()))})


def gap_closed(results: Results, owners: Mapping[str, str]) -> Results:
    """The results with `(student - base) / (teacher - base)` on each metric with an owner.

    0 is the base and 1 the teacher; outside is possible. Where the teacher is not above the base the value is
    None, and `settings["no_gap"]` says why; `settings["doubtful_gap"]` names the metrics on which it is not told from
    the base, so that a share says little; `settings["owners"]` keeps `owners`, which is {metric: teacher}.
    Raises DataError if an estimate is missing.
    """
    shares: dict[str, float | None] = {}
    reasons, doubts = {}, []
    for metric, teacher in owners.items():
        base, expert, student = (results.estimate(model, metric) for model in (BASE, TEACHER + teacher, STUDENT))
        shares[metric] = share_closed(base.mean, expert.mean, student.mean)
        if shares[metric] is None:
            reasons[metric] = f"the expert ({expert.mean:.3f}) is not above the base ({base.mean:.3f})"
        elif not expert.is_told_from(base):
            doubts.append(metric)
    settings = {**results.settings, "owners": dict(owners), "no_gap": reasons, "doubtful_gap": doubts}
    return results.model_copy(update={"gap_closed": shares, "settings": settings})


def share_closed(base: float, expert: float, student: float) -> float | None:
    """`(student - base) / (expert - base)`; None where the expert is not above the base."""
    return (student - base) / (expert - base) if expert > base else None


def shares_closed(
    student: Mapping[str, float], base: Mapping[str, float], experts: Mapping[str, float]
) -> dict[str, float | None]:
    """The share of each metric whose expert's mean is among `experts`, and under `average` that of them all together.

    The last is the mean gain of the student over the mean gain of the experts: it does not blow up where one expert
    gained little.
    """
    shares = {metric: share_closed(base[metric], expert, student[metric]) for metric, expert in experts.items()}
    if not shares:
        return {}
    bases, theirs, own = (sum(means[metric] for metric in experts) for means in (base, experts, student))
    return shares | {AVERAGE: share_closed(bases, theirs, own)}


def _strata(member: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """Rows (n,) by the stratum that they are drawn within, from each one's group and the sizes of the groups."""
    strata = [np.flatnonzero(member == group) for group in np.flatnonzero(counts > 1)]
    alone = np.flatnonzero(counts[member] == 1)
    if len(alone) == 1 and strata:
        alone = np.append(strata.pop(int(np.argmin([len(rows) for rows in strata]))), alone)
    return [*strata, alone] if len(alone) else strata


def _resampled_sums(values: np.ndarray, shares: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """Sums (resamples,) of as many values drawn with replacement, times the shares of their places."""
    sums: np.ndarray = values[rng.integers(len(values), size=(resamples, len(values)))] @ shares
    return sums
