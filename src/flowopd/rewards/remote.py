"""A reward that runs elsewhere: in another environment, on another machine, behind `flowopd serve-reward`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

import flowopd.rewards.wire as wire
from flowopd.errors import ConfigError, DataError, FlowOpdError
from flowopd.prompts import Prompt
from flowopd.rewards.base import JudgeConfig, Scores
from flowopd.rewards.http import BUSY, Endpoint
from flowopd.rewards.pairs import check_pairs

SERVERS = ("model", "trust_remote_code")
"""The settings of a judge that are given to its server, not to its clients."""

FRAME = len('{"prompts":[],"pictures":[]}')
MARKS = len(',"",')
"""Bytes of a request around its items, and around each of them."""


class Remote:
    """Scores pictures (B, H, W, 3) by the reward `name` of the server at `config.url`, bit for bit as it does itself.

    A batch goes in as many requests as the server's limits ask for. A request is sent again where no server is met or
    it is busy, `config.retries` times, and given up after `config.deadline` seconds.

    Makes contact when it is built, within seconds. Raises ConfigError if there is no such server or it refuses the
    token; in use, DataError if pictures and prompts are refused, or the answer is not one score in 0..1 a picture.
    """

    def __init__(self, name: str, config: JudgeConfig) -> None:
        self.check(name, config)
        self._name = name
        self._endpoint = Endpoint(config.url or "", config.token, config.deadline, config.retries, BUSY)
        self._limits = self._meet().limits

    @classmethod
    def check(cls, name: str, config: JudgeConfig) -> None:
        """Raises ConfigError if there is no url to ask, and for a setting that is the server's own."""
        if config.url is None:
            raise ConfigError(f"judges.{name} has no url; add the one that `flowopd serve-reward {name}` prints")
        theirs = config.model_dump(include=set(SERVERS), exclude_defaults=True)
        if theirs:
            key, value = next(iter(theirs.items()))
            raise ConfigError(
                f"{name} takes no {key!r} beside its url, got {value!r}; leave it out of judges, and start its server "
                f"with --set {key}={value}"
            )

    def __call__(self, pictures: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        check_pairs(pictures, prompts)
        count = min(self._limits.pictures, self._limits.pixels // max(1, pictures[0:1, ..., 0].size))
        items = (self._item(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True))
        verdicts = [self._ask(part).scores() for part in packed(items, self._limits.bytes - FRAME, max(1, count))]
        names = verdicts[0].details.keys() if verdicts else set()
        if any(verdict.details.keys() != names for verdict in verdicts):
            raise DataError(f"{self._endpoint.at(wire.SCORE)} gives some pictures other details than others; mend it")
        return Scores(
            np.concatenate([np.zeros(0), *(verdict.value for verdict in verdicts)]),
            {name: np.concatenate([verdict.details[name] for verdict in verdicts]) for name in names},
        )

    def _meet(self) -> wire.Health:
        """What the server says of itself. Raises ConfigError unless it is ready to be this reward."""
        try:
            health = wire.Health.model_validate(self._endpoint.health(wire.HEALTH), strict=True)
        except ValidationError as error:
            raise ConfigError(f"{self._place} is no reward server ({wire.fault(error)}); mend its url") from None
        except FlowOpdError as error:
            raise ConfigError(f"judges.{self._name}: {error}") from None
        if health.reward != self._name:
            raise ConfigError(f"{self._place} serves {health.reward!r}; start one for {self._name!r}, or mend its url")
        if not health.ready:
            raise ConfigError(f"{self._place} is stuck in an earlier request; start it again")
        return health

    @property
    def _place(self) -> str:
        return f"judges.{self._name}: {self._endpoint.at(wire.HEALTH)}"

    def _item(self, picture: np.ndarray, prompt: Prompt) -> Item:
        sent = wire.SentPrompt.of(prompt).model_dump()
        try:
            written = json.dumps(sent, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError) as error:
            raise DataError(f"prompt {prompt.text!r} cannot be sent as JSON ({error}); mend its metadata") from None
        item = Item(sent, wire.to_png(picture), len(written))
        if item.size > self._limits.bytes - FRAME or picture[..., 0].size > self._limits.pixels:
            height, width, _ = picture.shape
            raise DataError(
                f"{self._endpoint.at(wire.SCORE)} takes no picture of {width} x {height} pixels and {item.size} bytes; "
                "start it with a larger --max-mib, or draw smaller pictures"
            )
        return item

    def _ask(self, part: Sequence[Item]) -> wire.Verdict:
        batch = {"prompts": [item.prompt for item in part], "pictures": [item.picture for item in part]}
        tree = self._endpoint.post_json(wire.SCORE, batch)
        try:
            return wire.read_verdict(tree, len(part))
        except ValueError as error:
            place = self._endpoint.at(wire.SCORE)
            raise DataError(f"{place} gives no scores of {len(part)} pictures: {error}; mend the reward") from None


@dataclass(frozen=True)
class Item:
    """A prompt and its picture as they travel; the prompt's JSON has `length` bytes."""

    prompt: Mapping[str, Any]
    picture: str
    length: int

    @property
    def size(self) -> int:
        """Bytes that it adds to a request."""
        return self.length + len(self.picture) + MARKS


def packed(items: Iterable[Item], size: int, count: int) -> Iterator[list[Item]]:
    """Items in their order, in parts of at most `count` items and `size` bytes; a larger item goes alone."""
    part: list[Item] = []
    for item in items:
        if part and (len(part) == count or sum(each.size for each in part) + item.size > size):
            yield part
            part = []
        part.append(item)
    if part:
        yield part
