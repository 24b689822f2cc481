"""The one sampling loop: states, transitions, and room for a gradient at the queried steps."""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowopd.dynamics import Dynamics, per_step
from flowopd.errors import ConfigError
from flowopd.gaussian import Gaussian, widen
from flowopd.noise import Noise
from flowopd.schedule import check_grid
from flowopd.shapes import Batch, Grid
from flowopd.types import Condition, Step, Trajectory
from flowopd.velocity import VelocityField


@dataclass(frozen=True, eq=False)
class Walker:
    """A field with the dynamics of each of its steps down a grid; see `rollout`, which is all of them in a row."""

    field: VelocityField
    dynamics: Sequence[Dynamics]
    sigmas: Grid
    times: Grid
    """The grid where the states lie."""

    @classmethod
    def of(
        cls, field: VelocityField, dynamics: Dynamics | Sequence[Dynamics], sigmas: Grid, device: torch.device
    ) -> "Walker":
        """Of one dynamics for all steps, or one a step, for states on a device.

        Raises ConfigError if the grid does not fall or the counts disagree.
        """
        check_grid(sigmas)
        return cls(field, per_step(dynamics, len(sigmas) - 1), sigmas, sigmas.to(device))

    def step(self, i: int, x: Batch, rows: Tensor, cond: Condition, noise: Noise | None, trained: bool) -> Step:
        """Step `i` from states `x`, those of the samples `rows`; if it is `trained` its velocity carries a gradient."""
        t, t_next = self.sigmas[i], self.sigmas[i + 1]
        with torch.set_grad_enabled(trained):
            v = self.field(x, self.times[i], cond)
        transition = self.dynamics[i].transition(x, v.detach(), t, t_next)
        x_next = transition.sample(_draw(self.dynamics[i], noise, i, x))
        return Step(index=i, rows=rows, t=t, t_next=t_next, x=x, v=v, transition=transition, x_next=x_next)

    def again(self, i: int, x: Batch, x_next: Batch, rows: Tensor, cond: Condition) -> Step:
        """Step `i` once more, at the states and to the next ones that it had; its velocity carries a gradient."""
        t, t_next = self.sigmas[i], self.sigmas[i + 1]
        v = self.field(x, self.times[i], cond)
        transition = self.dynamics[i].transition(x, v.detach(), t, t_next)
        return Step(index=i, rows=rows, t=t, t_next=t_next, x=x, v=v, transition=transition, x_next=x_next)


def rollout(
    field: VelocityField,
    dynamics: Dynamics | Sequence[Dynamics],
    x: Batch,
    sigmas: Grid,
    cond: Condition,
    noise: Noise | None,
    queried: Collection[int] = (),
) -> Iterator[Step]:
    """Sample from `x` at time `sigmas[0]` down the grid, yielding each step.

    The velocity of a step in `queried` carries a gradient, and states never do. A consumer that calls
    backward on a loss of `step.v` before it asks for the next step holds one step's activations only.
    `dynamics` is one for all steps or one a step; `noise` may be None if all of them are the ODE.
    Raises ConfigError if the grid does not fall, the counts disagree, or noise is needed and missing.
    """
    walker = Walker.of(field, dynamics, sigmas, x.device)
    _check_noise(walker.dynamics, noise)
    x, rows = widen(x.detach()), torch.arange(len(x), device=x.device)
    for i in range(len(walker.dynamics)):
        step = walker.step(i, x, rows, cond, noise, i in queried)
        yield step
        x = step.x_next


def sample(
    field: VelocityField,
    dynamics: Dynamics | Sequence[Dynamics],
    x: Batch,
    sigmas: Grid,
    cond: Condition,
    noise: Noise | None,
) -> Batch:
    """The final states of a rollout, without a gradient."""
    last = deque(rollout(field, dynamics, x, sigmas, cond, noise), maxlen=1).pop()
    return last.x_next


def record(
    field: VelocityField,
    dynamics: Dynamics | Sequence[Dynamics],
    x: Batch,
    sigmas: Grid,
    cond: Condition,
    noise: Noise | None,
) -> Trajectory:
    """All states of a rollout with the grid they were reached on, without a gradient."""
    steps = rollout(field, dynamics, x, sigmas, cond, noise)
    return Trajectory(sigmas=sigmas, states=torch.stack([widen(x), *(step.x_next for step in steps)]))


def replay(
    field: VelocityField,
    dynamics: Dynamics | Sequence[Dynamics],
    trajectory: Trajectory,
    i: int,
    cond: Condition,
) -> Gaussian:
    """The transition of step `i` at the stored state and times, with the field's gradient.

    Under the weights that made the trajectory it is the transition that drew `states[i + 1]`, bit for bit.
    """
    one = per_step(dynamics, len(trajectory.sigmas) - 1)[i]
    x, t, t_next = trajectory.states[i], trajectory.sigmas[i], trajectory.sigmas[i + 1]
    return one.transition(x, field(x, t.to(x.device), cond), t, t_next)


def _check_noise(dynamics: Sequence[Dynamics], noise: Noise | None) -> None:
    for one in dynamics:
        if one.stochastic and noise is None:
            raise ConfigError(f"{one} draws noise and none was given; pass Noise(seeds), or use Ode()")


def _draw(dynamics: Dynamics, noise: Noise | None, i: int, x: Tensor) -> Tensor:
    if noise is None or not dynamics.stochastic:
        return torch.zeros_like(x)
    return noise.step(i, x.shape[1:]).to(x.device, non_blocking=True)
