"""From a velocity to the transition of one step, for every sampler: the only place that knows an SDE.

Each mean is affine in the state and the velocity, `mean = a x + b v`, so a dynamics defines three scalars
`(a, b, std)` of `t` and `s = t_next`, with `1 >= t > s >= 0` and `dt = s - t < 0`. The KL of two transitions
that share `x` and differ in `v` is `||mean_S - mean_T||^2 / (2 std^2) = b^2 / (2 std^2) ||v_S - v_T||^2`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from flowopd.errors import ConfigError
from flowopd.gaussian import Gaussian, widen
from flowopd.shapes import Batch, Scalar


@dataclass(frozen=True, eq=False)
class Affine:
    """The transition `N(x X + v V, std^2 I)` at a state X with velocity V."""

    x: Scalar
    v: Scalar
    std: Scalar


class Dynamics(ABC):
    """How a step turns a velocity into a transition; a subclass defines `coefficients` and nothing else."""

    stochastic: ClassVar[bool] = True

    @abstractmethod
    def coefficients(self, t: Scalar, t_next: Scalar) -> Affine:
        """The three scalars of the step from `t` to `t_next`, in the float type of the times."""

    def transition(self, x: Batch, v: Batch, t: Scalar, t_next: Scalar) -> Gaussian:
        """The distribution of the next state, in float32 at least."""
        step = self.coefficients(t, t_next)
        return Gaussian(mean=step.x * widen(x) + step.v * widen(v), std=step.std)

    def kl_weight(self, t: Scalar, t_next: Scalar) -> Scalar:
        """`b^2 / (2 std^2)`: the KL of two transitions per squared velocity gap summed over D.

        Raises ConfigError if the step has no noise.
        """
        step = self.coefficients(t, t_next)
        if float(step.std) == 0:
            raise ConfigError(
                f"the KL of a step without noise ({self}, t {float(t):.4g} to {float(t_next):.4g}) is "
                "infinite; use weighting `ode` or `velocity`, or leave this step out of the trained ones"
            )
        return step.v.square() / (2 * step.std.square())

    def ode_weight(self, t: Scalar, t_next: Scalar) -> Scalar:
        """`dt^2 / 2`: half the squared distance of two Euler steps per squared velocity gap."""
        return (t_next - t).square() / 2


@dataclass(frozen=True, kw_only=True)
class Ode(Dynamics):
    """Euler's step of the probability-flow ODE: `mean = x + v dt`, `std = 0`."""

    stochastic: ClassVar[bool] = False

    def coefficients(self, t: Scalar, t_next: Scalar) -> Affine:
        return Affine(x=torch.ones_like(t), v=t_next - t, std=torch.zeros_like(t))


@dataclass(frozen=True, kw_only=True)
class FlowSde(Dynamics):
    """Euler-Maruyama's step of the SDE with the ODE's marginals (Flow-GRPO, 2505.05470, eq. 9).

    `mean = x + [v + sigma^2/(2t) (x + (1-t) v)] dt`, `std = sigma sqrt(-dt)`, `sigma = a sqrt(t / (1-t))`.
    As in the field's code, `t = 1` reads `t_next` inside `1/(1-t)`, where sigma would diverge. It converges
    to the marginals with order 1 from a start below `t = 1`, and with order `min(1, a^2)` from `t = 1`.
    Raises ConfigError unless `a` > 0.
    """

    a: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.a < math.inf:
            raise ConfigError(f"the noise level a of FlowSde must be positive, got {self.a}; 0.7 is usual, or use Ode")

    def coefficients(self, t: Scalar, t_next: Scalar) -> Affine:
        dt = t_next - t
        sigma = self.a * (t / (1 - torch.where(t == 1, t_next, t))).sqrt()
        pull = sigma.square() / (2 * t)
        return Affine(x=1 + pull * dt, v=(1 + pull * (1 - t)) * dt, std=sigma * (-dt).sqrt())


@dataclass(frozen=True, kw_only=True)
class Cps(Dynamics):
    """Coefficients-preserving sampling (2509.05952): part of the predicted noise is replaced by fresh noise.

    `mean = (1-s) x0_hat + sqrt(s^2 - q^2) eps_hat`, `std = q = s sin(eta pi/2)`, `s = t_next`, where
    `x0_hat = x - t v` and `eps_hat = x + (1-t) v`. The step to `s = 0` has no noise. The marginals are kept
    for data that is a single point; otherwise a fixed `eta` narrows them, however many steps there are.
    Raises ConfigError unless 0 < `eta` <= 1.
    """

    eta: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.eta <= 1:
            raise ConfigError(f"the noise level eta of Cps must be in (0, 1], got {self.eta}; 0.7 is usual, or use Ode")

    def coefficients(self, t: Scalar, t_next: Scalar) -> Affine:
        s = t_next
        kept = s * math.cos(self.eta * math.pi / 2)
        fresh = s * math.sin(self.eta * math.pi / 2)
        return Affine(x=(1 - s) + kept, v=kept * (1 - t) - (1 - s) * t, std=fresh)


def per_step(dynamics: Dynamics | Sequence[Dynamics], steps: int) -> list[Dynamics]:
    """One dynamics a step: a single one serves them all. Raises ConfigError if a list has another length."""
    if isinstance(dynamics, Dynamics):
        return [dynamics] * steps
    if len(dynamics) != steps:
        raise ConfigError(f"{len(dynamics)} dynamics for {steps} steps; give one a step, or a single one")
    return list(dynamics)


def windowed(dynamics: Dynamics, steps: int, start: int, length: int) -> list[Dynamics]:
    """`dynamics` on `length` steps from `start`, the ODE on the others (MixGRPO, 2507.21802).

    Raises ConfigError if the window does not fit within `steps`.
    """
    if start < 0 or length < 0 or start + length > steps:
        raise ConfigError(f"a window of {length} steps from {start} does not fit within {steps} steps")
    return [Ode()] * start + [dynamics] * length + [Ode()] * (steps - start - length)
