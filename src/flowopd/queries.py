"""Which steps of a rollout are trained, and with what weight.

The loss of a rollout is `1/n sum_i weights_i L_i` over the queried steps `i`; weights are unbiased when its
expectation is the mean of `L_i` over all `n` steps. A rule is a function of one number in [0, 1), the rollout's place,
and holds for places that are uniform. The places of an update's samples are spread evenly, so that together its few
queried steps cover the rollout: what steps differ in is then no noise of the gradient.
"""

from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import Protocol

import torch

from flowopd.errors import ConfigError
from flowopd.shapes import PerStep

GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it modulo 1 are spread most evenly, however many are taken."""


@dataclass(frozen=True)
class Queries:
    """Steps to train, ascending, each with its weight; for example `Queries((2, 7), (5.0, 5.0))`."""

    indices: tuple[int, ...]
    weights: tuple[float, ...]


class Query(Protocol):
    """A rule that picks steps of a rollout of `n` steps."""

    def at(self, place: float, n: int) -> Queries:
        """The steps of the rollout of `n` steps at this place in [0, 1)."""
        ...


def places(samples: int, generator: torch.Generator) -> list[float]:
    """The places of so many rollouts: each uniform in [0, 1), and those of neighbours, however many, spread evenly.

    A Kronecker sequence with one random start.
    """
    start = float(torch.rand((), generator=generator, dtype=torch.float64))
    return [(start + GOLDEN * i) % 1 for i in range(samples)]


@dataclass(frozen=True)
class AllSteps:
    """Every step, weight 1."""

    def at(self, place: float, n: int) -> Queries:
        """All of them."""
        return Queries(tuple(range(n)), (1.0,) * n)


@dataclass(frozen=True)
class FixedSteps:
    """The given steps, weight 1. Raises ConfigError if one is repeated, negative, or beyond the rollout."""

    indices: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "indices", tuple(sorted(self.indices)))
        if not self.indices or len(set(self.indices)) < len(self.indices) or self.indices[0] < 0:
            raise ConfigError(f"fixed steps must be distinct positions from 0, got {self.indices}")

    def at(self, place: float, n: int) -> Queries:
        """The given ones."""
        if self.indices[-1] >= n:
            raise ConfigError(f"step {self.indices[-1]} is beyond a rollout of {n} trained steps")
        return Queries(self.indices, (1.0,) * len(self.indices))


@dataclass(frozen=True)
class RandomSteps:
    """`k` distinct steps `n/k` apart, each step as likely as another, weight `n/k`: unbiased (systematic sampling).

    Raises ConfigError unless 1 <= `k` <= n.
    """

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"at least one step must be queried, got k = {self.k}")

    def at(self, place: float, n: int) -> Queries:
        """The step at the place, and those at equal distances from it."""
        if self.k > n:
            raise ConfigError(f"k = {self.k} queried steps do not fit in a rollout of {n} trained steps; lower k")
        first = Fraction(place) * n
        indices = sorted(int(first + Fraction(i * n, self.k)) % n for i in range(self.k))
        return Queries(tuple(indices), (n / self.k,) * self.k)


@dataclass(frozen=True)
class BetaStep:
    """One step, its place ~ Beta(a, b), late (towards data) for `a` > `b` (DanceOPD, 2606.27377).

    Weight 1, or `1/p_i` when `unbiased`. Raises ConfigError unless `a` > 0 and `b` > 0.
    """

    a: float = 5.0
    b: float = 2.0
    unbiased: bool = False

    def __post_init__(self) -> None:
        if not (self.a > 0 and self.b > 0):
            raise ConfigError(f"Beta(a, b) needs positive a and b, got a = {self.a}, b = {self.b}")

    def probabilities(self, n: int) -> PerStep:
        """The chance of each of `n` steps: the density of Beta(a, b) at `(i + 1/2) / n`, normalised."""
        u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        return torch.softmax((self.a - 1) * u.log() + (self.b - 1) * (1 - u).log(), 0)

    def at(self, place: float, n: int) -> Queries:
        """The step at which the chances of all steps before it have passed the place."""
        p = _chances(self, n)
        i = min(bisect_right(list(accumulate(p)), place), n - 1)
        return Queries((i,), (1 / p[i] if self.unbiased else 1.0,))


@lru_cache
def _chances(rule: BetaStep, n: int) -> list[float]:
    return [float(chance) for chance in rule.probabilities(n)]
