"""Drift and reward hacking, seen without a reward: the same pictures now and then, held against those of the start.

The pictures are drawn by the trained weights themselves, not by their average, from fixed seeds by the ODE: what goes
wrong shows there first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from flowopd.checkpoint import Checkpoints
from flowopd.conditioning import Conditioning
from flowopd.dynamics import Ode
from flowopd.errors import NumericsError
from flowopd.monitors.limits import MonitorConfig, changes, exceeded
from flowopd.monitors.pictures import measures
from flowopd.noise import seed_of
from flowopd.processes import own_rows, wait, whole
from flowopd.prompts import Prompt
from flowopd.rollout import rollout
from flowopd.sampling import Batch, SamplingConfig
from flowopd.session import BASE, Session
from flowopd.stages.sample import repeated, spread
from flowopd.tracking import warn
from flowopd.train import Trainer

LOOKS = 3
"""Steps of a trajectory, spread evenly, at which the trained velocity is held against the base's."""


@dataclass(frozen=True, eq=False)
class Trained:
    """What a stage trains: an adapter's name, how it is sampled, so many samples at a time, and its prompts."""

    name: str
    sampling: SamplingConfig
    micro_batch: int
    prompts: Sequence[Prompt]
    conditioning: Conditioning


class Monitor:
    """One stage's monitor."""

    def __init__(self, session: Session, trained: Trained, config: MonitorConfig) -> None:
        self._session, self._trained, self._config = session, trained, config
        self._start: dict[str, float] = {}
        self._act: Act = ACTIONS[config.action](config)

    def begin(self, trainer: Trainer, checkpoints: Checkpoints) -> None:
        """Measure the start."""
        self._start = self.measure()
        self._act.begin(trainer, checkpoints)

    def look(self, step: int, trainer: Trainer) -> dict[str, float]:
        """Measure and act if it is time: `monitor/NAME`, and `monitor/NAME/change` since the start.

        Raises NumericsError if the run is to stop.
        """
        if (step + 1) % self._config.every:
            return {}
        now = self.measure()
        change = changes(self._start, now)
        self._act(step, trainer, exceeded(change, self._config.limits))
        named = {f"monitor/{name}": value for name, value in now.items()}
        return named | {f"monitor/{name}/change": value for name, value in change.items()}

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Every measure of what the trained weights draw now; the same in all processes."""
        config, trained, model = self._config, self._trained, self._session.model
        prompts = repeated(spread(trained.prompts, config.prompts), config.images)
        rows = own_rows(len(prompts))
        seeds = tuple(seed_of(self._session.recipe.seed, "monitor", i) for i in range(len(prompts)))
        batch = Batch(trained.conditioning([prompt.text for prompt in prompts[rows]]), seeds[rows])
        none = torch.empty(0, *self._session.latent_shape()), torch.empty(3, self._looks, 0)
        walks = [none, *(self._walk(part) for part in batch.split(trained.micro_batch))]
        latents = whole(torch.cat([x.cpu() for x, _ in walks]), rows, len(prompts))
        student, base, between = whole(torch.cat([norms for _, norms in walks], 2), rows, len(prompts), dim=2)
        parts = latents.to(model.device).split(trained.micro_batch)
        pictures = np.concatenate([model.decode(part) for part in parts])
        velocities = {"velocity": float((student / base).mean()), "drift": float((between / base).mean())}
        return measures(pictures, config.images) | velocities

    @property
    def _looks(self) -> int:
        return min(LOOKS, self._trained.sampling.steps)

    def _walk(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Latents (B, C, H, W), and norms (3, looks, B) of the trained velocity, the base's, and their difference."""
        sampling, shape = self._trained.sampling, self._session.latent_shape()
        student, base = (
            self._session.field(name, sampling.guidance, self._trained.conditioning)
            for name in (self._trained.name, BASE)
        )
        looked = {i * sampling.steps // self._looks for i in range(self._looks)}
        grid = self._session.model.grid(sampling.steps)
        norms, x = [], batch.start(shape)
        for step in rollout(student, Ode(), x, grid, batch.cond, None):
            x = step.x_next
            if step.index in looked:
                own, other = step.v.float(), base(step.x, step.t.to(x.device), batch.cond).float()
                norms.append(torch.stack([v.flatten(1).norm(dim=1) for v in (own, other, own - other)]))
        return x, torch.stack(norms, 1).cpu()


class Act(Protocol):
    """What is done about what a monitor says."""

    def begin(self, trainer: Trainer, checkpoints: Checkpoints) -> None:
        """Called at the start of a stage."""
        ...

    def __call__(self, step: int, trainer: Trainer, said: Sequence[str]) -> None:
        """Act on what lies outside its band after update `step`, maybe nothing."""
        ...


class Warn:
    """A line for each measure when it first leaves its band."""

    def __init__(self, config: MonitorConfig) -> None:
        self._warned: set[str] = set()

    def begin(self, trainer: Trainer, checkpoints: Checkpoints) -> None:
        """Nothing to prepare."""

    def __call__(self, step: int, trainer: Trainer, said: Sequence[str]) -> None:
        """Warn of what is new."""
        new = [line for line in said if line.split()[0] not in self._warned]
        self._warned |= {line.split()[0] for line in new}
        if new:
            warn(f"monitor, update {step}: {', '.join(new)}; look at what the model draws")


class Stop:
    """The run ends."""

    def __init__(self, config: MonitorConfig) -> None:
        pass

    def begin(self, trainer: Trainer, checkpoints: Checkpoints) -> None:
        """Nothing to prepare."""

    def __call__(self, step: int, trainer: Trainer, said: Sequence[str]) -> None:
        """Raises NumericsError if anything was said."""
        if said:
            raise _stopped(step, said)


class RollBack:
    """The last state that passed, kept in a folder of its own, is taken again, at half the learning rate."""

    def __init__(self, config: MonitorConfig) -> None:
        self._most = config.roll_backs

    def begin(self, trainer: Trainer, checkpoints: Checkpoints) -> None:
        """The start passes."""
        folder = checkpoints.folder.with_name(f"{checkpoints.folder.name}-passed")
        self._passed = Checkpoints(folder, checkpoints.identity)
        if self._passed.latest() is None:
            trainer.snapshot(0, self._passed)
        wait()

    def __call__(self, step: int, trainer: Trainer, said: Sequence[str]) -> None:
        """Keep a state that passes, leave one that does not. Raises NumericsError if that was done too often."""
        if not said:
            trainer.snapshot(step + 1, self._passed)
        elif trainer.rate <= 0.5**self._most:
            raise _stopped(step, said)
        else:
            trainer.roll_back(self._passed)
            warn(f"monitor, update {step}: {', '.join(said)}; rolled back, learning rate now x {trainer.rate:g}")
        wait()


def _stopped(step: int, said: Sequence[str]) -> NumericsError:
    return NumericsError(
        f"monitor, update {step}: {', '.join(said)}; lower the learning rate, hold the model nearer to its base "
        "(anchor, kl), or widen monitor.limits"
    )


ACTIONS: Mapping[str, Callable[[MonitorConfig], Act]] = {"warn": Warn, "stop": Stop, "roll_back": RollBack}
