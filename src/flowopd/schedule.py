"""Grids of times for sampling, and random times for training.

`u` is time before and `sigma` time after the shift of SD3 (2403.03206, eq. 23):
`sigma = s u / (1 + (s - 1) u)`.
"""

import torch
from torch import Tensor

from flowopd.errors import ConfigError
from flowopd.shapes import Grid, PerSample

_TRAIN_STEPS = 1000  # num_train_timesteps of the diffusers scheduler


def shift_sigma(u: Tensor, shift: float) -> Tensor:
    """Times `u` in [0, 1] moved towards noise; `shift` 1 changes nothing, and `1 / shift` is the inverse.

    Raises ConfigError unless `shift` > 0.
    """
    if not shift > 0:
        raise ConfigError(f"shift must be positive, got {shift}; SD3.5 uses 3, no shift is 1")
    return shift * u / (1 + (shift - 1) * u)


def sigma_grid(steps: int, shift: float = 3.0) -> Grid:
    """The (steps + 1,) float32 grid from 1 down to 0 of diffusers' FlowMatchEulerDiscreteScheduler.

    That scheduler shifts twice at its low end: the grid before the shift is even between 1 and an already
    shifted 1/1000. Raises ConfigError unless `steps` >= 1 and `shift` > 0.
    """
    if steps < 1:
        raise ConfigError(f"a grid needs at least one step, got {steps}; SD3.5 trains with 10 and samples with 40")
    lowest = shift_sigma(torch.tensor(1 / _TRAIN_STEPS, dtype=torch.float64), shift)
    u = torch.linspace(1, float(lowest), steps, dtype=torch.float64)
    return torch.cat([shift_sigma(u, shift), u.new_zeros(1)]).float()


def check_grid(sigmas: Grid) -> None:
    """Raises ConfigError unless `sigmas` has two points or more and falls strictly within [0, 1]."""
    falls = bool((sigmas.diff() < 0).all())
    if len(sigmas) < 2 or not falls or not 0 <= float(sigmas[-1]) <= float(sigmas[0]) <= 1:
        raise ConfigError(f"sigmas must fall strictly from at most 1 to at least 0, got {sigmas.tolist()}")


def logit_normal(n: int, generator: torch.Generator, mean: float = 0.0, std: float = 1.0) -> PerSample:
    """`n` float32 times in (0, 1) with normal logits, for flow-matching training (2403.03206, eq. 19).

    `mean` > 0 leans towards noise. Raises ConfigError unless `std` > 0.
    """
    if not std > 0:
        raise ConfigError(f"the std of logit-normal times must be positive, got {std}; SD3 uses 1")
    return torch.sigmoid(mean + std * torch.randn(n, generator=generator))
