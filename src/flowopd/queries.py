"""Which steps of a rollout are trained, and with what weight.

The loss of a rollout is `1/n sum_i weights_i L_i` over the queried steps `i`; weights are unbiased when its
expectation is the mean of `L_i` over all `n` steps.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from flowopd.errors import ConfigError
from flowopd.shapes import PerStep


@dataclass(frozen=True)
class Queries:
    """Steps to train, ascending, each with its weight; for example `Queries((2, 7), (5.0, 5.0))`."""

    indices: tuple[int, ...]
    weights: tuple[float, ...]


class Query(Protocol):
    """A rule that picks steps of a rollout of `n` steps; `generator` is its only randomness."""

    def draw(self, n: int, generator: torch.Generator) -> Queries:
        """The steps of one rollout of `n` steps."""
        ...


@dataclass(frozen=True)
class AllSteps:
    """Every step, weight 1."""

    def draw(self, n: int, generator: torch.Generator) -> Queries:
        return Queries(tuple(range(n)), (1.0,) * n)


@dataclass(frozen=True)
class FixedSteps:
    """The given steps, weight 1. Raises ConfigError if one is repeated, negative, or beyond the rollout."""

    indices: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "indices", tuple(sorted(self.indices)))
        if not self.indices or len(set(self.indices)) < len(self.indices) or self.indices[0] < 0:
            raise ConfigError(f"fixed steps must be distinct positions from 0, got {self.indices}")

    def draw(self, n: int, generator: torch.Generator) -> Queries:
        if self.indices[-1] >= n:
            raise ConfigError(f"step {self.indices[-1]} is beyond a rollout of {n} trained steps")
        return Queries(self.indices, (1.0,) * len(self.indices))


@dataclass(frozen=True)
class RandomSteps:
    """`k` distinct steps, each subset as likely as another, weight `n/k`: unbiased.

    Raises ConfigError unless 1 <= `k` <= n.
    """

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"at least one step must be queried, got k = {self.k}")

    def draw(self, n: int, generator: torch.Generator) -> Queries:
        if self.k > n:
            raise ConfigError(f"k = {self.k} queried steps do not fit in a rollout of {n} trained steps")
        indices = torch.randperm(n, generator=generator)[: self.k].sort().values.tolist()
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

    def draw(self, n: int, generator: torch.Generator) -> Queries:
        p = self.probabilities(n)
        i = int(torch.multinomial(p, 1, generator=generator))
        return Queries((i,), (1 / float(p[i]) if self.unbiased else 1.0,))
