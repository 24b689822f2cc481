"""What a study keeps of a suite's runs: enough for its page, small enough for a repository."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from flowopd.records import File, Record
from flowopd.results import GRPO_MIX, STUDENT, Estimate
from flowopd.stages.interference import Cosines
from flowopd.suite import Claim, Closes, Compute, Pictures, Reach, Row, Table, parted

ROUTED = "routed"
"""The line of a row's experts together, each on the metric that it owns."""


class Line(Record):
    """One model of a row: estimates over prompts of the mean over seeds, and each seed's own means."""

    metrics: dict[str, Estimate]
    by_seed: dict[int, dict[str, float]]


class Cost(Record):
    """What a row's training took: seconds, the mean over seeds, and by stage rows in units of a forward; `taught` are
    those that the training of the experts took from which it learns or starts."""

    seconds: float
    passes: dict[str, float]
    taught: float = 0.0


class Gap(Record):
    """How far a student's velocities were from its teachers', of one seed: by label and step of the path over the
    first and the last tenth of the updates, and the mean over labels by update."""

    first: dict[str, list[float | None]]
    last: dict[str, list[float | None]]
    curve: list[tuple[int, float]]


class Verdict(Record):
    """A claim and what was measured, None while a row is missing, or for what `lacks`: an estimate over prompts, and an
    interval over seeds, None where a line that training made has one alone."""

    claim: Claim | Closes
    measured: Estimate | None = None
    lacks: str = ""
    over_seeds: tuple[float, float] | None = None

    @property
    def standing(self) -> Literal["holds", "fails", "undecided"] | None:
        """Whether the measurement is what was claimed or more, or is not, in all its intervals alike."""
        if self.measured is None:
            return None
        intervals = [self.measured.ci95, *([self.over_seeds] if self.over_seeds else [])]
        if all(low >= self.claim.asked for low, _ in intervals):
            return "holds"
        return "fails" if all(high < self.claim.asked for _, high in intervals) else "undecided"


class Column(Record):
    """What a metric is: the judge, the label and split of its prompts, how many, and whether it is averaged."""

    judge: str
    label: str
    split: str
    n: int
    averaged: bool


class Spot(Record):
    """A row's training after so many updates: its average over so many seeds, the gap closed, and what it had taken.

    `seconds` is the mean over seeds, `closed` the share of the experts' mean gain; None where it is not known.
    """

    stage: str
    update: int
    passes: float
    seconds: float | None
    average: float
    closed: float | None
    seeds: int = 1


class Reached(Record):
    """A claim of compute, the best spot of `over`, and the first of `of` that is as good; None where there is none.

    `measured` is whether both rows have their curves.
    """

    claim: Reach
    measured: bool
    best: Spot | None
    first: Spot | None

    @property
    def holds(self) -> bool | None:
        """Whether the passes are the share that was claimed or less; None while a row is missing."""
        if not self.measured or self.best is None:
            return None
        return self.first is not None and self.first.passes <= self.claim.within * self.best.passes

    @property
    def share(self) -> float | None:
        """Passes to the first spot over those to the best of the other row."""
        return None if self.first is None or self.best is None else share(self.first.passes, self.best.passes)


def share(part: float | None, whole: float | None) -> float | None:
    """part / whole; None if one is not known, or the whole is 0."""
    return part / whole if part is not None and whole else None


def label(name: str) -> str:
    """A line's name without what says nothing: `student/student` is `student`."""
    row, model = parted(name)
    return model if row == "experts" else row if model in (STUDENT, GRPO_MIX) else f"{row}: {model}"


class Wall(Record):
    """Pictures by ROW/MODEL, a file for each of the prompts, beside the study."""

    prompts: list[str]
    files: dict[str, list[str]]


class Drawing(Record):
    """How a row's models draw the pictures that they are judged by: so many a prompt, their steps, sampler and
    guidance; `experts` are those that are judged at one of their own."""

    images: int
    steps: int
    sampler: str
    guidance: float
    experts: dict[str, float]


class Made(Record):
    """The commits that a run was made by, an `*` after one whose code was changed, and the machines."""

    commits: list[str]
    machines: list[str]


class Study(File):
    """All of it: lines and cosines by ROW/MODEL, columns by metric, curves and ways of drawing by row, what made each
    run by ROW/seed-N.

    `experts` are the passes of their training, by stage in units of a forward; `missing` are runs that have no results
    yet, `curveless` those whose checkpoints are still to be judged, `stale` those that were made by another recipe than
    the suite's today, with what is other.
    """

    made_by: ClassVar[str] = "flowopd study"

    suite: str
    made: dict[str, Made] = Field({})
    rows: dict[str, Row]
    tables: dict[str, Table]
    pictures: Pictures
    columns: dict[str, Column] = Field({})
    drawing: dict[str, Drawing] = Field({})
    lines: dict[str, Line]
    costs: dict[str, Cost]
    experts: dict[str, float] = Field({})
    gaps: dict[str, Gap]
    verdicts: list[Verdict | Reached]
    compute: Compute | None
    curves: dict[str, list[Spot]]
    interference: dict[str, list[Cosines]]
    wall: Wall | None = None
    missing: list[str]
    curveless: list[str] = Field([])
    stale: dict[str, str] = Field({})
