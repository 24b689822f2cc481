"""A run's results in two small files for other documents: `table.md`, and the wall as one picture, `wall.png`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from flowopd.durable import replace_picture, replace_text
from flowopd.names import tile
from flowopd.results import Results

TABLE, WALL, INDEX = "table.md", "wall.png", "index.json"
COLUMNS = 9
"""Prompts of a wall."""

TILE, GAP, MARGIN, LINE = 96, 6, 148, 15
"""Pixels: a picture's side, the space between two, the column of names, and a line of a prompt."""


def write_summary(run: Path) -> None:
    """Write what the folder of a run has the parts for."""
    if (run / "results.json").exists():
        replace_text(run / TABLE, f"{Results.load(run / 'results.json')}\n")
    if (run / "samples" / INDEX).exists():
        replace_picture(run / WALL, wall(run / "samples"), optimize=True)


def wall(folder: Path, columns: int = COLUMNS) -> Image.Image:
    """The pictures of a run: one row a model and one column a prompt, as `tiled` has them."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    shown = spread_over(len(index["prompts"]), columns)
    rows = {model: [folder / tile(i, model) for i in shown] for model in index["models"]}
    return tiled([index["prompts"][i] for i in shown], rows)


def spread_over(prompts: int, columns: int = COLUMNS) -> list[int]:
    """So many prompts, spread over all of them."""
    return [i * prompts // columns for i in range(columns)] if prompts > columns else list(range(prompts))


def tiled(prompts: Sequence[str], rows: Mapping[str, Sequence[Path]]) -> Image.Image:
    """Pictures by name, one for each of the prompts, under their words; blank where there is no file."""
    words = [_wrapped(prompt) for prompt in prompts]
    head = LINE * max(map(len, words)) + GAP
    step = TILE + GAP
    canvas = Image.new("RGB", (MARGIN + step * len(words), head + step * len(rows)), "white")
    pen, font = ImageDraw.Draw(canvas), _font(11)
    for column, lines in enumerate(words):
        pen.multiline_text((MARGIN + step * column, 0), "\n".join(lines), fill="black", font=font, spacing=2)
    for row, (name, files) in enumerate(rows.items()):
        top = head + step * row
        pen.text((0, top + TILE / 2), name, fill="black", font=_font(13), anchor="lm")
        for column, file in ((column, file) for column, file in enumerate(files) if file.exists()):
            with Image.open(file) as picture:
                canvas.paste(picture.convert("RGB").resize((TILE, TILE)), (MARGIN + step * column, top))
    return canvas


def _wrapped(prompt: str, width: int = 16) -> list[str]:
    lines = [""]
    for word in prompt.split():
        if lines[-1] and len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
