"""Everything that predicts is one callable `v(x, t, cond)`; guidance is a wrapper around it.

Fields that are asked at the same time may share one forward, each with rows of its own: see `ask`.

With `x = (1 - t) x_0 + t eps` and `v = eps - x_0`: `x0_hat = x - t v`, `eps_hat = x + (1 - t) v`, and the
score of the marginal is `-eps_hat / t`.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from flowopd.errors import ConfigError
from flowopd.gaussian import widen
from flowopd.shapes import Batch, Times
from flowopd.types import Condition


@runtime_checkable
class VelocityField(Protocol):
    """The velocity (B, *shape) at states `x` (B, *shape), times `t` (scalar or (B,)) and `cond` of B rows."""

    def __call__(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor: ...


@runtime_checkable
class Joinable(VelocityField, Protocol):
    """A field that can share a forward with others of the same `kind`; kind None is one that cannot now."""

    @property
    def kind(self) -> Hashable | None:
        """What fields must share to be asked together."""
        ...

    def join(self, fields: "Sequence[Joinable]", sizes: Sequence[int]) -> VelocityField:
        """A field of `sum(sizes)` rows: the first `sizes[0]` of them are for `fields[0]`, and so on."""
        ...


@dataclass(frozen=True, eq=False)
class Rows:
    """What a field asks of its plain one: states and conditions, and what is made of the answer."""

    field: VelocityField
    x: Tensor
    cond: Condition
    finish: Callable[[Tensor], Tensor]


@runtime_checkable
class Prepares(VelocityField, Protocol):
    """A field around another one, which can be asked in its place."""

    def prepare(self, x: Tensor, cond: Condition) -> Rows:
        """The rows for the inner field, at one time for all of them."""
        ...


def prepared(field: VelocityField, x: Tensor, cond: Condition) -> Rows:
    """What a field asks of the innermost one."""
    return field.prepare(x, cond) if isinstance(field, Prepares) else Rows(field, x, cond, lambda v: v)


def ask(asked: Sequence[tuple[VelocityField, Tensor, Condition]], t: Tensor) -> list[Tensor]:
    """The velocities of several fields, each at its own states and conditions, at one time for all.

    Those that can be joined pass in one forward of all their rows, whatever their guidance.
    """
    rows = [prepared(*each) for each in asked]
    kinds = [row.field.kind if isinstance(row.field, Joinable) else None for row in rows]
    groups: dict[Hashable, list[int]] = {}
    for i, kind in enumerate(kinds):
        groups.setdefault(("alone", i) if kind is None else kind, []).append(i)
    answers: dict[int, Tensor] = {}
    for group in groups.values():
        answers |= zip(group, _together([rows[i] for i in group], t), strict=True)
    return [answers[i] for i in range(len(rows))]


def _together(rows: Sequence[Rows], t: Tensor) -> Sequence[Tensor]:
    first = rows[0]
    if len(rows) == 1 or not isinstance(first.field, Joinable):
        return [row.finish(row.field(row.x, t, row.cond)) for row in rows]
    sizes = [len(row.x) for row in rows]
    field = first.field.join([row.field for row in rows if isinstance(row.field, Joinable)], sizes)
    v = field(torch.cat([row.x for row in rows]), t, Condition.cat(*(row.cond for row in rows)))
    return [row.finish(part) for row, part in zip(rows, torch.split(v, sizes), strict=True)]


@dataclass(frozen=True, eq=False)
class _Guided:
    field: VelocityField
    scale: float
    null: Condition

    def __call__(self, x: Batch, t: Times, cond: Condition) -> Batch:
        rows = self.prepare(x, cond)
        return rows.finish(rows.field(rows.x, t.repeat(2) if t.ndim else t, rows.cond))

    def prepare(self, x: Tensor, cond: Condition) -> Rows:
        """The conditions, then the null condition as often."""
        both = Condition.cat(cond, self.null.expand(len(cond)))
        inner = prepared(self.field, torch.cat([x, x]), both)
        return Rows(inner.field, inner.x, inner.cond, lambda v: self._guide(inner.finish(v)))

    def _guide(self, v: Tensor) -> Tensor:
        v_cond, v_null = widen(v).chunk(2)
        return v_null + self.scale * (v_cond - v_null)


def guided(field: VelocityField, scale: float, null: Condition) -> VelocityField:
    """Classifier-free guidance (2207.12598): `v_null + scale (v_cond - v_null)`, in one forward of 2B rows.

    `null` is the condition of the empty prompt, a single row. `scale` 1 is `field` itself, at its own cost.
    Raises ConfigError if `scale` < 0 or `null` has another number of rows.
    """
    if not scale >= 0:
        raise ConfigError(f"a guidance scale must not be negative, got {scale}; no guidance is 1")
    if len(null) != 1:
        raise ConfigError(f"the null condition must be one row, got {len(null)}; pick one with rows([0])")
    return field if scale == 1 else _Guided(field, scale, null)


def along(t: Times, x: Batch) -> Tensor:
    """Times `t`, one for all or one a sample, in a shape that multiplies `x` row by row."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def x0_of(x: Batch, v: Batch, t: Times) -> Batch:
    """The predicted data `x - t v`."""
    return widen(x) - along(t, x) * widen(v)


def eps_of(x: Batch, v: Batch, t: Times) -> Batch:
    """The predicted noise `x + (1 - t) v`."""
    return widen(x) + (1 - along(t, x)) * widen(v)


def score_of(x: Batch, v: Batch, t: Times) -> Batch:
    """The score of the marginal at `t` in (0, 1], `-(x + (1 - t) v) / t`."""
    return -eps_of(x, v, t) / along(t, x)
