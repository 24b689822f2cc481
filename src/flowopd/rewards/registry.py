"""Rewards by name: the names that recipes and commands use."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import torch

from flowopd.errors import ConfigError
from flowopd.rewards.base import JudgeConfig, Reward

Builder = Callable[[str | torch.device, JudgeConfig], Reward]


def _plain(module: str, name: str) -> Builder:
    """Builds `name` of a module here, imported only then: a reward's parts are needed by those who use it."""

    def build(device: str | torch.device, config: JudgeConfig) -> Reward:
        if config.model is not None:
            raise ConfigError(f"{name} has no model to choose, got {config.model!r}; leave `model` out")
        return _found(module, name)()

    return build


def _on_device(module: str, name: str) -> Builder:
    """The same for a reward whose net, the published one or `config.model`, runs where it is told to."""

    def build(device: str | torch.device, config: JudgeConfig) -> Reward:
        chosen = {} if config.model is None else {"model": config.model}
        return _found(module, name)(device=device, **chosen)

    return build


def _with_code(module: str, name: str) -> Builder:
    """The same for a reward whose model comes with code of its own, which runs if the config trusts it."""

    def build(device: str | torch.device, config: JudgeConfig) -> Reward:
        chosen = {} if config.model is None else {"model": config.model}
        return _found(module, name)(device=device, trust_remote_code=config.trust_remote_code, **chosen)

    return build


def _asked(module: str, name: str) -> Builder:
    """The same for a reward that asks a model behind `config.url`, wherever that runs."""

    def build(device: str | torch.device, config: JudgeConfig) -> Reward:
        return _found(module, name)(config)

    return build


def _found(module: str, name: str) -> Any:
    return getattr(import_module(f"flowopd.rewards.{module}"), name)


REWARDS: dict[str, Builder] = {
    "geneval": _on_device("geneval", "Geneval"),
    "ocr": _plain("ocr", "Ocr"),
    "pickscore": _on_device("pickscore", "PickScore"),
    "clipscore": _on_device("clipscore", "ClipScore"),
    "aesthetic": _on_device("aesthetic", "Aesthetic"),
    "imagereward": _on_device("imagereward", "ImageReward"),
    "hpsv2": _on_device("hpsv2", "HpsV2"),
    "deqa": _with_code("deqa", "Deqa"),
    "unifiedreward": _asked("unifiedreward", "UnifiedReward"),
    "qwenvl": _asked("qwenvl", "QwenVl"),
    "mini_geneval": _plain("mini_geneval", "MiniGeneval"),
    "mini_quality": _plain("mini_quality", "MiniQuality"),
    "mini_preference": _plain("mini_preference", "MiniPreference"),
    "mini_holdout": _plain("mini_holdout", "MiniHoldout"),
}


ASKED = ("unifiedreward", "qwenvl")
"""Rewards that ask a model behind a url."""

NEEDS = {"deqa": ("deqa", "Deqa"), "unifiedreward": ("unifiedreward", "UnifiedReward"), "qwenvl": ("qwenvl", "QwenVl")}
"""Rewards that no default config can make: the module and the class, whose `check` says what a config lacks."""


def check_reward(name: str, config: JudgeConfig | None = None) -> None:
    """Raises ConfigError for a name that is not in REWARDS, and for a config that lacks what the reward needs, or has
    a url where it asks none."""
    if name not in REWARDS:
        near = get_close_matches(name, REWARDS, n=1, cutoff=0.0)[0]
        raise ConfigError(f"there is no reward {name!r}; did you mean {near!r}? Known: {', '.join(REWARDS)}")
    config = config or JudgeConfig()
    if config.url is not None and name not in ASKED:
        raise ConfigError(f"{name} runs in this process and asks no server, got url {config.url!r}; leave `url` out")
    if name in NEEDS:
        _found(*NEEDS[name]).check(config)


def make_reward(name: str, device: str | torch.device = "cpu", config: JudgeConfig | None = None) -> Reward:
    """A reward, ready to score, its nets on `device`. Raises ConfigError as `check_reward` does."""
    check_reward(name, config)
    return REWARDS[name](device, config or JudgeConfig())
