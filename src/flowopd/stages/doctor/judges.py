"""Every judge of a recipe, loaded, tried on golden pictures, and on the first prompts it will be asked about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from flowopd.recipe import Recipe
from flowopd.rewards import Reward
from flowopd.rewards.drawn import golden
from flowopd.rewards.golden import faults
from flowopd.session import Session
from flowopd.stages.doctor.check import FAILED, OK, WARNING, Check, looked
from flowopd.stages.sample import spread

LIBRARIES = (ImportError, OSError, RuntimeError, ValueError, KeyError)
"""What the libraries beneath judges raise for weights that do not fit and devices that run out of memory."""

TRIED = 4
"""Prompts of a source that a judge is asked about."""


@dataclass(frozen=True)
class Use:
    """The prompts that a judge is asked about, and the detail of its scores that is trained on, if any."""

    label: str
    split: str
    detail: str | None = None


def judges(session: Session) -> Iterator[Check]:
    """One check for each judge, and one for each use of those that load."""
    for name, uses in _uses(session.recipe).items():
        seat: list[Reward] = []
        yield looked(f"judge {name}", partial(_sound, session, name, seat), LIBRARIES)
        for judge in seat:
            for use in uses:
                where = f"judge {name} on {use.label}.{use.split}"
                yield looked(where, partial(_use, session, name, judge, use, where), LIBRARIES)


def _uses(recipe: Recipe) -> dict[str, list[Use]]:
    """The judges of a recipe by name, each with its uses, once."""
    uses = [(task.reward, Use(task.prompts, "train", task.detail)) for task in recipe.rewarded()]
    if recipe.evaluate is not None:
        metrics = recipe.evaluate.metrics.values()
        uses += [(metric.reward, Use(metric.prompts, recipe.evaluate.split)) for metric in metrics]
    return {name: list(dict.fromkeys(use for other, use in uses if other == name)) for name, _ in uses}


def _sound(session: Session, name: str, seat: list[Reward]) -> Check:
    """Loads a judge into its seat, and looks for faults."""
    judge = session.judge(name)
    seat.append(judge)
    pictures = golden(name)
    found = faults(judge, pictures)
    if not found:
        value = judge(pictures.pictures, pictures.prompts).value
        shown = ", ".join(f"{score:.3g}" for score in value)
        known = ", the right ones above the wrong ones" if pictures.better else ""
        return Check(f"judge {name}", OK, f"scores {len(value)} golden pictures {shown}{known}")
    state = FAILED if any(fault.certain for fault in found) else WARNING
    fact = ", and ".join(fault.text for fault in found)
    return Check(f"judge {name}", state, fact, f"mend the reward, or what judges.{name} of the recipe points at")


def _use(session: Session, name: str, judge: Reward, use: Use, where: str) -> Check:
    """A judge is asked about a few prompts of a source, each beside a golden picture."""
    prompts = spread(session.prompts(use.label, use.split), TRIED)
    picture = golden(name).pictures[:1]
    scores = judge(np.repeat(picture, len(prompts), 0), prompts)
    if use.detail is not None and use.detail not in scores.details:
        known = ", ".join(scores.details) or "none"
        return Check(where, FAILED, f"its scores have no detail {use.detail!r}", f"take one of: {known}")
    return Check(where, OK, f"takes {len(prompts)} of its prompts")
