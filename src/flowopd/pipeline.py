"""A recipe's stages in order; what is done is skipped, what was stopped goes on."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from flowopd.errors import ConfigError
from flowopd.recipe import Recipe, make_recipe
from flowopd.results import Results, replace_text
from flowopd.session import Session
from flowopd.stages.coldstart import cold_start
from flowopd.stages.distill import distill
from flowopd.stages.evaluate import evaluate
from flowopd.stages.report import write_report
from flowopd.stages.sample import draw_wall
from flowopd.stages.summary import write_summary
from flowopd.stages.teacher import train_teacher

MANIFEST = "manifest.json"
LIBRARIES = ("flowopd", "torch", "diffusers", "transformers", "peft", "accelerate")


def run(recipe: Recipe, out: str | Path) -> Results | None:
    """Every stage that the recipe has, into the folder `out`; returns the results if it evaluates.

    Run again, it goes on where it stopped. Raises ConfigError if `out` holds a run of another recipe.
    """
    session = open_run(recipe, out)
    out = session.out
    for name, teacher in recipe.teachers.items():
        if teacher.train is not None and not (out / "teachers" / name).exists():
            train_teacher(session, name)
    if recipe.coldstart is not None and not (out / "coldstart").exists():
        cold_start(session)
    if recipe.distill is not None and not (out / "student").exists():
        distill(session)
    results = None
    if recipe.evaluate is not None:
        results = evaluate(session)
        draw_wall(session, recipe.evaluate)
        write_report(out)
        write_summary(out)
    return results


def open_run(recipe: Recipe, out: str | Path) -> Session:
    """The session of a run folder, which it claims with its manifest.

    Raises ConfigError if the folder holds something else, or a run of another recipe, and says what differs.
    """
    out = Path(out)
    manifest = out / MANIFEST
    mine = recipe.model_dump(mode="json")
    if manifest.exists():
        _refuse_another(manifest, mine)
    elif out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty and holds no run; choose another --out")
    session = Session(recipe, out)
    out.mkdir(parents=True, exist_ok=True)
    replace_text(manifest, json.dumps(_manifest(session, mine), indent=1))
    return session


def manifest_recipe(out: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a run folder was made from. Raises ConfigError if there is no run."""
    manifest = out / MANIFEST
    if not manifest.exists():
        raise ConfigError(f"{out} holds no run ({MANIFEST} is missing); give its folder, or a recipe with --config")
    return make_recipe(json.loads(manifest.read_text())["recipe"], overrides, str(manifest))


TRAINING = ("base", "revision", "seed", "prompts", "teachers", "routes", "coldstart", "distill")
"""The parts of a recipe that its trained models depend on; the others may change between two calls."""


def _refuse_another(manifest: Path, mine: dict[str, object]) -> None:
    theirs = json.loads(manifest.read_text())["recipe"]
    changed = [key for key in TRAINING if theirs.get(key) != mine.get(key)]
    if changed:
        raise ConfigError(
            f"{manifest.parent} holds a run with another {', '.join(changed)}; choose another --out, or delete it"
        )


def _manifest(session: Session, recipe: dict[str, object]) -> dict[str, object]:
    there = [name for name in session.recipe.teachers if session.teacher_folder(name).exists()]
    return {
        "recipe": recipe,
        "seed": session.recipe.seed,
        "sha256": session.hashes(there),
        "versions": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        "hardware": {
            "device": str(session.model.device),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        },
    }
