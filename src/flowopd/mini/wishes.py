"""What a caption asks for (a `Wish`), the scenes that grant it, and the wishes it is mistaken for.

A wish becomes GenEval metadata (2310.11513) with `metadata`, so that prompt files of the mini world read like
GenEval's own; a sign's string travels between quotes, as OCR prompts have it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flowopd.mini.world import (
    COLOURS,
    JITTER,
    KINDS,
    LAYOUTS,
    LETTERS,
    NUMBERS,
    PAPERS,
    RADII,
    RELATIONS,
    TASKS,
    Scene,
    Sign,
    Thing,
)
from flowopd.noise import seed_of


@dataclass(frozen=True)
class Part:
    """`count` objects of one kind; a colour of None means any."""

    kind: str
    count: int = 1
    colour: str | None = None


@dataclass(frozen=True)
class Wish:
    """A task of GenEval with its parts, or the task `text` with a sign.

    `relation` holds between the first part and the second: `left of` means that the first is left of the second.
    """

    task: str
    parts: tuple[Part, ...] = ()
    relation: str | None = None
    sign: Sign | None = None


def metadata(wish: Wish, prompt: str) -> dict[str, Any]:
    """GenEval's record of a wish: `tag`, `include`, `exclude`, `prompt`."""
    include = [
        {"class": part.kind, "count": part.count} | ({"color": part.colour} if part.colour else {})
        for part in wish.parts
    ]
    if wish.relation:
        include = [include[1], include[0] | {"position": [wish.relation, 0]}]
    record: dict[str, Any] = {"tag": wish.task, "include": include, "prompt": prompt}
    if wish.task == "counting":
        record["exclude"] = [{"class": wish.parts[0].kind, "count": wish.parts[0].count + 1}]
    return record


def held_out(wish: Wish) -> bool:
    """Whether a wish belongs to the `unseen` split: never drawn while the base or an expert is trained."""
    if wish.sign is not None:
        return seed_of("sign", wish.sign.text) % 20 == 0
    if any(part.colour is not None and _pair_held_out(part.kind, part.colour) for part in wish.parts):
        return True
    kinds = sorted(KINDS.index(part.kind) for part in wish.parts)
    return len(kinds) == 2 and (kinds[1] - kinds[0]) == 5


def _pair_held_out(kind: str, colour: str) -> bool:
    return list(COLOURS).index(colour) == (3 * KINDS.index(kind) + 1) % len(COLOURS)


def random_wish(task: str, rng: np.random.Generator) -> Wish:
    """A wish of that task, drawn evenly from all of them."""
    first, second = (str(kind) for kind in rng.choice(KINDS, 2, replace=False))
    if task == "text":
        return Wish("text", sign=Sign(random_text(rng), _any_colour(rng)))
    if task == "single_object":
        return Wish(task, (Part(first),))
    if task == "counting":
        return Wish(task, (Part(first, int(rng.choice(list(NUMBERS)))),))
    if task == "colors":
        return Wish(task, (Part(first, colour=_any_colour(rng)),))
    if task == "two_object":
        return Wish(task, (Part(first), Part(second)))
    if task == "position":
        return Wish(task, (Part(first), Part(second)), relation=str(rng.choice(RELATIONS)))
    colours = [str(colour) for colour in rng.choice(list(COLOURS), 2, replace=False)]
    return Wish("color_attr", (Part(first, colour=colours[0]), Part(second, colour=colours[1])))


def random_text(rng: np.random.Generator) -> str:
    """Two or three characters of LETTERS."""
    return "".join(rng.choice(list(LETTERS), int(rng.integers(2, 4))))


def _any_colour(rng: np.random.Generator) -> str:
    return str(rng.choice(list(COLOURS)))


def grant(wish: Wish, rng: np.random.Generator, paper: str = "plain") -> Scene:
    """A scene that shows exactly what is wished, on one of PAPERS; what is left open is drawn at random."""
    background = _background(paper, rng)
    if wish.sign is not None:
        return Scene((), wish.sign, background)
    owners = [part for part in wish.parts for _ in range(part.count)]
    places = _places(wish, len(owners), rng)
    colours = {part.kind: part.colour or _free_colour(part.kind, rng) for part in wish.parts}
    radius = rng.uniform(*RADII[len(owners)])
    things = [
        Thing(
            part.kind,
            colours[part.kind],
            x + rng.uniform(-JITTER, JITTER),
            y + rng.uniform(-JITTER, JITTER),
            radius * rng.uniform(0.95, 1.05),
        )
        for part, (x, y) in zip(owners, places, strict=True)
    ]
    return Scene(tuple(things), None, background)


def _background(paper: str, rng: np.random.Generator) -> tuple[int, int, int]:
    grey = rng.integers(168, 193)
    red, green, blue = (grey + rng.integers(-5, 6, 3) + PAPERS[paper]).tolist()
    return red, green, blue


def _free_colour(kind: str, rng: np.random.Generator) -> str:
    return str(rng.choice([colour for colour in COLOURS if not _pair_held_out(kind, colour)]))


def _places(wish: Wish, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    if wish.relation is not None:
        beside, stacked = LAYOUTS[2]
        places = beside if wish.relation in ("left of", "right of") else stacked
        return list(places) if wish.relation in ("left of", "above") else list(reversed(places))
    layouts = LAYOUTS[count]
    places = layouts[int(rng.integers(len(layouts)))]
    return [places[i] for i in rng.permutation(count)]


def mistake(wish: Wish, rng: np.random.Generator) -> Wish:
    """Another wish that a careless painter takes this one for: one thing in it is wrong."""
    if wish.sign is not None:
        return replace(wish, sign=Sign(_misspell(wish.sign.text, rng), wish.sign.colour))
    if wish.relation is not None:
        return replace(wish, relation=str(rng.choice([r for r in RELATIONS if r != wish.relation])))
    if wish.task == "counting":
        part = wish.parts[0]
        return replace(
            wish, parts=(replace(part, count=int(rng.choice([n for n in (1, *NUMBERS) if n != part.count]))),)
        )
    parts = list(wish.parts)
    i = int(rng.integers(len(parts)))
    if parts[i].colour is not None:
        parts[i] = replace(parts[i], colour=str(rng.choice([c for c in COLOURS if c != parts[i].colour])))
    else:
        taken = {part.kind for part in parts}
        parts[i] = replace(parts[i], kind=str(rng.choice([k for k in KINDS if k not in taken])))
    return replace(wish, parts=tuple(parts))


def _misspell(text: str, rng: np.random.Generator) -> str:
    i = int(rng.integers(len(text)))
    return text[:i] + str(rng.choice([c for c in LETTERS if c != text[i]])) + text[i + 1 :]


def trainable_wish(rng: np.random.Generator, tasks: tuple[str, ...] = (*TASKS, "text")) -> Wish:
    """A random wish outside the `unseen` split, of a task drawn evenly."""
    while True:
        wish = random_wish(str(rng.choice(tasks)), rng)
        if not held_out(wish):
            return wish
