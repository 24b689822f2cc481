"""Golden pictures, drawn when they are asked for: which ones, for which reward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flowopd.mini.degrade import degrade
from flowopd.mini.draw import draw
from flowopd.mini.wishes import Part, Wish, grant, metadata
from flowopd.prompts import Prompt
from flowopd.rewards.golden import Golden

SIDE = 256
"""Pixels along one side of a picture that is not of the mini world."""

LABEL = "golden"


def golden(reward: str) -> Golden:
    """The golden pictures of a reward by name; rewards that are not listed get ones that any judge can score."""
    return GOLDEN.get(reward, street)()


def street() -> Golden:
    """A stop sign, a street without one, a plain and a noisy picture: the prompt has objects, a colour and a word."""
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    pictures = [_stop_sign(), _plain((120, 170, 220), (90, 90, 95)), _plain((40, 150, 60), (40, 150, 60)), noise]
    include = [{"class": "stop sign", "count": 1}]
    asked = Prompt('a photo of a stop sign that says "STOP"', LABEL, {"tag": "single_object", "include": include})
    return Golden(np.stack(pictures), (asked,) * len(pictures))


def detected() -> Golden:
    """The street for judges that find objects: a drawn one need not convince a detector of photographs."""
    seen = street()
    return Golden(seen.pictures, seen.prompts, distinct=False)


def marked() -> Golden:
    """The street for judges with few marks, who may give it all the same one."""
    seen = street()
    return Golden(seen.pictures, seen.prompts, distinct=False)


def lettered() -> Golden:
    """Two signs, each beside one without its word."""
    words = [("ART", "ART"), ("ART", ""), ("NEXT", "NEXT"), ("NEXT", "MILK")]
    prompts = tuple(Prompt(f'a white sign that says "{asked}"', LABEL) for asked, _ in words)
    return Golden(np.stack([_sign(shown) for _, shown in words]), prompts, better=((0, 1), (2, 3)))


def shapes() -> Golden:
    """Pictures of the mini world that show what is asked for, each beside one that does not."""
    red, blue = (Wish("colors", (Part("circle", colour=colour),)) for colour in ("red", "blue"))
    two, three = (Wish("counting", (Part("star", count),)) for count in (2, 3))
    wishes = [
        (red, "a red circle", red),
        (red, "a red circle", blue),
        (two, "two stars", two),
        (two, "two stars", three),
    ]
    prompts = tuple(Prompt(f"a photo of {text}", LABEL, metadata(asked, text)) for asked, text, _ in wishes)
    return Golden(np.stack([_granted(shown) for *_, shown in wishes]), prompts, better=((0, 1), (2, 3)))


def worn() -> Golden:
    """Pictures of the mini world, each beside itself spoilt."""
    rng = np.random.default_rng(1)
    clean = [_granted(Wish("single_object", (Part(kind),))) for kind in ("heart", "tree")]
    spoilt = [degrade(picture, fault, 0.8, rng) for picture, fault in zip(clean, ("blur", "grain"), strict=True)]
    prompts = tuple(Prompt(f"a drawing of a {kind}", LABEL) for kind in ("heart", "heart", "tree", "tree"))
    return Golden(np.stack([clean[0], spoilt[0], clean[1], spoilt[1]]), prompts, better=((0, 1), (2, 3)))


GOLDEN: Mapping[str, Callable[[], Golden]] = {
    "geneval": detected,
    "ocr": lettered,
    "unifiedreward": marked,
    "qwenvl": marked,
    "mini_geneval": shapes,
    "mini_quality": worn,
    "mini_preference": worn,
    "mini_holdout": worn,
}


def _granted(wish: Wish) -> np.ndarray:
    return draw(grant(wish, np.random.default_rng(0)))


def _plain(sky: tuple[int, int, int], ground: tuple[int, int, int]) -> np.ndarray:
    picture = Image.new("RGB", (SIDE, SIDE), sky)
    ImageDraw.Draw(picture).rectangle((0, 0.75 * SIDE, SIDE, SIDE), fill=ground)
    return np.asarray(picture)


def _stop_sign() -> np.ndarray:
    picture = Image.fromarray(_plain((120, 170, 220), (90, 90, 95)))
    pen, middle = ImageDraw.Draw(picture), (0.5 * SIDE, 0.4 * SIDE)
    pen.rectangle((0.48 * SIDE, 0.4 * SIDE, 0.52 * SIDE, 0.95 * SIDE), fill=(150, 150, 155))
    for radius, ink in ((0.32, (250, 250, 250)), (0.295, (190, 20, 30))):
        corners = [(middle[0] + radius * SIDE * cos(a), middle[1] + radius * SIDE * sin(a)) for a in _octagon()]
        pen.polygon(corners, fill=ink)
    pen.text(middle, "STOP", font=_font(0.2), fill=(250, 250, 250), anchor="mm")
    return np.asarray(picture)


def _octagon() -> list[float]:
    return [pi / 8 + i * pi / 4 for i in range(8)]


def _sign(text: str) -> np.ndarray:
    picture = Image.new("RGB", (SIDE, SIDE), (110, 140, 120))
    pen = ImageDraw.Draw(picture)
    pen.rounded_rectangle((16, 70, SIDE - 16, SIDE - 70), radius=12, fill=(250, 250, 250))
    pen.text((SIDE / 2, SIDE / 2), text, font=_font(0.28), fill=(20, 20, 22), anchor="mm")
    return np.asarray(picture)


def _font(height: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own, of a height in sides of the picture."""
    return ImageFont.load_default(height * SIDE)
