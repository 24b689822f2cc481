"""Scene -> picture: (64, 64, 3) uint8, drawn four times larger and averaged down."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flowopd.mini.world import COLOURS, SIZE, Scene, Sign, Thing

SCALE = 4
CELL = 16
"""Width in pixels of one character on a sign."""

PLATE = (1, 15, 63, 49)
"""Left, top, right and bottom of a sign's plate, in pixels."""

Point = tuple[float, float]


def draw(scene: Scene) -> np.ndarray:
    """The picture of a scene."""
    canvas = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), scene.background)
    for thing in scene.things:
        _paste(canvas, thing)
    if scene.sign is not None:
        _sign(ImageDraw.Draw(canvas), scene.sign)
    return np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX))


def silhouette(kind: str, radius: float, x: float, y: float) -> Image.Image:
    """An `L` mask of the enlarged canvas, 255 where an object of that kind, radius and centre (pixels) is."""
    mask = Image.new("L", (SIZE * SCALE, SIZE * SCALE), 0)
    pen = ImageDraw.Draw(mask)
    for polygon, ink in _outline(kind):
        pen.polygon([((x + px * radius) * SCALE, (y + py * radius) * SCALE) for px, py in polygon], fill=ink)
    return mask


def _paste(canvas: Image.Image, thing: Thing) -> None:
    canvas.paste(COLOURS[thing.colour], mask=silhouette(thing.kind, thing.radius, thing.x, thing.y))


def sign_origin(text: str) -> float:
    """Left edge, in pixels, of the first character's cell."""
    return SIZE / 2 - CELL * len(text) / 2


def _sign(pen: ImageDraw.ImageDraw, sign: Sign) -> None:
    pen.rounded_rectangle([v * SCALE for v in PLATE], radius=4 * SCALE, fill=COLOURS[sign.colour])
    middle = (PLATE[1] + PLATE[3]) / 2 * SCALE
    for i, letter in enumerate(sign.text):
        centre = (sign_origin(sign.text) + CELL * (i + 0.5)) * SCALE
        pen.text((centre, middle), letter, font=_font(), fill=ink_on(sign.colour), anchor="mm")


def ink_on(colour: str) -> tuple[int, int, int]:
    """Black or white, whichever can be read on that colour."""
    red, green, blue = COLOURS[colour]
    return COLOURS["white"] if 0.3 * red + 0.59 * green + 0.11 * blue < 140 else COLOURS["black"]


@cache
def _font() -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono-Bold.ttf"
    return ImageFont.truetype(str(path), 24 * SCALE)


def _arc(radius: float, start: float, stop: float, x: float = 0.0, y: float = 0.0, points: int = 40) -> list[Point]:
    turns = np.radians(np.linspace(start, stop, points))
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in turns]


def _star() -> list[Point]:
    angles = [math.radians(-90 + 36 * i) for i in range(10)]
    return [(r * math.cos(a), r * math.sin(a)) for a, r in zip(angles, [1.1, 0.45] * 5, strict=True)]


def _heart() -> list[Point]:
    turns = np.linspace(0, 2 * math.pi, 60)
    return [
        (
            math.sin(a) ** 3,
            -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16,
        )
        for a in turns
    ]


@cache
def _outline(kind: str) -> list[tuple[list[Point], int]]:
    """Polygons in units of the radius, y down, each with its ink: 255 adds, 0 cuts out."""
    outlines: dict[str, list[tuple[list[Point], int]]] = {
        "circle": [(_arc(1.0, 0, 360), 255)],
        "square": [([(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)], 255)],
        "triangle": [([(0, -1), (1.05, 0.9), (-1.05, 0.9)], 255)],
        "star": [(_star(), 255)],
        "heart": [(_heart(), 255)],
        "cross": [
            ([(-0.32, -1), (0.32, -1), (0.32, 1), (-0.32, 1)], 255),
            ([(-1, -0.32), (1, -0.32), (1, 0.32), (-1, 0.32)], 255),
        ],
        "moon": [(_arc(1.0, 0, 360), 255), (_arc(0.9, 0, 360, 0.5, -0.1), 0)],
        "arrow": [
            ([(-1, -0.25), (0.1, -0.25), (0.1, -0.8), (1.05, 0), (0.1, 0.8), (0.1, 0.25), (-1, 0.25)], 255),
        ],
        "ring": [(_arc(1.0, 0, 360), 255), (_arc(0.5, 0, 360), 0)],
        "tree": [
            ([(0, -1.1), (0.6, -0.3), (-0.6, -0.3)], 255),
            ([(0, -0.7), (0.85, 0.5), (-0.85, 0.5)], 255),
            ([(-0.2, 0.4), (0.2, 0.4), (0.2, 1.05), (-0.2, 1.05)], 255),
        ],
        "fish": [
            ([(0.2 + 0.85 * px, 0.55 * py) for px, py in _arc(1.0, 0, 360)], 255),
            ([(-0.45, 0), (-1.1, -0.6), (-1.1, 0.6)], 255),
        ],
        "bolt": [([(0.35, -1.1), (-0.7, 0.2), (-0.05, 0.2), (-0.35, 1.1), (0.7, -0.25), (0.05, -0.25)], 255)],
    }
    return outlines[kind]
