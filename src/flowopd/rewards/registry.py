"""Rewards by name: the names that recipes and commands use."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module

from flowopd.errors import ConfigError
from flowopd.rewards.base import Reward


def _later(module: str, name: str) -> Callable[[], Reward]:
    """Builds `name` of a module here, imported only then: a reward's parts are needed by those who use it."""

    def build() -> Reward:
        reward: Reward = getattr(import_module(f"flowopd.rewards.{module}"), name)()
        return reward

    return build


REWARDS: dict[str, Callable[[], Reward]] = {
    "mini_geneval": _later("mini_geneval", "MiniGeneval"),
    "ocr": _later("ocr", "Ocr"),
    "mini_quality": _later("mini_quality", "MiniQuality"),
    "mini_holdout": _later("mini_holdout", "MiniHoldout"),
}


def check_reward(name: str) -> None:
    """Raises ConfigError for a name that is not in REWARDS."""
    if name not in REWARDS:
        near = get_close_matches(name, REWARDS, n=1, cutoff=0.0)[0]
        raise ConfigError(f"there is no reward {name!r}; did you mean {near!r}? Known: {', '.join(REWARDS)}")


def make_reward(name: str) -> Reward:
    """A reward, ready to score. Raises ConfigError for a name that is not in REWARDS."""
    check_reward(name)
    return REWARDS[name]()
