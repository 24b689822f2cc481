"""What is kept of a suite's runs beside its page: the small files that say what was found, and no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowopd.configs import EvaluateConfig
from flowopd.durable import replace_bytes
from flowopd.identity import differences, lasting, training
from flowopd.manifest import MANIFEST, read_manifest
from flowopd.recipe import Recipe, make_recipe
from flowopd.results import BASE, Results
from flowopd.session import Session
from flowopd.stages.curve import CURVE
from flowopd.stages.evaluate import PER_PROMPT, RESULTS
from flowopd.stages.interference import INTERFERENCE
from flowopd.stages.judging import settings_of
from flowopd.stages.study.wall import SAMPLES, tiles_of
from flowopd.suite import Run, load_runs, load_suite, parted
from flowopd.tracking import warn

FOUND = (MANIFEST, RESULTS, PER_PROMPT, "metrics.jsonl", CURVE, INTERFERENCE)
"""The files of a run that a study reads."""


def keep(suite: Path, runs: Path, folder: Path) -> None:
    """Copy what the suite's finished runs found from RUNS/ROW/seed-N to FOLDER/ROW/seed-N.

    A run that is not there, or was made by another recipe than the suite's today, leaves what was kept before. Raises
    ConfigError for a wrong suite, DataError for a damaged manifest.
    """
    wall = load_suite(suite).pictures.wall or ()
    for run, kept in zip(load_runs(suite, runs), load_runs(suite, folder), strict=True):
        changed = changes(run) if is_done(run) else ""
        if changed:
            warn(f"{run.folder} is left out: it was made before a change of {changed}")
        elif is_done(run) and run.folder != kept.folder:
            shown = [model for row, model in map(parted, wall) if row == run.row]
            _copy(run, kept, (*FOUND, *tiles_of(run, shown)))


def _copy(run: Run, kept: Run, names: Sequence[str]) -> None:
    """Copy these files of a run, as far as it has them; of another run in its place nothing stays."""
    if is_done(kept) and (kept.folder / RESULTS).read_bytes() != (run.folder / RESULTS).read_bytes():
        for file in (*(kept.folder / name for name in FOUND), *(kept.folder / SAMPLES).glob("*")):
            file.unlink(missing_ok=True)
    for name in names:
        if (run.folder / name).exists():
            replace_bytes(kept.folder / name, (run.folder / name).read_bytes())


def is_done(run: Run) -> bool:
    """Whether it has its results."""
    return (run.folder / RESULTS).exists()


def changes(run: Run) -> str:
    """How what a run was made by, and what its table was judged on, differ from the suite's recipe in what its numbers
    depend on; empty if they do not.

    Raises ConfigError if its folder holds no run, DataError for a damaged manifest or table.
    """
    made = make_recipe(read_manifest(run.folder)["recipe"], (), str(run.folder / MANIFEST))
    table = Results.load(run.folder / RESULTS).settings
    return differences(_depends(made), _depends(run.recipe)) or judged_otherwise(table, run, run.recipe.evaluate)


def judged_otherwise(settings: Mapping[str, Any], run: Run, config: EvaluateConfig | None) -> str:
    """How what a table or curve was judged on, by its settings, differs from what `config` asks for: prompts, base and
    the settings that are not harmless; empty if it does not."""
    if config is None:
        return ""
    asked = settings_of(Session(run.recipe, run.folder), config)
    found = EvaluateConfig.model_validate(settings.get("evaluate", {"metrics": {}}))
    then, now = (
        {name: each.get(name) for name in asked if name != "hash"}
        | {"evaluate": _lasting(one), "sha256": {BASE: each.get("sha256", {}).get(BASE)}}
        for each, one in ((settings, found), (asked, config))
    )
    return differences(then, now)


def _lasting(config: EvaluateConfig) -> dict[str, Any]:
    """The settings that a table's numbers depend on."""
    return {name: value for name, value in lasting(config).items() if name not in ("models", "checkpoints")}


def _depends(recipe: Recipe) -> dict[str, Any]:
    """What the numbers of a recipe's run depend on."""
    judged = _lasting(recipe.evaluate) if recipe.evaluate is not None else {}
    return training(recipe) | {"prompts": lasting(recipe)["prompts"]} | judged
