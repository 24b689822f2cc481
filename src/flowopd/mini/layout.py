"""What each latent cell of a picture shows: the target of the auxiliary loss that speeds up pretraining.

A layout is (2, 8, 8) uint8: what a cell shows (0 background, then KINDS, then LETTERS, last the plate), and in which
colour (0 background, then COLOURS). The model's head that reads it is thrown away after pretraining.
"""

from __future__ import annotations

import numpy as np

from flowopd.mini.draw import CELL, PLATE, SCALE, sign_origin, silhouette
from flowopd.mini.world import COLOURS, KINDS, LETTERS, SIZE, Scene, Sign

CELLS = 8
PLATE_CLASS = 1 + len(KINDS) + len(LETTERS)
CLASSES = PLATE_CLASS + 1
COLOUR_CLASSES = 1 + len(COLOURS)
COVER = 0.2
"""Share of a cell that an object must cover to be what the cell shows."""


def layout(scene: Scene) -> np.ndarray:
    """The layout of a scene."""
    cells = np.zeros((2, CELLS, CELLS), np.uint8)
    step = SIZE * SCALE // CELLS
    for thing in scene.things:
        mask = np.asarray(silhouette(thing.kind, thing.radius, thing.x, thing.y)) / 255.0
        cover = mask.reshape(CELLS, step, CELLS, step).mean((1, 3)) > COVER
        cells[0][cover] = 1 + KINDS.index(thing.kind)
        cells[1][cover] = 1 + list(COLOURS).index(thing.colour)
    if scene.sign is not None:
        _write(cells, scene.sign)
    return cells


def _write(cells: np.ndarray, sign: Sign) -> None:
    pixels = SIZE // CELLS
    rows = slice(round(PLATE[1] / pixels), round(PLATE[3] / pixels))
    cells[0][rows] = PLATE_CLASS
    cells[1][rows] = 1 + list(COLOURS).index(sign.colour)
    for i, letter in enumerate(sign.text):
        left = int(sign_origin(sign.text) + CELL * i) // pixels
        cells[0][rows, left : left + CELL // pixels] = 1 + len(KINDS) + LETTERS.index(letter)
