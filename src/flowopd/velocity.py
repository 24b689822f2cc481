"""Everything that predicts is one callable `v(x, t, cond)`; guidance is a wrapper around it.

With `x = (1 - t) x_0 + t eps` and `v = eps - x_0`: `x0_hat = x - t v`, `eps_hat = x + (1 - t) v`, and the
score of the marginal is `-eps_hat / t`.
"""

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


@dataclass(frozen=True, eq=False)
class _Guided:
    field: VelocityField
    scale: float
    null: Condition

    def __call__(self, x: Batch, t: Times, cond: Condition) -> Batch:
        rows = Condition.cat(cond, self.null.expand(len(cond)))
        v = self.field(torch.cat([x, x]), t.expand(len(cond)).repeat(2), rows)
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
