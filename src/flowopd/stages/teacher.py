"""One expert by Flow-GRPO (2505.05470): groups of images of a prompt, judged, and the better ones made likelier.

Only a window of each rollout is stochastic and trained (MixGRPO, 2507.21802); the window moves with the update, so
that every step is trained in turn. A group shares its noise and, by the ODE, its way to the window, where it branches
(as in Flow-GRPO-Fast): the way is walked once a prompt, and a group's rewards differ by what the window drew alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowopd.checkpoint import Checkpoints
from flowopd.conditioning import Conditioning
from flowopd.dynamics import Dynamics, Ode
from flowopd.errors import ConfigError
from flowopd.lora_file import write_lora
from flowopd.noise import seed_of
from flowopd.objectives import Grpo, group_advantages
from flowopd.prompts import Prompt
from flowopd.recipe import GrpoConfig
from flowopd.rewards import Reward, make_reward
from flowopd.rollout import record, replay
from flowopd.sampling import Batch, draw_latents
from flowopd.session import BASE, Session
from flowopd.tracking import Tracker
from flowopd.train import Trainer
from flowopd.types import Trajectory


def train_teacher(session: Session, name: str) -> Path:
    """Train the expert `name` of the recipe; returns its adapter's folder, OUT/teachers/NAME.

    Raises ConfigError if the recipe does not say how, or names an unknown reward.
    """
    teacher = session.recipe.teachers.get(name)
    if teacher is None or teacher.train is None:
        raise ConfigError(f"the recipe does not train a teacher {name!r}; add teachers.{name}.train")
    config = teacher.train
    reward = make_reward(config.reward)
    prompts = session.prompts(config.prompts, "train")
    conditioning = session.encode(prompts)
    session.create(name, config.adapter)
    trainer = Trainer(session.adapters.parameters(name), config.optim)
    session.adapters.check_trainable(trainer.parameters, name)
    stage = f"teacher:{name}"
    identity = session.recipe.model_dump(mode="json", include={"base", "revision", "seed"})
    identity |= {"teacher": config.model_dump(mode="json"), "sha256": session.hashes([])}
    checkpoints = Checkpoints(session.out / "checkpoints" / "teachers" / name, identity)
    with session.adapters.using(name):
        update = _Update(session, name, config, reward, prompts, conditioning)
        trainer.run(update, Tracker(session.out, stage, config.optim.updates), checkpoints)
    folder = session.out / "teachers" / name
    write_lora(folder, session.adapters.lora(name), session.recipe.base)
    return folder


class _Update:
    """One update, a function of the seed and the step alone."""

    def __init__(
        self,
        session: Session,
        name: str,
        config: GrpoConfig,
        reward: Reward,
        prompts: Sequence[Prompt],
        conditioning: Conditioning,
    ) -> None:
        self.session, self.config, self.reward = session, config, reward
        self.prompts, self.conditioning = prompts, conditioning
        self.grid = session.model.grid(config.sampling.steps)
        self.shape = session.model.latent_shape()
        self.policy = session.field(name, config.sampling.guidance, conditioning)
        self.reference = session.field(BASE, config.sampling.guidance, conditioning)
        self.objective = Grpo(clip=config.clip, kl=config.kl)

    def __call__(self, step: int) -> dict[str, float]:
        prompts = self._choose(step)
        start, dynamics, trained = self._window(step)
        chosen = [prompt for prompt in prompts for _ in range(self.config.group)]
        parts = self._batch(chosen, "grpo", step).split(self.config.micro_batch)
        with torch.no_grad():
            roots = self._way_to(start, self._batch(prompts, "root", step))
            branches = roots.repeat_interleave(self.config.group, 0).split(self.config.micro_batch)
            walked = [
                record(self.policy, dynamics, x, self.grid[start:], part.cond, part.noise)
                for part, x in zip(parts, branches, strict=True)
            ]
        rewards = self._judge(torch.cat([trajectory.final for trajectory in walked]), chosen)
        advantages = group_advantages(rewards, self.config.group).to(roots.device)
        totals: dict[str, float] = {}
        shares = advantages.split(self.config.micro_batch)
        for part, trajectory, share in zip(parts, walked, shares, strict=True):
            for i in trained:
                scale = len(part) / len(chosen) / len(trained)
                metrics = self._learn(part, trajectory, dynamics, i, share, scale)
                totals = {key: totals.get(key, 0.0) + value for key, value in metrics.items()}
        grouped = rewards.reshape(-1, self.config.group)
        return totals | {
            "reward": float(rewards.mean()),
            "reward_spread": float(grouped.std(1).mean()),
            "flat_groups": float((grouped.amax(1) == grouped.amin(1)).float().mean()),
        }

    def _batch(self, prompts: Sequence[Prompt], purpose: str, step: int) -> Batch:
        seeds = tuple(seed_of(self.session.recipe.seed, purpose, step, i) for i in range(len(prompts)))
        return Batch(self.conditioning([prompt.text for prompt in prompts]), seeds)

    def _way_to(self, start: int, roots: Batch) -> Tensor:
        """The states (P, C, H, W) at which the groups branch: noise, brought to step `start` by the ODE."""
        if start == 0:
            return roots.start(self.shape)
        way = self.grid[: start + 1]
        return draw_latents(self.policy, [Ode()] * start, way, roots, self.shape, self.config.micro_batch)

    def _learn(
        self,
        part: Batch,
        walked: Trajectory,
        dynamics: Sequence[Dynamics],
        i: int,
        advantages: Tensor,
        scale: float,
    ) -> dict[str, float]:
        """Backward for one trained step. The policy has not moved since the rollout, so its own log-prob is the old."""
        new = replay(self.policy, dynamics, walked, i, part.cond)
        x_next = walked.states[i + 1]
        reference = None
        if self.config.kl > 0:
            with torch.no_grad():
                reference = replay(self.reference, dynamics, walked, i, part.cond).mean
        loss, metrics = self.objective(new, new.log_prob(x_next).detach(), x_next, advantages, reference)
        (scale * loss.mean()).backward()
        return {key: scale * float(value) for key, value in metrics.items()}

    def _judge(self, latents: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        size = self.config.micro_batch
        pictures = np.concatenate([self.session.model.decode(part) for part in latents.split(size)])
        scores = self.reward(pictures, prompts)
        values = scores.details[self.config.detail] if self.config.detail else scores.value
        return torch.from_numpy(np.asarray(values, np.float32))

    def _window(self, step: int) -> tuple[int, list[Dynamics], list[int]]:
        """Where this update's window starts, the dynamics from there on, and which of those steps are trained."""
        sampling = self.config.sampling
        fitting = sampling.steps - (sampling.window or sampling.steps) + 1
        start = step % min(fitting, self.config.starts or fitting)
        dynamics = sampling.dynamics(start)[start:]
        times = self.grid[start:]
        trained = [i for i, one in enumerate(dynamics) if float(one.coefficients(times[i], times[i + 1]).std) > 0]
        return start, dynamics, trained

    def _choose(self, step: int) -> list[Prompt]:
        """The prompts of this update, all different."""
        rng = np.random.default_rng(seed_of(self.session.recipe.seed, "prompts", step))
        chosen = rng.choice(len(self.prompts), min(self.config.prompts_per_update, len(self.prompts)), replace=False)
        return [self.prompts[i] for i in chosen]
