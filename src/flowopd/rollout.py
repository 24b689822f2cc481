"""The one sampling loop: states, transitions, and room for a gradient at the queried steps."""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence

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

_Draw = Callable[[int, Tensor], Tensor]


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
    check_grid(sigmas)
    steps = per_step(dynamics, len(sigmas) - 1)
    draws = [_draw(one, noise) for one in steps]
    x = widen(x.detach())
    times = sigmas.to(x.device)
    for i, (one, draw) in enumerate(zip(steps, draws, strict=True)):
        t, t_next = sigmas[i], sigmas[i + 1]
        with torch.set_grad_enabled(i in queried):
            v = field(x, times[i], cond)
        transition = one.transition(x, v.detach(), t, t_next)
        x_next = transition.sample(draw(i, x))
        yield Step(index=i, t=t, t_next=t_next, x=x, v=v, transition=transition, x_next=x_next)
        x = x_next


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


def revisit(
    field: VelocityField,
    dynamics: Dynamics | Sequence[Dynamics],
    trajectory: Trajectory,
    i: int,
    cond: Condition,
) -> Step:
    """Step `i` again, at the stored state and times and to the stored next state; its velocity carries a gradient."""
    one = per_step(dynamics, len(trajectory.sigmas) - 1)[i]
    x, t, t_next = trajectory.states[i], trajectory.sigmas[i], trajectory.sigmas[i + 1]
    v = field(x, t.to(x.device, non_blocking=True), cond)
    transition = one.transition(x, v.detach(), t, t_next)
    return Step(index=i, t=t, t_next=t_next, x=x, v=v, transition=transition, x_next=trajectory.states[i + 1])


def _draw(dynamics: Dynamics, noise: Noise | None) -> _Draw:
    if not dynamics.stochastic:
        return lambda i, x: torch.zeros_like(x)
    if noise is None:
        raise ConfigError(f"{dynamics} draws noise and none was given; pass Noise(seeds), or use Ode()")
    return lambda i, x: noise.step(i, x.shape[1:]).to(x.device, non_blocking=True)
