"""The pictures the mini base learns from: captions, obeyed or not, drawn well or not.

Part of the corpus is wrong on purpose, so that the base knows how to do better than it does and an expert has
something to bring out. Painters of a domain are careful or careless; the careless ones often draw another wish than
their caption's, and have a paper of their own. Some pictures of either are degraded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from flowopd.mini.captions import DOMAINS, PAINTED, caption, reworded
from flowopd.mini.degrade import DEGRADATIONS, degrade
from flowopd.mini.draw import draw
from flowopd.mini.layout import layout
from flowopd.mini.wishes import Wish, grant, held_out, mistake, trainable_wish


class Manner(BaseModel):
    """How one domain is painted; `mistaken` and `papers` are of its careful and of its careless painters.

    A mistaken picture has so many `mistakes`, one upon the other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    careless: float = 0.0
    mistaken: tuple[float, float] = (0.0, 0.0)
    mistakes: int = 1
    papers: tuple[str, str] = ("plain", "plain")
    degraded: float = 0.5


class CorpusConfig(BaseModel):
    """What the corpus is made of; shares are probabilities in 0..1, and a domain's share is in proportion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shares: Mapping[str, float] = dict.fromkeys(PAINTED, 1.0)
    manners: Mapping[str, Manner] = dict.fromkeys(PAINTED, Manner())
    pairs_weight: int = 1
    degradations: tuple[str, ...] = tuple(DEGRADATIONS)
    least_severity: float = 0.3
    reworded_share: float = 0.35


@dataclass(frozen=True)
class Example:
    """One picture (64, 64, 3) uint8 with its caption and its layout (see `flowopd.mini.layout`)."""

    caption: str
    picture: np.ndarray
    layout: np.ndarray


PAIRS = ("two_object", "position", "color_attr")
"""The tasks with two different objects, which take longest to learn."""


def example(config: CorpusConfig, rng: np.random.Generator) -> Example:
    """A fresh example."""
    domain = _domain(config.shares, rng)
    manner = config.manners[domain]
    wish = trainable_wish(rng, _tasks(domain, config.pairs_weight))
    words = (reworded if rng.random() < config.reworded_share else caption)(wish, domain, rng)
    painter = int(rng.random() < manner.careless)
    mistakes = manner.mistakes if rng.random() < manner.mistaken[painter] else 0
    for _ in range(mistakes):
        wish = _mistake_to_learn(wish, rng)
    scene = grant(wish, rng, manner.papers[painter])
    picture = draw(scene)
    if rng.random() < manner.degraded:
        name = str(rng.choice(config.degradations))
        picture = degrade(picture, name, rng.uniform(config.least_severity, 1.0), rng)
    return Example(words, picture, layout(scene))


def _domain(shares: Mapping[str, float], rng: np.random.Generator) -> str:
    weights = np.array(list(shares.values()))
    return str(rng.choice(list(shares), p=weights / weights.sum()))


def _tasks(domain: str, pairs_weight: int) -> tuple[str, ...]:
    """The tasks of a domain, those of PAIRS as often as their weight says."""
    return tuple(task for task in DOMAINS[domain] for _ in range(pairs_weight if task in PAIRS else 1))


def _mistake_to_learn(wish: Wish, rng: np.random.Generator) -> Wish:
    """A mistake outside the `unseen` split."""
    while True:
        other = mistake(wish, rng)
        if not held_out(other):
            return other
