"""Fields that count what they are asked, and note the time they take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from flowopd.types import Condition
from flowopd.velocity import Joinable, Rows, VelocityField, prepared

ROLES = ("student", "teacher", "anchor")


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cpu":
        return time.perf_counter

    def synchronised() -> float:
        torch.accelerator.synchronize(device)
        return time.perf_counter()

    return synchronised


@dataclass(eq=False)
class Ledger:
    """What was asked, by role: samples that passed forward, and rows, of which guided samples take two; samples that
    passed backward; and the seconds within the model's forwards and backwards."""

    now: Callable[[], float]
    forwards: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    backwards: int = 0
    inside: float = 0.0
    _mark: float = 0.0

    def watch(self, parameters: Iterable[nn.Parameter]) -> None:
        """A backward lasts from the gradient of the velocity to the last gradient of a parameter."""
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._advance)

    def timed(self, act: Callable[[], Tensor]) -> Tensor:
        """What `act` returns; its time, and that of the backward through it, count as the model's."""
        start = self.now()
        v = act()
        self.inside += self.now() - start
        if v.requires_grad:
            v.register_hook(self._begin)
        return v

    def count_backward(self, gradient: Tensor) -> None:
        """A hook on a velocity."""
        self.backwards += len(gradient)

    def _begin(self, _gradient: Tensor) -> None:
        self._mark = self.now()

    def _advance(self, _parameter: Tensor) -> None:
        now = self.now()
        self.inside += now - self._mark
        self._mark = now


@dataclass(frozen=True, eq=False)
class Plain:
    """A plain field whose rows and time are noted; it joins others as the field itself does."""

    field: VelocityField
    role: str
    ledger: Ledger

    def __call__(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        self.ledger.rows[self.role] += len(x)
        return self.ledger.timed(lambda: self.field(x, t, cond))

    @property
    def kind(self) -> Hashable | None:
        """That of the field."""
        return self.field.kind if isinstance(self.field, Joinable) else None

    def join(self, fields: Sequence[Plain], sizes: Sequence[int]) -> VelocityField:
        """The fields together, the rows of each noted under its role."""
        assert isinstance(self.field, Joinable)
        joined = self.field.join([each.field for each in fields], sizes)
        return _Joined(joined, [each.role for each in fields], sizes, self.ledger)


@dataclass(frozen=True, eq=False)
class _Joined:
    field: VelocityField
    roles: Sequence[str]
    sizes: Sequence[int]
    ledger: Ledger

    def __call__(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        for role, size in zip(self.roles, self.sizes, strict=True):
            self.ledger.rows[role] += size
        return self.ledger.timed(lambda: self.field(x, t, cond))


@dataclass(frozen=True, eq=False)
class Counted:
    """A field, guided or not, whose samples are counted, forward and backward."""

    field: VelocityField
    role: str
    ledger: Ledger

    def __call__(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        self.ledger.forwards[self.role] += len(x)
        v = self.field(x, t, cond)
        if v.requires_grad:
            v.register_hook(self.ledger.count_backward)
        return v

    def prepare(self, x: Tensor, cond: Condition) -> Rows:
        """The rows that the field asks."""
        self.ledger.forwards[self.role] += len(x)
        return prepared(self.field, x, cond)
