"""What the laws are stated on: a flow that is known exactly, and a small network."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from flowopd.types import Condition


@dataclass(frozen=True)
class GaussianFlow:
    """The exact velocity field of data `N(m, s^2)`, elementwise; the marginal at t is `N((1-t) m, V(t))`."""

    m: float
    s: float

    def __call__(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        slope, offset = self.line(t)
        return slope * x + offset

    def line(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`v = slope x + offset`, from `v = E[eps | x] - E[x_0 | x]`."""
        slope = (t - (1 - t) * self.s**2) / self.variance(t)
        return slope, -self.m - slope * self.mean(t)

    def mean(self, t: Tensor) -> Tensor:
        return (1 - t) * self.m

    def variance(self, t: Tensor) -> Tensor:
        return ((1 - t) * self.s).square() + t.square()


class TinyNet(nn.Module):
    """A convolution on 3-channel pictures with a time and a condition."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        hidden = torch.tanh(self.first(x) + t.reshape(-1, 1, 1, 1) + cond["text"][:, :, None, None])
        return self.last(hidden)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def gaussian_flow() -> Callable[[float, float], GaussianFlow]:
    return GaussianFlow


@pytest.fixture
def tiny_net() -> Callable[[int], TinyNet]:
    return TinyNet


@pytest.fixture
def condition() -> Callable[[int], Condition]:
    """A condition of `n` different rows."""
    return lambda n: Condition({"text": torch.randn(n, 8, generator=torch.Generator().manual_seed(n))})
