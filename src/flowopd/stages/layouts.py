"""Pictures of a whole prompt file, in the folders that other benchmarks' own tools read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import track

from flowopd.configs import EvaluateConfig
from flowopd.durable import make_folder, replace_picture, replace_text
from flowopd.errors import ConfigError, DataError
from flowopd.processes import only_main, own_rows, wait
from flowopd.prompts import Prompt
from flowopd.recipe import RUN
from flowopd.results import TEACHER
from flowopd.session import Session
from flowopd.stages.sample import available_models, draw_pictures, even_batch, own_weights
from flowopd.tracking.screen import console, shows

RECORD = "drawing.json"
"""What a folder was drawn with, so that nothing else goes on with it; the benchmarks' tools pass it over."""

LONGEST_NAME = 255
"""Bytes of a file's name that file systems take."""


@dataclass(frozen=True)
class Places:
    """Files below a folder: one picture for each copy of each prompt, in order, and texts with their content."""

    pictures: tuple[Path, ...]
    texts: Mapping[Path, str] = field(default_factory=dict)


def compbench(prompts: Sequence[Prompt], copies: int) -> Places:
    """T2I-CompBench(++) (2307.06350): `samples/PROMPT_NUMBER.png`, NUMBER running over all pictures, six digits.

    Its tools read the prompt off the file's name, up to the first underscore. Raises DataError for a prompt that no
    such name can hold.
    """
    names = [f"{prompt.text}_{i * copies + j:06}.png" for i, prompt in enumerate(prompts) for j in range(copies)]
    for prompt, name in zip(prompts, names[::copies], strict=True):
        odd = next((sign for sign in ("_", "/", "\t", "\0") if sign in prompt.text), None)
        if odd is not None:
            raise DataError(f"prompt {prompt.text!r} has {odd!r}, which T2I-CompBench's file names cannot; reword it")
        if len(name.encode()) > LONGEST_NAME:
            size = len(name.encode())
            raise DataError(f"prompt {prompt.text[:60]!r}... makes a file name of {size} bytes, over 255; shorten it")
    return Places(tuple(Path("samples") / name for name in names))


def geneval(prompts: Sequence[Prompt], copies: int) -> Places:
    """GenEval (2310.11513): `INDEX/metadata.jsonl` with the prompt's line and `INDEX/samples/NUMBER.png`.

    INDEX has five digits, NUMBER four. Raises DataError for a prompt without the metadata that it is judged by.
    """
    for prompt in prompts:
        lacking = [key for key in ("tag", "include") if key not in prompt.metadata]
        if lacking:
            raise DataError(f"prompt {prompt.text!r} has no {lacking[0]!r}; give GenEval's evaluation_metadata.jsonl")
    folders = [Path(f"{i:05}") for i in range(len(prompts))]
    pictures = [folder / "samples" / f"{j:04}.png" for folder in folders for j in range(copies)]
    lines = [json.dumps({**prompt.metadata, "prompt": prompt.text}, default=str) for prompt in prompts]
    return Places(
        tuple(pictures), {folder / "metadata.jsonl": line for folder, line in zip(folders, lines, strict=True)}
    )


LAYOUTS: dict[str, Callable[[Sequence[Prompt], int], Places]] = {"compbench": compbench, "geneval": geneval}


def draw_layout(
    session: Session, model: str, prompts: Sequence[Prompt], layout: str, copies: int, seed: int | None, folder: Path
) -> None:
    """Draw so many copies of each prompt into a layout of LAYOUTS below `folder`.

    The pictures are the evaluation's: its sampling, and seeds tied to prompts; `seed` None is its own. What the folder
    lacks of them is drawn, a micro-batch at a time, so a drawing that was stopped goes on. Raises ConfigError for an
    unknown layout or model, and if the folder holds anything else; DataError for a prompt that the layout cannot hold.
    """
    if layout not in LAYOUTS:
        near = get_close_matches(layout, LAYOUTS, n=1, cutoff=0.0)[0]
        raise ConfigError(f"there is no layout {layout!r}; did you mean {near!r}? Known: {', '.join(LAYOUTS)}")
    available_models(session, [model])
    places = LAYOUTS[layout](prompts, copies)
    own = session.recipe.drawing
    config = own.model_copy(update={"images_per_prompt": copies, "seed": own.seed if seed is None else seed})
    record = {"layout": layout, "model": model, **_settings(session, model, prompts, config)}
    _check(folder, record)
    wait()
    only_main(lambda: _begin(folder, places, record))
    conditioning = session.encode(prompts)
    size = even_batch(len(places.pictures), config.micro_batch)
    rows = own_rows(len(places.pictures), size)
    starts = range(rows.start, rows.stop, size)
    for start in track(starts, "drawing", console=console, disable=not shows()):
        part = slice(start, min(start + size, rows.stop))
        lacking = [not (folder / path).exists() for path in places.pictures[part]]
        if any(lacking):
            pictures = draw_pictures(session, model, prompts, config, conditioning, part)
            for path, picture, lacks in zip(places.pictures[part], pictures, lacking, strict=True):
                if lacks:
                    replace_picture(folder / path, Image.fromarray(picture))
    wait()


def _settings(session: Session, model: str, prompts: Sequence[Prompt], config: EvaluateConfig) -> dict[str, Any]:
    """What the pictures of a model depend on."""
    teacher = model.removeprefix(TEACHER)
    lines = json.dumps([[prompt.text, dict(prompt.metadata)] for prompt in prompts], sort_keys=True, default=str)
    return {
        "images_per_prompt": config.images_per_prompt,
        "seed": config.seed,
        "sampling": config.sampling.model_dump(mode="json"),
        "guidance": session.guidance(teacher, config.sampling.guidance),
        **session.recipe.parts(*RUN),
        "prompts": sha256(lines.encode()).hexdigest(),
        "weights": session.hashes([teacher] if model.startswith(TEACHER) else []) | own_weights(session, [model]),
    }


def _check(folder: Path, record: Mapping[str, Any]) -> None:
    """Raises ConfigError unless the folder is new, empty, or was begun with this very record."""
    file = folder / RECORD
    if file.exists():
        try:
            theirs = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ConfigError(f"{file} is not JSON ({error.msg}); choose another folder as --to") from None
        changed = [key for key in record if theirs.get(key) != record[key]]
        if changed:
            raise ConfigError(f"{file} is of pictures with another {', '.join(changed)}; choose another folder as --to")
    elif folder.exists():
        taken = sorted(folder.iterdir()) if folder.is_dir() else [folder]
        if taken:
            raise ConfigError(f"{taken[0]} is in the way; choose an empty folder, or a new one, as --to")


def _begin(folder: Path, places: Places, record: Mapping[str, Any]) -> None:
    """The record first, which makes the folder ours; then whatever there is not yet."""
    replace_text(folder / RECORD, json.dumps(record, indent=1))
    for parent in dict.fromkeys(path.parent for path in places.pictures):
        make_folder(folder / parent)
    for path, text in places.texts.items():
        replace_text(folder / path, text + "\n")
