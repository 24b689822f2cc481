"""Rewards of one's own: those that installed packages announce, and any class by `module:Class`.

A package announces a reward by an entry point in the group `flowopd.rewards`, and it goes by the entry's name. A class
is made without arguments, or with `device` if it takes one; what it makes is called with pictures and prompts and gives
`Scores`, or the values (B,) alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import torch

from flowopd.errors import ConfigError, DataError, FlowOpdError
from flowopd.prompts import Prompt
from flowopd.rewards.base import JudgeConfig, Reward, Scores

GROUP = "flowopd.rewards"
"""The group of entry points that packages announce their rewards in."""


def is_path(name: str) -> bool:
    """Whether a reward's name means code: `module:Class`."""
    return ":" in name


def announced() -> dict[str, str]:
    """The `module:Class` of every reward that an installed package announces, by name; nothing is imported."""
    return {point.name: point.value for point in entry_points(group=GROUP)}


@dataclass(frozen=True)
class OwnEntry:
    """A reward by the path `module:Class` of what makes it; it is imported when it is checked or made."""

    path: str

    def check(self, name: str, config: JudgeConfig) -> None:
        """Raises ConfigError for settings of `judges`, of which it takes none, and for a path that leads nowhere."""
        if config != JudgeConfig():
            raise ConfigError(f"{name} is a reward of your own and takes no settings; leave it out of judges")
        self._maker(name)

    def build(self, name: str, device: str | torch.device) -> Reward:
        """The reward, its answers checked. Raises ConfigError if what is made cannot be called."""
        maker = self._maker(name)
        takes_device = "device" in inspect.signature(maker).parameters
        reward = maker(device=device) if takes_device else maker()
        if not callable(reward):
            raise ConfigError(
                f"reward {name} makes a {type(reward).__name__}, which cannot be called; give it __call__"
            )
        return Checked(name, reward)

    def _maker(self, name: str) -> Callable[..., Any]:
        module, _, attribute = self.path.partition(":")
        try:
            found = import_module(module)
        except ImportError as error:
            mend = "install it, or name its folder: PYTHONPATH=FOLDER flowopd ..."
            raise ConfigError(f"reward {name}: module {module!r} cannot be imported ({error}); {mend}") from None
        if not callable(getattr(found, attribute, None)):
            near = get_close_matches(attribute, dir(found), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; name a class, or a function that makes a reward"
            raise ConfigError(f"reward {name}: module {module!r} has no class {attribute!r}{hint}")
        maker = getattr(found, attribute)
        if asked := _required(maker):
            given = f"{', '.join(asked)} to be made, and is given a device at most"
            raise ConfigError(f"reward {name} asks for {given}; name a class, or a function that makes a reward")
        return maker


def _required(maker: Callable[..., Any]) -> list[str]:
    """What must be given to make a reward, apart from the device."""
    many = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(maker).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind not in many and p.name != "device"]


@dataclass(frozen=True)
class Checked:
    """A reward whose every answer is held to the contract: one finite value in 0..1 a picture."""

    name: str
    reward: Callable[[np.ndarray, Sequence[Prompt]], Any]

    def __call__(self, pictures: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        """The scores.

        Raises DataError if the reward fails, there is another number of scores than pictures, or one is not in 0..1.
        """
        try:
            answer = self.reward(pictures, prompts)
        except FlowOpdError:
            raise
        except Exception as error:
            told = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
            raise DataError(f"reward {self.name} failed ({told}); mend it, --debug shows where") from error
        scores = answer if isinstance(answer, Scores) else Scores(np.asarray(answer, np.float64))
        value = np.asarray(scores.value, np.float64)
        if value.shape != (len(pictures),):
            raise DataError(f"reward {self.name} gave values {value.shape} for {len(pictures)} pictures; give one each")
        wrong = np.flatnonzero(~((value >= 0) & (value <= 1)))
        if len(wrong):
            raise DataError(f"reward {self.name} gave {value[wrong[0]]:g} for picture {wrong[0]}; values are in 0..1")
        return Scores(value, scores.details)
