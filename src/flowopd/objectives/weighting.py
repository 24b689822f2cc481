"""How much each step of a rollout weighs in the loss.

For an equal velocity error the true KL puts most of its weight on the last steps, the ODE form less, and a
plain velocity error spreads it evenly, so the weighting is a choice to make and to log.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from flowopd.dynamics import Dynamics, per_step
from flowopd.errors import ConfigError
from flowopd.schedule import check_grid
from flowopd.shapes import Grid, PerStep

Weighting: TypeAlias = Literal["kl", "ode", "velocity"] | Sequence[float]

_FORMS: Mapping[str, Callable[[Dynamics, Tensor, Tensor], Tensor]] = {
    "kl": lambda dynamics, t, t_next: dynamics.kl_weight(t, t_next),
    "ode": lambda dynamics, t, t_next: dynamics.ode_weight(t, t_next),
    "velocity": lambda dynamics, t, t_next: torch.ones_like(t),
}


def step_weights(
    weighting: Weighting, dynamics: Dynamics | Sequence[Dynamics], sigmas: Grid, normalize: bool = True
) -> PerStep:
    """The weight of each of the N steps of the grid `sigmas` (N + 1,), which may be a part of a longer one.

    `kl` is `b^2 / (2 std^2)`, `ode` is `dt^2 / 2`, `velocity` is 1, and a list gives the weights as they are.
    `normalize` divides by their mean, so that another weighting changes the shares and not the scale.
    Raises ConfigError for an unknown name, a list of another length, `kl` on a step without noise, and
    weights that are negative, not finite, or all zero.
    """
    check_grid(sigmas)
    steps = per_step(dynamics, len(sigmas) - 1)
    weights = _raw(weighting, steps, sigmas)
    usable = weights.isfinite().all() and (weights >= 0).all() and weights.sum() > 0
    if not usable:
        raise ConfigError(f"step weights must be finite, >= 0 and not all 0, got {weights.tolist()} for {weighting!r}")
    return weights / weights.mean() if normalize else weights


def _raw(weighting: Weighting, steps: Sequence[Dynamics], sigmas: Tensor) -> Tensor:
    if isinstance(weighting, str):
        if weighting not in _FORMS:
            raise ConfigError(f"unknown weighting {weighting!r}; use {', '.join(_FORMS)}, or a list of {len(steps)}")
        form = _FORMS[weighting]
        return torch.stack([form(one, sigmas[i], sigmas[i + 1]) for i, one in enumerate(steps)])
    if len(weighting) != len(steps):
        raise ConfigError(f"{len(weighting)} custom weights for {len(steps)} steps; give one a step")
    return torch.tensor(list(weighting), dtype=sigmas.dtype)
