"""How a model is sampled: the recipe's words for it, and the records that samples travel in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from flowopd.dynamics import Cps, Dynamics, FlowSde, Ode, windowed
from flowopd.noise import Noise
from flowopd.rollout import sample
from flowopd.shapes import Grid
from flowopd.types import Condition
from flowopd.velocity import VelocityField

SAMPLERS = {
    "ode": lambda noise: Ode(),
    "sde": lambda noise: FlowSde(a=noise),
    "cps": lambda noise: Cps(eta=noise),
}


class SamplingConfig(BaseModel):
    """Steps, sampler and guidance of a rollout. `noise` is the level a of the SDE, or eta of CPS."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: int = Field(10, ge=1, le=1000, description="steps from noise to data")
    sampler: Literal["ode", "sde", "cps"] = Field(
        "ode", description="Euler without noise, Flow-SDE (2505.05470), or coefficients-preserving (2509.05952)"
    )
    noise: float = Field(0.7, gt=0, description="the level a of `sde`, or eta of `cps`, which is at most 1")
    window: int | None = Field(None, ge=1, description="stochastic steps in a row, the others ODE; none is all")
    guidance: float = Field(1.0, ge=0, description="classifier-free guidance; 1 is none, at half the cost")

    def dynamics(self, start: int = 0) -> list[Dynamics]:
        """One dynamics a step; a window of stochastic steps begins at `start`."""
        dynamics = SAMPLERS[self.sampler](self.noise)
        return windowed(dynamics, self.steps, start, min(self.window or self.steps, self.steps - start))


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples to make: one row of `cond` and one seed each."""

    cond: Condition
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def noise(self) -> Noise:
        """The randomness of these samples, a function of their seeds alone."""
        return Noise(self.seeds)

    @property
    def device(self) -> torch.device:
        """Where the condition lies."""
        return self.cond.device

    def start(self, shape: Sequence[int]) -> Tensor:
        """The noise (B, *shape) that the trajectories start from, on the condition's device."""
        return self.noise.initial(shape).to(self.device)

    def rows(self, index: Tensor) -> Batch:
        """The samples at these positions."""
        return Batch(self.cond.rows(index), tuple(self.seeds[i] for i in index.tolist()))

    def split(self, size: int) -> list[Batch]:
        """Micro-batches of at most `size` samples, in order."""
        return [Batch(self.cond.rows(slice(i, i + size)), self.seeds[i : i + size]) for i in range(0, len(self), size)]


@torch.no_grad()
def draw_latents(
    field: VelocityField,
    dynamics: Sequence[Dynamics],
    grid: Grid,
    batch: Batch,
    shape: Sequence[int],
    size: int = 32,
) -> Tensor:
    """Latents (B, *shape) of a batch, maybe an empty one, at most `size` samples at a time."""
    parts = [sample(field, dynamics, part.start(shape), grid, part.cond, part.noise) for part in batch.split(size)]
    return torch.cat(parts) if parts else torch.empty(0, *shape, device=batch.device)
