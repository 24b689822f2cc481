"""Blind trials: two pictures whose makers are told only after one of them was picked."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from flowopd.errors import ConfigError, DataError
from flowopd.studio.easel import Easel, Wish
from flowopd.studio.preferences import Preference, record

PENDING = 64
"""Trials that may wait for an answer; the oldest are forgotten."""


class Question(BaseModel):
    """Two models to hold against each other on one prompt and seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, str]
    prompt: str = Field(min_length=1, max_length=2000)
    seed: int = Field(0, ge=0, lt=2**53)
    steps: int = Field(10, ge=1, le=100)

    def wishes(self) -> list[Wish]:
        """The two pictures."""
        rest = self.model_dump(include={"prompt", "seed", "steps"})
        return [Wish(model=model, **rest) for model in self.models]


class Answer(BaseModel):
    """The picture that was picked, as they were shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    choice: Literal["left", "right", "tie"]


@dataclass(frozen=True)
class Trial:
    """A question whose pictures were drawn; `order` is which of its models stands left and which right."""

    run: Path
    question: Question
    order: tuple[int, int]
    pictures: tuple[bytes, bytes]


@dataclass(frozen=True)
class Told:
    """Who drew the left and the right picture of a trial in a run, and who was chosen; None is a tie."""

    run: Path
    left: str
    right: str
    chosen: str | None


class Blind:
    """The trials that wait for an answer."""

    def __init__(self, easel: Easel) -> None:
        self._easel, self._lock = easel, Lock()
        self._trials: OrderedDict[str, Trial] = OrderedDict()

    def ask(self, run: Path, question: Question) -> str:
        """Draw both pictures in an order that nobody knows; returns the trial's name.

        Raises ConfigError for a model against itself, and whatever drawing raises.
        """
        if question.models[0] == question.models[1]:
            raise ConfigError(f"{question.models[0]} cannot be held against itself; choose two models")
        drawn = [self._easel.draw(run, wish).png for wish in question.wishes()]
        order = secrets.choice(((0, 1), (1, 0)))
        name = secrets.token_urlsafe(12)
        with self._lock:
            self._trials[name] = Trial(run, question, order, (drawn[order[0]], drawn[order[1]]))
            while len(self._trials) > PENDING:
                self._trials.popitem(last=False)
        return name

    def picture(self, name: str, place: int) -> bytes:
        """The left (0) or right (1) picture of a trial, as PNG. Raises DataError if it is over."""
        with self._lock:
            return self._known(name).pictures[place]

    def answer(self, name: str, answer: Answer) -> Told:
        """Keep an answer in the run's folder, and tell who drew which; the trial is over.

        Raises DataError if it was over already, or the answer cannot be written.
        """
        with self._lock:
            trial = self._known(name)
            preference = _preference(trial, answer)
            record(trial.run, preference)
            del self._trials[name]
        left, right = (trial.question.models[place] for place in trial.order)
        return Told(trial.run, left, right, preference.chosen)

    def _known(self, name: str) -> Trial:
        trial = self._trials.get(name)
        if trial is None:
            raise DataError("this comparison was answered already, or forgotten; ask for the next")
        return trial


def _preference(trial: Trial, answer: Answer) -> Preference:
    asked = trial.question
    places = {"left": trial.order[0], "right": trial.order[1]}
    place = places.get(answer.choice)
    return Preference(
        time=round(time.time(), 3),
        prompt=asked.prompt,
        seed=asked.seed,
        steps=asked.steps,
        models=asked.models,
        chosen=None if place is None else asked.models[place],
    )
