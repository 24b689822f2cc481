"""Rewards by name: the names that recipes and commands use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import torch

from flowopd.errors import ConfigError
from flowopd.prompts import Prompt
from flowopd.rewards.base import JudgeConfig, Reward
from flowopd.rewards.own import OwnEntry, announced, is_path
from flowopd.rewards.remote import Remote

NET = ("model",)
"""What a judge takes whose net runs here, on a device."""

CODE = (*NET, "trust_remote_code")
"""What a judge takes whose net comes with code of its own."""

CHAT = ("model", "url", "token", "deadline", "retries")
"""What a judge takes that asks a model behind an endpoint. Any other judge with a `url` is a client of its server."""


@dataclass(frozen=True)
class Entry:
    """A reward's class in a module here, which is imported when it is used, and the settings of `judges` it takes.

    `checks` is for a class that looks at what it needs before it is built, as those of CODE and CHAT do; `asks` for one
    that cannot judge every prompt, and says which (`check_prompt`).
    """

    module: str
    name: str
    takes: tuple[str, ...] = ()
    checks: bool = False
    asks: bool = False

    def check(self, name: str, config: JudgeConfig) -> None:
        """Raises ConfigError for a setting that would be ignored, and for one, or a library, that is lacking."""
        fields = JudgeConfig.model_fields
        idle = [key for key in fields if key not in self.takes and getattr(config, key) != fields[key].default]
        if idle:
            mend = "leave it out of judges" + (f", or add judges.{name}.url" if idle[0] in CHAT[1:] else "")
            raise ConfigError(f"{name} takes no {idle[0]!r}, got {getattr(config, idle[0])!r}; {mend}")
        if self.checks or self.takes in (CODE, CHAT):
            self._class.check(config)

    def check_prompts(self, prompts: Iterable[Prompt]) -> None:
        """Raises DataError for a prompt that it cannot judge, as far as that is known before it is built."""
        for prompt in prompts if self.asks else ():
            self._class.check_prompt(prompt)

    def build(self, device: str | torch.device, config: JudgeConfig) -> Reward:
        """The reward, its net on the device if it has one here."""
        if self.takes == CHAT:
            return self._class(config)
        chosen = {key: getattr(config, key) for key in self.takes if getattr(config, key) is not None}
        return self._class(**chosen, **({"device": device} if self.takes else {}))

    @property
    def _class(self) -> Any:
        return getattr(import_module(f"flowopd.rewards.{self.module}"), self.name)


REWARDS: Mapping[str, Entry] = {
    "geneval": Entry("geneval", "Geneval", NET, asks=True),
    "ocr": Entry("ocr", "Ocr", checks=True, asks=True),
    "pickscore": Entry("pickscore", "PickScore", NET),
    "clipscore": Entry("clipscore", "ClipScore", NET),
    "aesthetic": Entry("aesthetic", "Aesthetic", NET),
    "imagereward": Entry("imagereward", "ImageReward", NET),
    "hpsv2": Entry("hpsv2", "HpsV2", NET),
    "deqa": Entry("deqa", "Deqa", CODE),
    "unifiedreward": Entry("unifiedreward", "UnifiedReward", CHAT),
    "qwenvl": Entry("qwenvl", "QwenVl", CHAT),
    "mini_geneval": Entry("mini_geneval", "MiniGeneval", asks=True),
    "mini_quality": Entry("mini_quality", "MiniQuality"),
    "mini_preference": Entry("mini_preference", "MiniPreference"),
    "mini_holdout": Entry("mini_holdout", "MiniHoldout"),
}


def known_rewards() -> list[str]:
    """The names of all rewards: ours, and those that installed packages announce."""
    return [*REWARDS, *(name for name in announced() if name not in REWARDS)]


def check_reward(name: str, config: JudgeConfig | None = None) -> None:
    """Raises ConfigError for settings that a reward does not take, or lacks, and for a name that is no reward's.

    With a `url` any name will do: its server is asked whether it is that reward's when the reward is made.
    """
    config = config or JudgeConfig()
    return Remote.check(name, config) if _is_elsewhere(name, config) else _entry(name).check(name, config)


def check_prompts(name: str, prompts: Iterable[Prompt]) -> None:
    """Raises DataError for a prompt that a reward of ours cannot judge, as far as that is known without its weights."""
    if name in REWARDS:
        REWARDS[name].check_prompts(prompts)


def make_reward(name: str, device: str | torch.device = "cpu", config: JudgeConfig | None = None) -> Reward:
    """A reward, ready to score: its nets on `device`, or on the server at `config.url`.

    It is one of REWARDS, one that an installed package announces in the entry points of `flowopd.rewards`, or any class
    by `module:Class` (see `rewards.own`). Raises ConfigError as `check_reward` does, for a server that is not there,
    and for a device that is not here.
    """
    config = config or JudgeConfig()
    check_reward(name, config)
    if _is_elsewhere(name, config):
        return Remote(name, config)
    check_device(device)
    entry = _entry(name)
    return entry.build(name, device) if isinstance(entry, OwnEntry) else entry.build(device, config)


def check_device(device: str | torch.device) -> None:
    """Raises ConfigError for a device that is not here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(f"no device {str(device)!r} here ({reason}); take cpu, cuda or cuda:N") from None


def _is_elsewhere(name: str, config: JudgeConfig) -> bool:
    """Whether a reward is a server's; a chat judge is here, and its url is where it puts its questions."""
    return config.url is not None and not (name in REWARDS and REWARDS[name].takes == CHAT)


def _entry(name: str) -> Entry | OwnEntry:
    """Who makes a reward; a name of ours is never another package's."""
    if name in REWARDS:
        return REWARDS[name]
    path = name if is_path(name) else announced().get(name)
    if path is None:
        known = known_rewards()
        near = get_close_matches(name, known, n=1, cutoff=0.0)[0]
        mend = f"did you mean {near!r}? Known: {', '.join(known)}, or module:Class"
        raise ConfigError(f"there is no reward {name!r}; {mend}")
    return OwnEntry(path)
