"""Wish -> words: the plain phrasing of each domain, and other words for the same thing.

A domain is what a prompt file is about and the label its prompts are routed by: `composition` (GenEval's tasks),
`text` (signs), `quality` (any objects, drawn well) and `preference` (objects asked for in bare words, as people do).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from flowopd.mini.wishes import Part, Wish
from flowopd.mini.world import NUMBERS, PLURALS, TASKS, Sign

DOMAINS = {"composition": TASKS, "text": ("text",), "quality": TASKS, "preference": TASKS}
"""The tasks of each domain; a domain is the label that its prompts are routed by."""

PAINTED = ("composition", "text", "quality")
"""The domains whose captions the base was taught; it has to make what it can of bare words."""

LEADS = {
    "composition": ("a photo of", "a picture of", "an image of"),
    "quality": ("a drawing of", "an illustration of", "a painting of"),
    "preference": ("",),
}
SIGNS = ('{plate} that says "{text}"', '{plate} with the text "{text}"', '{plate} saying "{text}"')


@dataclass(frozen=True)
class Style:
    """Sentences by task for the same wish, how they say relations, and the tails that tell the domains apart."""

    signs: tuple[str, ...]
    sentences: Mapping[str, tuple[str, ...]]
    relations: Mapping[str, str]
    tails: Mapping[str, str]


IN_OTHER_WORDS = Style(
    signs=(
        '"{text}" is written on {plate}',
        'the letters "{text}" on a sign that is {colour}',
        'there is {plate} and it reads "{text}"',
    ),
    sentences={
        "single_object": ("there is {a}", "{a} is shown here", "just {a}"),
        "two_object": ("there is {a} together with {b}", "{a} with {b}", "both {a} and {b} are shown here"),
        "counting": ("there are {n} {many}", "{n} {many} are shown here", "{many} , {n} of them"),
        "colors": ("there is {ka} that is {ca}", "{ka} painted {ca}", "{ka} and it is {ca}"),
        "position": ("{rel} {b} there is {a}", "there is {a} {rel} {b}", "{a} is shown {rel} {b}"),
        "color_attr": (
            "{ka} that is {ca} and {kb} that is {cb}",
            "there is {a} together with {b}",
            "{ka} painted {ca} with {kb} painted {cb}",
        ),
    },
    relations={
        "left of": "to the left side of",
        "right of": "to the right side of",
        "above": "over",
        "below": "under",
    },
    tails={"quality": " , a drawing", "preference": " , just that"},
)
"""How the split `rewritten` asks for what the test prompts ask for."""

TAUGHT = 2
"""Of the sentences for a task so many, the first ones, may stand beside a training prompt."""

FOR_TRAINING = replace(
    IN_OTHER_WORDS,
    signs=IN_OTHER_WORDS.signs[:TAUGHT],
    sentences={task: sentences[:TAUGHT] for task, sentences in IN_OTHER_WORDS.sentences.items()},
)
"""How training prompts may ask too; a third of `rewritten` asks as none of them does."""


def caption(wish: Wish, domain: str, rng: np.random.Generator) -> str:
    """The plain phrasing of a wish in its domain."""
    if wish.sign is not None:
        return _sign(str(rng.choice(SIGNS)), wish.sign)
    lead = str(rng.choice(LEADS[domain]))
    joint = f" {wish.relation} " if wish.relation else " and "
    return f"{lead} {joint.join(_noun(part) for part in wish.parts)}".strip()


def reworded(wish: Wish, domain: str, rng: np.random.Generator) -> str:
    """The same wish in sentences that no plain phrasing uses; the domain still shows, by its tail."""
    return worded(wish, domain, IN_OTHER_WORDS, rng)


def worded(wish: Wish, domain: str, style: Style, rng: np.random.Generator) -> str:
    """A wish of a domain in one of a style's sentences."""
    if wish.sign is not None:
        return _sign(str(rng.choice(style.signs)), wish.sign)
    return _filled(str(rng.choice(style.sentences[wish.task])), wish, style) + style.tails.get(domain, "")


def _filled(sentence: str, wish: Wish, style: Style) -> str:
    first, second = wish.parts[0], wish.parts[-1]
    return sentence.format(
        a=_noun(first),
        b=_noun(second),
        ka=_noun(Part(first.kind)),
        kb=_noun(Part(second.kind)),
        ca=first.colour,
        cb=second.colour,
        n=NUMBERS.get(first.count),
        many=PLURALS[first.kind],
        rel=style.relations.get(wish.relation or ""),
    )


def _sign(template: str, sign: Sign) -> str:
    plate = _noun(Part("sign", colour=sign.colour))
    return template.format(plate=plate, colour=sign.colour, text=sign.text)


def _noun(part: Part) -> str:
    """`a red heart`, `an arrow`, `three hearts`."""
    words = [part.colour] if part.colour else []
    if part.count > 1:
        return " ".join([NUMBERS[part.count], *words, PLURALS[part.kind]])
    words.append(part.kind)
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])
