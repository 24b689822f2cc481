"""Commands that train: whole recipes, and each of their stages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowopd.cli.flags import (
    MODELS,
    RECIPE,
    RUN,
    Base,
    Config,
    Device,
    DryRun,
    NewRun,
    NoT5,
    Out,
    Prompts,
    RecipeName,
    Seed,
    Sets,
    Teachers,
    Track,
    recipe_tree,
    run_of,
    settings,
    tracked,
)
from flowopd.cli.shown import finish, hint, show_dry_run, show_results
from flowopd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowopd.recipe import Recipe
    from flowopd.suite import Run


def demo(
    out: Out = Path("runs/demo"),
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train the experts too (about an hour).", rich_help_panel=RECIPE)
    ] = False,
    seed: Seed = None,
) -> None:
    """Three shipped experts become one model, on a CPU, in minutes.

    Example: `flowopd demo --out runs/demo`
    """
    _run("mini-from-scratch.yaml" if from_scratch else "mini-demo.yaml", settings([], seed=seed), out, False)
    hint(f"flowopd studio {out} for its curves, and to draw with every model")


def run(
    recipe: RecipeName,
    out: NewRun = None,
    sets: Sets = None,
    rows: Annotated[
        list[str] | None,
        typer.Option("--row", help="Only this row of a suite. Repeatable.", show_default="all", rich_help_panel=RUN),
    ] = None,
    device: Device = None,
    track: Track = None,
    dry_run: DryRun = False,
) -> None:
    """All stages of a recipe, or of every row of a suite; run again, it goes on and skips what is done.

    Example: `flowopd run recipes/mini-demo.yaml --out runs/demo --set seed=1`
    """
    _run(recipe, settings(sets, device=device, track=tracked(track)), run_of(recipe, out), dry_run, rows or [])


def teacher(
    name: Annotated[
        str | None,
        typer.Option(
            help="The expert's name in the recipe; the reward's without.", show_default=False, rich_help_panel=RECIPE
        ),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            help="Reward to train on, if the recipe does not say.", show_default=False, rich_help_panel=RECIPE
        ),
    ] = None,
    config: Config = None,
    sets: Sets = None,
    base: Base = None,
    no_t5: NoT5 = False,
    prompts: Prompts = None,
    out: Out = Path("runs/teacher"),
    seed: Seed = None,
    device: Device = None,
    track: Track = None,
    dry_run: DryRun = False,
) -> None:
    """Train one expert by Flow-GRPO on one reward.

    Example: `flowopd teacher --name text --reward ocr --base package:mini/base --prompts text=signs.txt`
    """
    name = name or reward
    if name is None:
        raise ConfigError("which expert? give --name NAME of the recipe's, or --reward NAME to train on")
    tree = recipe_tree(config, base, no_t5, [], prompts)
    if reward is not None:
        label = prompts[0].partition("=")[0] if prompts else name
        trained = tree.setdefault("teachers", {}).setdefault(name, {}).setdefault("train", {"prompts": label})
        trained["reward"] = reward
    recipe = _recipe(tree, settings(sets, seed=seed, device=device, track=tracked(track)))
    if dry_run:
        _show(recipe, out, [f"teacher:{name}"])
        return
    from flowopd.pipeline import open_run
    from flowopd.stages.teacher import train_teacher

    folder = train_teacher(open_run(recipe, out), name)
    finish(folder, f"flowopd sample --out {out} --model teacher:{name} --prompt '...'")


def merge(
    config: Config = None,
    sets: Sets = None,
    base: Base = None,
    no_t5: NoT5 = False,
    teachers: Teachers = None,
    rank: Annotated[
        int | None,
        typer.Option(help="Truncate to this rank; exact without.", show_default=False, rich_help_panel=MODELS),
    ] = None,
    out: Out = Path("runs/merge"),
    dry_run: DryRun = False,
) -> None:
    """The exact mean of the experts' weight changes, with their interference.

    Example: `flowopd merge --base package:mini/base --teacher text=experts/text --teacher look=experts/look`
    """
    tree = recipe_tree(config, base, no_t5, teachers, [])
    tree["coldstart"] = {"kind": "merge", **({"rank": rank} if rank else {})}
    _cold_start(_recipe(tree, sets or []), out, dry_run)


def sft(
    config: Config = None,
    sets: Sets = None,
    base: Base = None,
    no_t5: NoT5 = False,
    teachers: Teachers = None,
    prompts: Prompts = None,
    out: Out = Path("runs/sft"),
    device: Device = None,
    track: Track = None,
    dry_run: DryRun = False,
) -> None:
    """Cold start by flow matching on images that each expert draws for its own prompts.

    Example: `flowopd sft --config recipe.yaml --set coldstart.images=512 --out runs/sft`
    """
    tree = recipe_tree(config, base, no_t5, teachers, prompts)
    if (tree.get("coldstart") or {}).get("kind") != "sft":
        tree["coldstart"] = {"kind": "sft"}
    _cold_start(_recipe(tree, settings(sets, device=device, track=tracked(track))), out, dry_run)


def distill(
    config: Config = None,
    sets: Sets = None,
    base: Base = None,
    no_t5: NoT5 = False,
    teachers: Teachers = None,
    prompts: Prompts = None,
    out: Out = Path("runs/distill"),
    seed: Seed = None,
    device: Device = None,
    track: Track = None,
    dry_run: DryRun = False,
) -> None:
    """On-policy distillation of the experts into one student, from the recipe's cold start, if it has one.

    Example: `flowopd distill --base package:mini/base --teacher text=experts/text --prompts text=signs.txt`
    """
    tree = recipe_tree(config, base, no_t5, teachers, prompts)
    tree["distill"] = tree.get("distill") or {}
    recipe = _recipe(tree, settings(sets, seed=seed, device=device, track=tracked(track)))
    if dry_run:
        _show(recipe, out, ["coldstart", "distill"])
        return
    from flowopd.durable import is_made
    from flowopd.pipeline import open_run
    from flowopd.processes import agreed
    from flowopd.stages import coldstart as start
    from flowopd.stages import distill as stage
    from flowopd.stages.beforehand import check_distillation

    session = open_run(recipe, out)
    check_distillation(session, session.recipe.distill)
    if recipe.coldstart is not None and agreed(lambda: not is_made(out / "coldstart")):
        start.cold_start(session)
    finish(stage.distill(session), f"flowopd sample --out {out} --prompt '...'")


def _run(name: str, sets: list[str], out: Path, dry_run: bool, rows: Sequence[str] = ()) -> None:
    from flowopd.recipe import recipe_path
    from flowopd.suite import load_runs

    planned = load_runs(recipe_path(name), out, sets, rows)
    act = _show_one if dry_run else _run_one
    for one in planned:
        act(one)


def _show_one(one: Run) -> None:
    typer.echo(f"--- # {one.folder}")
    _show(one.recipe, one.folder)


def _run_one(one: Run) -> None:
    from flowopd.pipeline import run as run_stages

    results = run_stages(one.recipe, one.folder)
    draws = f"flowopd sample --out {one.folder} --prompt 'a red sign that says \"K7\"'"
    if results is None:
        finish(one.folder, draws)
        return
    show_results(results)
    page = one.folder / "report.html"
    finish(page, f"open {page} in a browser, or draw: {draws}")


def _cold_start(recipe: Recipe, out: Path, dry_run: bool) -> None:
    if dry_run:
        _show(recipe, out, ["coldstart"])
        return
    from flowopd.pipeline import open_run
    from flowopd.stages.coldstart import cold_start

    finish(cold_start(open_run(recipe, out)), f"flowopd distill --config RECIPE.yaml --out {out}")


def _recipe(tree: dict[str, Any], sets: list[str]) -> Recipe:
    from flowopd.recipe import make_recipe

    return make_recipe(tree, sets)


def _show(recipe: Recipe, out: Path, only: Sequence[str] | None = None) -> None:
    from flowopd.pipeline import foreseen

    show_dry_run(recipe, foreseen(recipe, out, only))
