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

from flowopd.configs import PolicyConfig
from flowopd.dynamics import Dynamics, Ode
from flowopd.errors import ConfigError
from flowopd.gaussian import Gaussian
from flowopd.noise import Noise, seed_of
from flowopd.nonfinite import Encoded
from flowopd.objectives import AdvantageMatching, Grpo, transition_ratio
from flowopd.processes import own_rows, state, whole
from flowopd.prompts import Prompt
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
    """This process's images of an update: which rows of all B, latents (rows, C, H, W), what is kept of each part."""

    step: int
    rows: slice
    latents: Tensor
    parts: Sequence[tuple[Batch, Kept]]


class Learner(Protocol):
    """Draws images for prompts, `group` of each in a row, and learns from their advantages (B,).

    Of several processes each draws and learns from its own rows.
    """

    def draw(self, step: int, prompts: Sequence[Prompt]) -> Drawn:
        """The images of update `step`."""
        ...

    def check(self, drawn: Drawn) -> None:
        """Refuses settings by which these images would teach nothing but rounding errors. Raises ConfigError."""
        ...

    def learn(self, drawn: Drawn, advantages: Tensor) -> dict[str, float]:
        """Leaves its share of the gradient in the policy's parameters; returns its share of the loss's metrics."""
        ...


SAFE = 0.1
"""The largest share of the clip range that the ratio of a policy which has not moved may be away from 1."""


class _Learner:
    """What the learners share."""

    def __init__(
        self,
        policy: VelocityField,
        reference: VelocityField,
        place: Place,
        config: PolicyConfig,
        conditioning: Encoded,
    ) -> None:
        self.policy, self.reference, self.place, self.config = policy, reference, place, config
        self.conditioning = conditioning

    def _batch(self, prompts: Sequence[Prompt], purpose: str, step: int, rows: slice) -> Batch:
        """These rows of a batch of prompts."""
        seeds = tuple(seed_of(self.place.seed, purpose, step, i) for i in range(len(prompts))[rows])
        return Batch(self.conditioning([prompt.text for prompt in prompts[rows]]), seeds)

    def _grouped(self, prompts: Sequence[Prompt], step: int) -> tuple[slice, list[Batch]]:
        """This process's rows of each prompt `group` times in a row, and their micro-batches."""
        chosen = [prompt for prompt in prompts for _ in range(self.config.group)]
        rows = own_rows(len(chosen))
        return rows, self._batch(chosen, "grpo", step, rows).split(self.config.micro_batch)

    def _shares(self, drawn: Drawn, advantages: Tensor) -> Sequence[Tensor]:
        """The advantages of each part of this process's rows."""
        return advantages[drawn.rows].split(self.config.micro_batch)[: len(drawn.parts)]

    def _none(self) -> Tensor:
        """Latents of no image, for a process that has no rows."""
        return torch.empty(0, *self.place.shape)


def window_starts(config: PolicyConfig) -> range:
    """The first steps that a policy's windows take in turn."""
    sampling = config.sampling
    fitting = max(1, sampling.steps - (sampling.window or sampling.steps) + 1)
    return range(min(fitting, config.starts or fitting))


def trained_steps(dynamics: Sequence[Dynamics], times: Grid) -> list[int]:
    """The steps whose transitions have a likelihood."""
    return [i for i, one in enumerate(dynamics) if float(one.coefficients(times[i], times[i + 1]).std) > 0]


class Transitions(_Learner):
    """Flow-GRPO, in a window."""

    @torch.no_grad()
    def draw(self, step: int, prompts: Sequence[Prompt]) -> Drawn[Trajectory]:
        """Rollouts that branch at the window."""
        start, dynamics = self._window(step)
        rows, parts = self._grouped(prompts, step)
        branches = self._branches(start, step, prompts, rows).split(self.config.micro_batch) if parts else ()
        times = self.place.grid[start:]
        walked = [
            record(self.policy, dynamics, x, times, part.cond, part.noise)
            for part, x in zip(parts, branches, strict=True)
        ]
        latents = torch.cat([trajectory.final for trajectory in walked] or [self._none()])
        return Drawn(step, rows, latents, list(zip(parts, walked, strict=True)))

    def _branches(self, start: int, step: int, prompts: Sequence[Prompt], rows: slice) -> Tensor:
        """The states (rows, C, H, W) at which the images of some rows leave their prompt's common way."""
        group = self.config.group
        first, last = rows.start // group, -(-rows.stop // group)
        roots = self._way_to(start, self._batch(prompts, "root", step, slice(first, last)))
        return roots.repeat_interleave(group, 0)[rows.start - first * group : rows.stop - first * group]

    def check(self, drawn: Drawn[Trajectory]) -> None:
        """The policy has not moved since it drew these images, so every ratio should be 1."""
        index, count = state().process_index, state().num_processes
        own = torch.tensor([self.noise_floor(drawn)])
        floor = float(whole(own, slice(index, index + 1), count).max())
        if not floor <= SAFE * self.config.clip:
            raise ConfigError(
                f"the ratio of a policy that has not moved is off 1 by {floor:.2g}, too much for clip "
                f"{self.config.clip:.2g}; raise clip to {floor / SAFE:.2g} or more, or use dtype float32"
            )

    @torch.no_grad()
    def noise_floor(self, drawn: Drawn[Trajectory]) -> float:
        """The largest |ratio - 1| of the first part's transitions, replayed, against the noise that drew them.

        It is at least the distance between 1 and the next float.
        """
        start, dynamics = self._window(drawn.step)
        away = [torch.finfo(torch.float32).eps]
        for part, walked in drawn.parts[:1]:
            for i in trained_steps(dynamics, self.place.grid[start:]):
                new, x_next = replay(self.policy, dynamics, walked, i, part.cond), walked.states[i + 1]
                noise = part.noise.step(i, self.place.shape).to(x_next.device)
                old = Gaussian(torch.zeros_like(noise), new.std).log_prob(new.std * noise)
                away.append(float((transition_ratio(new, old, x_next) - 1).abs().max()))
        return max(away)

    def learn(self, drawn: Drawn[Trajectory], advantages: Tensor) -> dict[str, float]:
        """PPO on every stochastic transition."""
        start, dynamics = self._window(drawn.step)
        trained = trained_steps(dynamics, self.place.grid[start:])
        totals: dict[str, float] = {}
        for (part, walked), share in zip(drawn.parts, self._shares(drawn, advantages), strict=True):
            scale = len(part) / len(advantages) / len(trained)
            for i in trained:
                loss, metrics = self._loss(part, walked, dynamics, i, share)
                (scale * loss.mean()).backward()
                _add(totals, metrics, scale)
        return totals

    def _window(self, step: int) -> tuple[int, list[Dynamics]]:
        """Where this update's window starts, and the dynamics from there on."""
        starts = window_starts(self.config)
        start = starts[step % len(starts)]
        return start, self.config.sampling.dynamics(start)[start:]

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
        sampling, (rows, parts) = self.config.sampling, self._grouped(prompts, step)
        size = self.config.micro_batch
        latents = [
            draw_latents(self.policy, sampling.dynamics(), self.place.grid, part, self.place.shape, size)
            for part in parts
        ]
        return Drawn(step, rows, torch.cat(latents or [self._none()]), list(zip(parts, latents, strict=True)))

    def check(self, drawn: Drawn[Tensor]) -> None:
        """Nothing to refuse: no ratio is taken."""

    def learn(self, drawn: Drawn[Tensor], advantages: Tensor) -> dict[str, float]:
        """Each image is noised `draws` times, to times of the sampler's own grid."""
        objective, totals = AdvantageMatching(kl=self.config.kl), {}
        for (part, x0), share in zip(drawn.parts, self._shares(drawn, advantages), strict=True):
            scale = len(part) / len(advantages) / self.config.draws
            for draw in range(self.config.draws):
                t, eps = (value.to(x0.device) for value in self._noised(part, draw))
                reference = self.reference if self.config.kl > 0 else None
                loss, metrics = objective(self.policy, x0, part.cond, t, eps, share, reference)
                (scale * loss.mean()).backward()
                _add(totals, metrics, scale)
        return totals

    def _noised(self, part: Batch, draw: int) -> tuple[Tensor, Tensor]:
        """Times (B,) and noise (B, C, H, W) of one draw, a function of the samples' seeds."""
        seeds = [seed_of(seed, "matching", draw) for seed in part.seeds]
        steps = [seed_of(seed, "time") % (len(self.place.grid) - 1) for seed in seeds]
        return self.place.grid[steps], Noise(seeds).initial(self.place.shape)


def _add(totals: dict[str, float], metrics: Mapping[str, Tensor], scale: float) -> None:
    for name, value in metrics.items():
        totals[name] = totals.get(name, 0.0) + scale * float(value)


LEARNERS: Mapping[str, Callable[..., Learner]] = {"transitions": Transitions, "matching": Matching}
