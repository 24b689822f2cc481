"""Who takes a step of a rollout together, where each sample queries steps of its own.

All samples walk in step. At each step those that learn there are parted from those that only pass it, which need no
gradient, and a sample that has nothing left to query is out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowopd.sampling import Batch
from flowopd.shapes import Routes
from flowopd.step import Distillation, Frozen, frozen_fields
from flowopd.types import Condition

Steps = Sequence[Collection[int]]
"""Some steps of each sample's rollout."""


@dataclass(frozen=True, eq=False)
class Task:
    """Samples that are to walk: the routes (B, K) and the shape of one, and how many at most pass in one forward.

    The mean of a loss is over `among` samples, of which these may be a part; without it over these. The frozen fields
    read `asked`, one row a sample, where that is not what the student reads.
    """

    batch: Batch
    routes: Routes
    shape: Sequence[int]
    size: int
    among: int | None = None
    asked: Condition | None = None

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def device(self) -> torch.device:
        """Where the conditions lie."""
        return self.batch.device

    def frozen_at(self, d: Distillation, who: Sequence[int], rows: Tensor) -> Frozen:
        """The frozen fields for the samples `who` (b), which stand at `rows`."""
        cond = self.batch.cond if self.asked is None else self.asked
        return frozen_fields(d, self.routes[list(who)], cond.rows(rows))

    def rows(self, who: Sequence[int]) -> Tensor:
        """The positions `who` (b) on the device; the host does not wait."""
        return torch.tensor(who).to(self.device, non_blocking=True)


@dataclass(frozen=True, eq=False)
class Crew:
    """The samples `who`, at `rows` (b) of the task, in one forward; whether it learns, and whom it asks."""

    who: Sequence[int]
    rows: Tensor
    batch: Batch
    learns: bool
    frozen: Frozen | None


@dataclass(eq=False)
class Crews:
    """The crews of a walk, step by step, when each sample learns at its `trained` steps, and asks at its `wanted` ones.

    A crew that stays together is made once.
    """

    d: Distillation
    task: Task
    trained: Steps
    wanted: Steps
    known: dict[tuple[Sequence[int], bool, bool], Crew] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.last = [max(steps, default=-1) for steps in self.wanted]

    @property
    def steps(self) -> range:
        """Those up to the last one that any sample wants."""
        return range(1 + max(self.last, default=-1))

    def at(self, i: int) -> Sequence[Crew]:
        """The crews of step `i`, which no sample is in twice."""
        self.known = {key: self.known.get(key) or self._made(*key) for key in self._parted(i)}
        return list(self.known.values())

    def _parted(self, i: int) -> Iterator[tuple[Sequence[int], bool, bool]]:
        walking = [b for b, last in enumerate(self.last) if last >= i]
        kinds = [(i in self.trained[b], i in self.wanted[b]) for b in walking]
        for kind in dict.fromkeys(kinds):
            mine = [b for b, own in zip(walking, kinds, strict=True) if own == kind]
            yield from ((part, *kind) for part in even_parts(mine, self.task.size))

    def _made(self, who: Sequence[int], learns: bool, asks: bool) -> Crew:
        task, rows = self.task, self.task.rows(who)
        cond = task.batch.cond.rows(rows)
        frozen = task.frozen_at(self.d, who, rows) if asks else None
        return Crew(who, rows, Batch(cond, tuple(task.batch.seeds[b] for b in who)), learns, frozen)


def even_parts(who: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """As few parts as can be of at most `size`, in order and as even as can be."""
    count = -(-len(who) // size)
    return [tuple(who[len(who) * k // count : len(who) * (k + 1) // count]) for k in range(count)]
