"""GRPO-Mix, the baseline of Flow-OPD (2605.08063): one policy trained on all rewards at once."""

from __future__ import annotations

from pathlib import Path

from flowopd.configs import MixConfig
from flowopd.errors import ConfigError
from flowopd.identity import lasting
from flowopd.lora_file import read_lora, sha256_of
from flowopd.results import GRPO_MIX
from flowopd.session import Session
from flowopd.stages.grpo import Policy, train_policy


def train_mix(session: Session) -> Path:
    """Train the recipe's `grpo_mix`, from the base or the cold start; returns its adapter's folder, OUT/grpo_mix.

    Raises ConfigError if the recipe has none, or names an unknown reward or label.
    """
    config = session.recipe.grpo_mix
    if config is None:
        raise ConfigError("the recipe has no `grpo_mix`; add its tasks")
    started = session.out / "coldstart" if config.start == "coldstart" else None
    identity = {
        "grpo_mix": lasting(config),
        "sha256_coldstart": sha256_of(started) if started else None,
    }
    return train_policy(session, mix_policy(config), identity, read_lora(started) if started else None)


def mix_policy(config: MixConfig) -> Policy:
    """What is trained on all tasks at once."""
    return Policy(GRPO_MIX, GRPO_MIX, GRPO_MIX, config, list(config.tasks.values()))
