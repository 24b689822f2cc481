"""Commands that look before a run starts."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from flowopd.cli.flags import (
    HARDWARE,
    RUNS,
    AsJson,
    NewRun,
    RecipeName,
    Sets,
    completed_hardware,
    completed_recipe,
    run_of,
)
from flowopd.cli.shown import hint, show_checks
from flowopd.errors import ConfigError


def plan(
    recipe: RecipeName,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="The GPU it is planned for, or cpu for this machine.",
            show_default="the one here; else cpu for a base that ships, a100-80gb for others",
            rich_help_panel=HARDWARE,
            autocompletion=completed_hardware,
        ),
    ] = None,
    flops: Annotated[
        float | None,
        typer.Option(
            help="Or its rate, in floating-point operations a second.", show_default=False, rich_help_panel=HARDWARE
        ),
    ] = None,
    processes: Annotated[int, typer.Option(help="How many GPUs share an update.", rich_help_panel=HARDWARE)] = 1,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """What a training will take: parameters, memory, work and time of an update, traps. Needs no weights.

    Example: `flowopd plan recipes/sd35-medium.yaml --gpu h100`
    """
    from dataclasses import asdict

    from flowopd.recipe import load_recipe, recipe_path
    from flowopd.session import Session
    from flowopd.stages import plan as stage
    from flowopd.suite import is_suite, recipes_of

    file = recipe_path(recipe)
    if is_suite(file):
        raise ConfigError(f"{file} is a suite; plan one of its recipes: {', '.join(recipes_of(file))}")
    session = Session(load_recipe(file, sets or []), Path("runs/plan"))
    planned = stage.plan(session, gpu or stage.usual_hardware(session.recipe.base), flops, processes)
    typer.echo(json.dumps(asdict(planned)) if as_json else stage.described(planned))
    hint(f"flowopd doctor {recipe}, then flowopd run {recipe} --out {run_of(recipe, None)}")


def doctor(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe (YAML), or its name; none is the machine alone.", autocompletion=completed_recipe
        ),
    ] = None,
    out: NewRun = None,
    sets: Sets = None,
    as_json: AsJson = False,
) -> None:
    """Find what a machine and a recipe lack before a run does: libraries, room, prompts, experts, sound judges.

    Exit code 1 if a check failed. Example: `flowopd doctor recipes/mini-demo.yaml`
    """
    from dataclasses import asdict

    from flowopd.recipe import load_recipe, recipe_path
    from flowopd.stages import doctor as stage

    folder = run_of(recipe, out) if recipe else out or RUNS
    checks = stage.doctor(load_recipe(recipe_path(recipe), sets or []) if recipe else None, folder)
    if as_json:
        typer.echo(json.dumps({"ok": stage.passed(checks), "checks": [asdict(check) for check in checks]}))
    else:
        show_checks(checks)
    if not stage.passed(checks):
        raise typer.Exit(1)
    changes = "".join(f" --set {quote(change)}" for change in sets or [])
    hint(
        f"flowopd run {quote(recipe)}{changes} --out {quote(str(folder))}"
        if recipe
        else "flowopd demo, or flowopd init"
    )
