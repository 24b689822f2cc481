"""One expert by Flow-GRPO (2505.05470): groups of images of a prompt, judged, and the better ones made likelier.

What `likelier` means, and so how images are drawn, is the learner's: see `flowopd.stages.learners`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowopd.checkpoint import Checkpoints
from flowopd.conditioning import Conditioning
from flowopd.errors import ConfigError
from flowopd.lora_file import write_lora
from flowopd.noise import seed_of
from flowopd.objectives import group_advantages
from flowopd.prompts import Prompt
from flowopd.recipe import GrpoConfig
from flowopd.rewards import Reward
from flowopd.session import BASE, Session
from flowopd.stages.learners import LEARNERS, Place
from flowopd.tracking import Tracker
from flowopd.train import Trainer


def train_teacher(session: Session, name: str) -> Path:
    """Train the expert `name` of the recipe; returns its adapter's folder, OUT/teachers/NAME.

    Raises ConfigError if the recipe does not say how, or names an unknown reward.
    """
    teacher = session.recipe.teachers.get(name)
    if teacher is None or teacher.train is None:
        raise ConfigError(f"the recipe does not train a teacher {name!r}; add teachers.{name}.train")
    config = teacher.train
    reward = session.judge(config.reward)
    prompts = session.prompts(config.prompts, "train")
    conditioning = session.encode(prompts)
    session.create(name, config.adapter)
    trainer = Trainer(session.adapters.parameters(name), config.optim)
    session.adapters.check_trainable(trainer.parameters, name)
    stage = f"teacher:{name}"
    identity = session.recipe.model_dump(mode="json", include={"base", "revision", "resolution", "seed"})
    identity |= {"teacher": config.model_dump(mode="json"), "sha256": session.hashes([])}
    identity |= {"sha256_prompts": session.prompt_hashes()[f"{config.prompts}.train"]}
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
        self.session, self.config, self.reward, self.prompts = session, config, reward, prompts
        policy, reference = (session.field(model, config.sampling.guidance, conditioning) for model in (name, BASE))
        place = Place(session.model.grid(config.sampling.steps), session.latent_shape(), session.recipe.seed)
        self.learner = LEARNERS[config.loss](policy, reference, place, config, conditioning)

    def __call__(self, step: int) -> dict[str, float]:
        prompts = self._choose(step)
        drawn = self.learner.draw(step, prompts)
        rewards = self._judge(drawn.latents, [prompt for prompt in prompts for _ in range(self.config.group)])
        metrics = self.learner.learn(drawn, group_advantages(rewards, self.config.group).to(drawn.latents.device))
        grouped = rewards.reshape(-1, self.config.group)
        return metrics | {
            "reward": float(rewards.mean()),
            "reward_spread": float(grouped.std(1).mean()),
            "flat_groups": float((grouped.amax(1) == grouped.amin(1)).float().mean()),
        }

    def _judge(self, latents: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        size = self.config.micro_batch
        pictures = np.concatenate([self.session.model.decode(part) for part in latents.split(size)])
        scores = self.reward(pictures, prompts)
        values = scores.details[self.config.detail] if self.config.detail else scores.value
        return torch.from_numpy(np.asarray(values, np.float32))

    def _choose(self, step: int) -> list[Prompt]:
        """The prompts of this update, all different."""
        rng = np.random.default_rng(seed_of(self.session.recipe.seed, "prompts", step))
        chosen = rng.choice(len(self.prompts), min(self.config.prompts_per_update, len(self.prompts)), replace=False)
        return [self.prompts[i] for i in chosen]
