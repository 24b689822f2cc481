"""The pictures the mini base learns from: captions, obeyed or not, drawn well or not.

Part of the corpus is wrong on purpose, so that the base knows how to do better than it does and an expert has
something to bring out: some pictures show another wish than their caption's, some are degraded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from flowopd.mini.captions import caption, reworded
from flowopd.mini.degrade import DEGRADATIONS, degrade
from flowopd.mini.draw import draw
from flowopd.mini.layout import layout
from flowopd.mini.wishes import Wish, grant, held_out, mistake, trainable_wish
from flowopd.mini.world import TASKS


class CorpusConfig(BaseModel):
    """What the corpus is made of; shares are probabilities in 0..1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mistaken_objects: float = 0.25
    mistaken_text: float = 0.35
    degraded: float = 0.5
    degradations: tuple[str, ...] = tuple(DEGRADATIONS)
    least_severity: float = 0.3
    text_share: float = 0.3
    reworded_share: float = 0.35


@dataclass(frozen=True)
class Example:
    """One picture (64, 64, 3) uint8 with its caption and its layout (see `flowopd.mini.layout`)."""

    caption: str
    picture: np.ndarray
    layout: np.ndarray


def example(config: CorpusConfig, rng: np.random.Generator) -> Example:
    """A fresh example."""
    text = rng.random() < config.text_share
    wish = trainable_wish(rng, ("text",) if text else TASKS)
    words = _words(wish, config, rng)
    mistaken = rng.random() < (config.mistaken_text if text else config.mistaken_objects)
    scene = grant(_mistake_to_learn(wish, rng) if mistaken else wish, rng)
    picture = draw(scene)
    if rng.random() < config.degraded:
        name = str(rng.choice(config.degradations))
        picture = degrade(picture, name, rng.uniform(config.least_severity, 1.0), rng)
    return Example(words, picture, layout(scene))


def _words(wish: Wish, config: CorpusConfig, rng: np.random.Generator) -> str:
    if rng.random() < config.reworded_share:
        return reworded(wish, rng)
    return caption(wish, "quality" if rng.random() < 0.4 else "composition", rng)


def _mistake_to_learn(wish: Wish, rng: np.random.Generator) -> Wish:
    """A mistake outside the `unseen` split."""
    while True:
        other = mistake(wish, rng)
        if not held_out(other):
            return other
