"""The pictures that a run keeps: the wall, one prompt through every model, and whatever else lies there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowopd.errors import DataError
from flowopd.names import tile
from flowopd.stages.report.contents import read_wall
from flowopd.studio.folders import inside

KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
"""Files that are shown, and what a browser takes them for."""

SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")
"""How these files begin."""

NOT_LOOKED_INTO = {"cache", "checkpoints", "tensorboard"}
MOST = 400
"""Pictures besides the wall that are listed."""


def kept(run: Path) -> dict[str, Any]:
    """The wall, `rows` of {prompt, pictures: {model: path}}, and other pictures as {folder: paths}.

    Paths are relative to the run's folder. Raises DataError if the wall's list is damaged.
    """
    wall = read_wall(run / "samples")
    pictures = [
        {model: name for model in wall.models if (name := _wall_file(run, place, model))}
        for place in range(len(wall.prompts))
    ]
    rows = [{"prompt": prompt, "pictures": row} for prompt, row in zip(wall.prompts, pictures, strict=True)]
    shown = {name for row in pictures for name in row.values()}
    others: dict[str, list[str]] = {}
    for name in _others(run, shown):
        others.setdefault(str(Path(name).parent), []).append(name)
    return {"models": list(wall.models), "rows": rows, "others": others}


def picture_file(run: Path, name: str) -> tuple[Path, str]:
    """The file of a picture in a run's folder, and its media type.

    Raises DataError for a path that leads out of the folder, that is no picture, or that does not exist.
    """
    path = inside(run, name)
    kind = KINDS.get(path.suffix.lower())
    if kind is None or not path.is_file():
        raise DataError(f"{name} is no picture of the run {run.name}; look at its pictures again")
    with path.open("rb") as file:
        if not file.read(8).startswith(SIGNATURES):
            raise DataError(f"{name} is not a readable picture; delete it and sample again")
    return path, kind


def _wall_file(run: Path, place: int, model: str) -> str | None:
    """The path of a picture of the wall; None where there is none."""
    name = f"samples/{tile(place, model)}"
    return name if (run / name).is_file() else None


def _others(run: Path, shown: set[str]) -> list[str]:
    """Pictures at most two folders down, by name, newest folders' names last."""
    folders = [path for path in sorted(run.iterdir()) if path.is_dir() and path.name not in NOT_LOOKED_INTO]
    below = [path for folder in folders for path in sorted(folder.iterdir()) if path.is_dir()]
    files = [path for folder in (run, *folders, *below) for path in sorted(folder.iterdir()) if path.is_file()]
    names = [str(path.relative_to(run)) for path in files if path.suffix.lower() in KINDS]
    return [name for name in names if name not in shown][:MOST]
