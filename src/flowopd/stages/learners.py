"""How an expert draws the images of a group, and makes the better ones likelier.

`Transitions` is Flow-GRPO (2505.05470): the likelihood is that of the sampler's transitions. Only a window of each
rollout is stochastic and trained (MixGRPO, 2507.21802), and it starts elsewhere in each update. A group shares its
noise and, by the ODE, its way to the window, where it branches (as in Flow-GRPO-Fast): the way is walked once a prompt,
and a group's rewards differ by what the window drew alone.

`Matching` is advantage-weighted matching (2509.25050): the likelihood is how well the policy denoises the image. Images
come from the sampler that will be used, the ODE too, and each is noised anew as often as one likes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from flowopd.conditioning import Conditioning
from flowopd.dynamics import Dynamics, Ode
from flowopd.noise import seed_of
from flowopd.objectives import AdvantageMatching, Grpo
from flowopd.prompts import Prompt
from flowopd.recipe import GrpoConfig
from flowopd.rollout import record, replay
from flowopd.sampling import Batch, draw_latents
from flowopd.shapes import Grid
from flowopd.types import Trajectory
from flowopd.velocity import VelocityField

Kept = TypeVar("Kept")


@dataclass(frozen=True, eq=False)
class Place:
    """Where images are drawn: the times (N + 1,), the shape (C, H, W) of latents, and the seed of it all."""

    grid: Grid
    shape: tuple[int, int, int]
    seed: int


@dataclass(frozen=True, eq=False)
class Drawn(Generic[Kept]):
    """The images of an update: latents (B, C, H, W) in groups, the update, and what the learner kept of each part."""

    step: int
    latents: Tensor
    parts: Sequence[tuple[Batch, Kept]]


class Learner(Protocol):
    """Draws images for prompts, `group` of each in a row, and learns from their advantages (B,)."""

    def draw(self, step: int, prompts: Sequence[Prompt]) -> Drawn:
        """The images of update `step`."""
        ...

    def learn(self, drawn: Drawn, advantages: Tensor) -> dict[str, float]:
        """Leaves the gradient in the policy's parameters; returns means of the loss's metrics."""
        ...


class _Learner:
    """What the learners share."""

    def __init__(
        self,
        policy: VelocityField,
        reference: VelocityField,
        place: Place,
        config: GrpoConfig,
        conditioning: Conditioning,
    ) -> None:
        self.policy, self.reference, self.place, self.config = policy, reference, place, config
        self.conditioning = conditioning

    def _batch(self, prompts: Sequence[Prompt], purpose: str, step: int) -> Batch:
        seeds = tuple(seed_of(self.place.seed, purpose, step, i) for i in range(len(prompts)))
        return Batch(self.conditioning([prompt.text for prompt in prompts]), seeds)

    def _grouped(self, prompts: Sequence[Prompt], step: int) -> list[Batch]:
        """Micro-batches of each prompt `group` times in a row."""
        chosen = [prompt for prompt in prompts for _ in range(self.config.group)]
        return self._batch(chosen, "grpo", step).split(self.config.micro_batch)


class Transitions(_Learner):
    """Flow-GRPO, in a window."""

    @torch.no_grad()
    def draw(self, step: int, prompts: Sequence[Prompt]) -> Drawn[Trajectory]:
        """Rollouts that branch at the window."""
        start, dynamics = self._window(step)
        parts = self._grouped(prompts, step)
        roots = self._way_to(start, self._batch(prompts, "root", step))
        branches = roots.repeat_interleave(self.config.group, 0).split(self.config.micro_batch)
        times = self.place.grid[start:]
        walked = [
            record(self.policy, dynamics, x, times, part.cond, part.noise)
            for part, x in zip(parts, branches, strict=True)
        ]
        latents = torch.cat([trajectory.final for trajectory in walked])
        return Drawn(step, latents, list(zip(parts, walked, strict=True)))

    def learn(self, drawn: Drawn[Trajectory], advantages: Tensor) -> dict[str, float]:
        """PPO on every stochastic transition."""
        start, dynamics = self._window(drawn.step)
        times = self.place.grid[start:]
        trained = [i for i, one in enumerate(dynamics) if float(one.coefficients(times[i], times[i + 1]).std) > 0]
        totals: dict[str, float] = {}
        shares = advantages.split(self.config.micro_batch)
        for (part, walked), share in zip(drawn.parts, shares, strict=True):
            scale = len(part) / len(advantages) / len(trained)
            for i in trained:
                loss, metrics = self._loss(part, walked, dynamics, i, share)
                (scale * loss.mean()).backward()
                _add(totals, metrics, scale)
        return totals

    def _window(self, step: int) -> tuple[int, list[Dynamics]]:
        """Where this update's window starts, and the dynamics from there on."""
        sampling = self.config.sampling
        fitting = sampling.steps - (sampling.window or sampling.steps) + 1
        start = step % min(fitting, self.config.starts or fitting)
        return start, sampling.dynamics(start)[start:]

    def _way_to(self, start: int, roots: Batch) -> Tensor:
        """The states (P, C, H, W) at which the groups branch: noise, brought to step `start` by the ODE."""
        if start == 0:
            return roots.start(self.place.shape)
        way = self.place.grid[: start + 1]
        return draw_latents(self.policy, [Ode()] * start, way, roots, self.place.shape, self.config.micro_batch)

    def _loss(
        self, part: Batch, walked: Trajectory, dynamics: Sequence[Dynamics], i: int, advantages: Tensor
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The policy has not moved since the rollout, so its own log-prob is the old one."""
        new = replay(self.policy, dynamics, walked, i, part.cond)
        x_next = walked.states[i + 1]
        reference = None
        if self.config.kl > 0:
            with torch.no_grad():
                reference = replay(self.reference, dynamics, walked, i, part.cond).mean
        objective = Grpo(clip=self.config.clip, kl=self.config.kl)
        return objective(new, new.log_prob(x_next).detach(), x_next, advantages, reference)


class Matching(_Learner):
    """Advantage-weighted matching."""

    @torch.no_grad()
    def draw(self, step: int, prompts: Sequence[Prompt]) -> Drawn[Tensor]:
        """Plain samples, each from its own noise."""
        sampling, parts = self.config.sampling, self._grouped(prompts, step)
        size = self.config.micro_batch
        latents = [
            draw_latents(self.policy, sampling.dynamics(), self.place.grid, part, self.place.shape, size)
            for part in parts
        ]
        return Drawn(step, torch.cat(latents), list(zip(parts, latents, strict=True)))

    def learn(self, drawn: Drawn[Tensor], advantages: Tensor) -> dict[str, float]:
        """Each image is noised `draws` times, to times of the sampler's own grid."""
        generator = torch.Generator().manual_seed(seed_of(self.place.seed, "matching", drawn.step))
        objective, totals = AdvantageMatching(kl=self.config.kl), {}
        shares = advantages.split(self.config.micro_batch)
        for (part, x0), share in zip(drawn.parts, shares, strict=True):
            scale = len(part) / len(advantages) / self.config.draws
            for _ in range(self.config.draws):
                steps = torch.randint(len(self.place.grid) - 1, (len(part),), generator=generator)
                eps = torch.randn(x0.shape, generator=generator).to(x0.device)
                t = self.place.grid[steps].to(x0.device)
                reference = self.reference if self.config.kl > 0 else None
                loss, metrics = objective(self.policy, x0, part.cond, t, eps, share, reference)
                (scale * loss.mean()).backward()
                _add(totals, metrics, scale)
        return totals


def _add(totals: dict[str, float], metrics: Mapping[str, Tensor], scale: float) -> None:
    for name, value in metrics.items():
        totals[name] = totals.get(name, 0.0) + scale * float(value)


LEARNERS: Mapping[str, Callable[..., Learner]] = {"transitions": Transitions, "matching": Matching}
