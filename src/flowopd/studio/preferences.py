"""Which of two pictures people picked without knowing who drew them: kept in the run's folder, and counted."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from flowopd.errors import DataError
from flowopd.studio.folders import inside

FILE = "preferences.jsonl"


class Preference(BaseModel):
    """One choice between two pictures of one prompt and seed; `chosen` is one of `models`, or None for a tie.

    The pictures have `steps` steps, and adapters of strength 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: float
    prompt: str
    seed: int
    steps: int
    models: tuple[str, str]
    chosen: str | None


@dataclass(frozen=True)
class Pair:
    """How often `first` and `second` were picked over each other, ties apart.

    `share` is that of `first` among the decided choices and `interval` its 95 % interval (Wilson); `p` is how likely a
    split at least as uneven is if both are as good (binomial, two-sided). None where nothing was decided.
    """

    first: str
    second: str
    wins: int
    losses: int
    ties: int
    share: float | None
    interval: tuple[float, float] | None
    p: float | None


def record(run: Path, preference: Preference) -> None:
    """Append a choice to the run's `preferences.jsonl`.

    Raises DataError if it cannot be written, or is a link that leads out of the run.
    """
    path = inside(run, FILE)
    try:
        with path.open("ab+") as file:
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")
            file.write(preference.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}); make room, or allow it") from None


def preferences(run: Path) -> tuple[list[Preference], int]:
    """The choices that a run's file holds, and how many of its lines are none."""
    path = inside(run, FILE)
    if not path.exists():
        return [], 0
    found, faults = [], 0
    for line in path.read_bytes().splitlines():
        try:
            found.append(Preference.model_validate_json(line))
        except ValidationError:
            faults += 1
    return found, faults


def tally(choices: Iterable[Preference]) -> list[Pair]:
    """The count of every pair of models that met, in order of their first meeting."""
    counts: dict[tuple[str, str], list[int]] = {}
    for choice in choices:
        first, second = sorted(choice.models)
        count = counts.setdefault((first, second), [0, 0, 0])
        count[2 if choice.chosen is None else int(choice.chosen != first)] += 1
    return [_pair(first, second, *count) for (first, second), count in counts.items()]


def _pair(first: str, second: str, wins: int, losses: int, ties: int) -> Pair:
    from scipy.stats import binomtest

    if not wins + losses:
        return Pair(first, second, wins, losses, ties, None, None, None)
    test = binomtest(wins, wins + losses)
    low, high = test.proportion_ci(method="wilson")
    share = wins / (wins + losses)
    return Pair(first, second, wins, losses, ties, share, (float(low), float(high)), float(test.pvalue))
