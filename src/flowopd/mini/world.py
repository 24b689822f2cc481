"""What exists in the mini world: objects, colours, letters, scenes, and where things may stand.

A picture is 64 x 64 pixels. It shows either one to four objects or one sign with a short string on it. Places are
tied to a coarse grid, so that a small model can learn them; colours and task names are GenEval's (2310.11513).
"""

from __future__ import annotations

from dataclasses import dataclass

SIZE = 64

KINDS = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "cross",
    "moon",
    "arrow",
    "ring",
    "tree",
    "fish",
    "bolt",
)
PLURALS = {kind: kind + "s" for kind in KINDS} | {"cross": "crosses", "fish": "fishes"}

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (245, 130, 25),
    "yellow": (248, 218, 45),
    "green": (40, 150, 60),
    "blue": (40, 80, 205),
    "purple": (125, 50, 165),
    "pink": (250, 150, 195),
    "brown": (120, 72, 35),
    "black": (20, 20, 22),
    "white": (250, 250, 250),
}

LETTERS = "ACEFHKLMNPRTUVXY34679"
"""Characters on signs: none that an OCR engine takes for another (no O/0, I/1, B/8, S/5, Z/2, D, G, J, Q, W)."""

NUMBERS = {2: "two", 3: "three", 4: "four"}
RELATIONS = ("left of", "right of", "above", "below")
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


@dataclass(frozen=True)
class Thing:
    """One object: its kind and colour, its centre in pixels (x right, y down) and its radius in pixels."""

    kind: str
    colour: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Sign:
    """A plate of one colour with 2 or 3 characters of LETTERS on it."""

    text: str
    colour: str


@dataclass(frozen=True)
class Scene:
    """Everything a picture shows: things or a sign, never both, over a plain background colour (R, G, B in 0..255)."""

    things: tuple[Thing, ...]
    sign: Sign | None
    background: tuple[int, int, int]


LAYOUTS: dict[int, tuple[tuple[tuple[int, int], ...], ...]] = {
    1: (((32, 32),),),
    2: (((16, 32), (48, 32)), ((32, 16), (32, 48))),
    3: (
        ((16, 16), (48, 16), (16, 48)),
        ((16, 16), (48, 16), (48, 48)),
        ((16, 16), (16, 48), (48, 48)),
        ((48, 16), (16, 48), (48, 48)),
    ),
    4: (((16, 16), (48, 16), (16, 48), (48, 48)),),
}
"""Number of things -> the sets of centres they may take. Two things stand side by side or one above the other."""

RADII = {1: (14.0, 19.0), 2: (10.5, 13.0), 3: (10.5, 12.5), 4: (10.5, 12.5)}
"""Number of things -> the range of their radii in pixels."""

PAPERS = {"plain": (0, 0, 0), "warm": (16, 0, -24), "cool": (-24, 0, 20)}
"""What a paper adds to the light grey that pictures are drawn on (R, G, B in grey levels)."""

JITTER = 1.5
"""Largest shift of a centre from its place, in pixels, along each axis."""
