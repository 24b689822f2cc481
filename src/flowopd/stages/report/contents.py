"""What a run's folder holds: results, rows of metrics, manifest, the experts' interference, the wall of pictures."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from flowopd.errors import DataError
from flowopd.names import tile
from flowopd.results import Results

LARGEST_PICTURE = 256
"""Pixels of the longer side to which larger pictures are reduced, so that the page stays small."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class WallRow:
    """One prompt, and its picture by every model as a data URI, or None where there is no file."""

    prompt: str
    pictures: Mapping[str, str | None]


@dataclass(frozen=True)
class Wall:
    """What `samples/index.json` lists; pictures are files named as `tile` says."""

    prompts: Sequence[str]
    models: Sequence[str]


@dataclass(frozen=True)
class Run:
    """What a run's folder holds so far: a missing file is None or empty here."""

    name: str
    results: Results | None
    rows: Sequence[Row]
    manifest: Mapping[str, Any] | None
    interference: Mapping[str, Any] | None
    wall: Sequence[WallRow]
    student_bytes: int | None

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe in the manifest; empty without one."""
        return (self.manifest or {}).get("recipe") or {}


def read_run(run: Path) -> Run:
    """Everything that the report shows, from the files in `run`.

    Raises DataError if there is nothing to report in `run`, or if a file in it is damaged, which it names.
    """
    results, rows, manifest = run / "results.json", run / "metrics.jsonl", run / "manifest.json"
    if not any(path.exists() for path in (results, rows, manifest)):
        raise DataError(
            f"{run} holds no results.json, metrics.jsonl or manifest.json; give the folder of a run (--out)"
        )
    return Run(
        name=run.resolve().name,
        results=Results.load(results) if results.exists() else None,
        rows=read_rows(rows) if rows.exists() else [],
        manifest=read_object(manifest) if manifest.exists() else None,
        interference=read_interference(run),
        wall=_wall(run / "samples"),
        student_bytes=_student_bytes(run / "student"),
    )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises DataError if it is damaged, or holds anything else."""
    try:
        content = _parsed(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8; write it anew") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {type(content).__name__} where an object belongs; write it anew")
    return content


def read_interference(run: Path) -> dict[str, Any] | None:
    """What a merge wrote of its experts (`Interference.as_dict`); None in a run without a merge.

    Raises DataError if the file is damaged.
    """
    path = run / "coldstart" / "merge.json"
    if not path.exists():
        return None
    facts = read_object(path).get("interference")
    if not isinstance(facts, dict) or not {"names", "norms", "cosines"} <= facts.keys():
        raise DataError(f"{path} lacks the names, norms and cosines of the experts; merge again: flowopd merge")
    return facts


def read_wall(folder: Path) -> Wall:
    """The list of a wall of pictures; empty where there is none. Raises DataError if it is damaged."""
    index = folder / "index.json"
    if not index.exists():
        return Wall((), ())
    content = read_object(index)
    if not all(isinstance(content.get(key), list) for key in ("prompts", "models")):
        raise DataError(f"{index} needs the lists prompts and models; sample again: flowopd sample")
    return Wall([str(prompt) for prompt in content["prompts"]], [str(model) for model in content["models"]])


def _wall(folder: Path) -> list[WallRow]:
    wall = read_wall(folder)
    return [
        WallRow(prompt, {model: _data_uri(folder / tile(place, model)) for model in wall.models})
        for place, prompt in enumerate(wall.prompts)
    ]


def _student_bytes(folder: Path) -> int | None:
    """What the files of the student take; None where there is no student."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) if folder.is_dir() else None


def read_rows(path: Path) -> list[Row]:
    """All finished lines of `metrics.jsonl`; one that does not end yet is still being written."""
    finished = path.read_text(encoding="utf-8").split("\n")[:-1]
    rows = [_parsed(line, f"{path}:{place}") for place, line in enumerate(finished, 1) if line.strip()]
    for row in rows:
        if not isinstance(row, dict) or not {"stage", "step"} <= row.keys():
            raise DataError(f"{path} has a line without stage or step ({json.dumps(row)[:80]}); delete it")
    return rows


def _data_uri(path: Path) -> str | None:
    if not path.exists():
        return None
    try:
        with Image.open(path) as picture:
            picture.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
            file = io.BytesIO()
            picture.save(file, "PNG")
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path} is not a readable picture ({error}); delete it and sample again") from None
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON ({error.msg} at column {error.colno}); mend or delete it") from None
