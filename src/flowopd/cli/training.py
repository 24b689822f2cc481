"""Commands that train: whole recipes, and each of their stages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowopd.cli.flags import (
    Base,
    Config,
    NoT5,
    Out,
    Prompts,
    Seed,
    Sets,
    Teachers,
    new_session,
    recipe_tree,
    settings,
)
from flowopd.cli.shown import finish, show_results
from flowopd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence


def demo(
    out: Out = Path("runs/demo"),
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train the experts too (about an hour).")
    ] = False,
    seed: Seed = None,
) -> None:
    """Three shipped experts become one model, on a CPU, in minutes.

    Example: `flowopd demo --out runs/demo`
    """
    _run("mini-from-scratch.yaml" if from_scratch else "mini-demo.yaml", settings([], seed=seed), out)


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe (YAML), or a suite of them; a name from recipes/ will do.")],
    out: Out = Path("runs/run"),
    sets: Sets = None,
    rows: Annotated[list[str] | None, typer.Option("--row", help="Only this row of a suite. Repeatable.")] = None,
) -> None:
    """All stages of a recipe, or of every row of a suite. Called again, it goes on where it stopped.

    Example: `flowopd run recipes/mini-demo.yaml --out runs/demo --set seed=1`
    """
    _run(recipe, sets or [], out, rows or [])


def teacher(
    name: Annotated[str | None, typer.Option(help="The expert's name in the recipe; none is the reward's.")] = None,
    reward: Annotated[str | None, typer.Option(help="Reward to train on, if the recipe does not say.")] = None,
    config: Config = None,
    sets: Sets = None,
    base: Base = None,
    no_t5: NoT5 = False,
    prompts: Prompts = None,
    out: Out = Path("runs/teacher"),
    seed: Seed = None,
) -> None:
    """Train one expert by Flow-GRPO on one reward.

    Example: `flowopd teacher --name text --reward ocr --base package:mini/base --prompts text=signs.txt`
    """
    from flowopd.stages.teacher import train_teacher

    name = name or reward
    if name is None:
        raise ConfigError("which expert? give --name NAME of the recipe's, or --reward NAME to train on")
    tree = recipe_tree(config, base, no_t5, [], prompts)
    if reward is not None:
        label = prompts[0].partition("=")[0] if prompts else name
        trained = tree.setdefault("teachers", {}).setdefault(name, {}).setdefault("train", {"prompts": label})
        trained["reward"] = reward
    folder = train_teacher(new_session(tree, settings(sets, seed=seed), out), name)
    finish(folder, f"flowopd sample --out {out} --model teacher:{name} --prompt '...'")


def merge(
    config: Config = None,
    sets: Sets = None,
    base: Base = None,
    no_t5: NoT5 = False,
    teachers: Teachers = None,
    rank: Annotated[int | None, typer.Option(help="Truncate to this rank; exact without.")] = None,
    out: Out = Path("runs/merge"),
) -> None:
    """The exact mean of the experts' weight changes, with their interference.

    Example: `flowopd merge --base package:mini/base --teacher text=experts/text --teacher look=experts/look`
    """
    tree = recipe_tree(config, base, no_t5, teachers, [])
    tree["coldstart"] = {"kind": "merge", **({"rank": rank} if rank else {})}
    _cold_start(tree, sets, out)


def sft(
    config: Config = None,
    sets: Sets = None,
    base: Base = None,
    no_t5: NoT5 = False,
    teachers: Teachers = None,
    prompts: Prompts = None,
    out: Out = Path("runs/sft"),
) -> None:
    """Cold start by flow matching on images that each expert draws for its own prompts.

    Example: `flowopd sft --config recipe.yaml --set coldstart.images=512 --out runs/sft`
    """
    tree = recipe_tree(config, base, no_t5, teachers, prompts)
    if (tree.get("coldstart") or {}).get("kind") != "sft":
        tree["coldstart"] = {"kind": "sft"}
    _cold_start(tree, sets, out)


def distill(
    config: Config = None,
    sets: Sets = None,
    base: Base = None,
    no_t5: NoT5 = False,
    teachers: Teachers = None,
    prompts: Prompts = None,
    out: Out = Path("runs/distill"),
    seed: Seed = None,
) -> None:
    """On-policy distillation of the experts into one student, from the cold start that lies in --out, if any.

    Example: `flowopd distill --base package:mini/base --teacher text=experts/text --prompts text=signs.txt`
    """
    from flowopd.durable import is_made
    from flowopd.processes import agreed
    from flowopd.stages import coldstart as start
    from flowopd.stages import distill as stage

    tree = recipe_tree(config, base, no_t5, teachers, prompts)
    tree["distill"] = tree.get("distill") or {}
    session = new_session(tree, settings(sets, seed=seed), out)
    if session.recipe.coldstart is not None and agreed(lambda: not is_made(out / "coldstart")):
        start.cold_start(session)
    finish(stage.distill(session), f"flowopd sample --out {out} --prompt '...'")


def _run(recipe: str, sets: list[str], out: Path, rows: Sequence[str] = ()) -> None:
    from flowopd.pipeline import run as run_stages
    from flowopd.recipe import recipe_path
    from flowopd.suite import load_runs

    for planned in load_runs(recipe_path(recipe), out, sets, rows):
        folder, results = planned.folder, run_stages(planned.recipe, planned.folder)
        if results is not None:
            show_results(results)
            finish(folder / "report.html", f"flowopd sample --out {folder} --prompt 'a red sign that says \"K7\"'")


def _cold_start(tree: dict[str, Any], sets: list[str] | None, out: Path) -> None:
    from flowopd.stages.coldstart import cold_start

    finish(cold_start(new_session(tree, sets or [], out)), f"flowopd distill --config RECIPE.yaml --out {out}")
