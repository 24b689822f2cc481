"""One expert by Flow-GRPO (2505.05470), on one reward."""

from __future__ import annotations

from pathlib import Path

from flowopd.configs import RewardConfig, TaskConfig
from flowopd.errors import ConfigError
from flowopd.identity import lasting
from flowopd.session import Session
from flowopd.stages.grpo import Policy, train_policy


def train_teacher(session: Session, name: str) -> Path:
    """Train the expert `name` of the recipe; returns its adapter's folder, OUT/teachers/NAME.

    Raises ConfigError if the recipe does not say how, or names an unknown reward.
    """
    teacher = session.recipe.teachers.get(name)
    if teacher is None or teacher.train is None:
        raise ConfigError(f"the recipe does not train a teacher {name!r}; add teachers.{name}.train")
    config = teacher.train
    task = TaskConfig(**config.model_dump(include=set(RewardConfig.model_fields)))
    policy = Policy(name, f"teacher:{name}", f"teachers/{name}", config, [task])
    return train_policy(session, policy, {"teacher": lasting(config)}, None)
