"""Options that commands share, and the recipe that a command's options make."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowopd.errors import ConfigError
from flowopd.gpus import CPU, GPUS
from flowopd.manifest import newest_run, read_manifest
from flowopd.shipped import shipped_recipes

if TYPE_CHECKING:
    from flowopd.recipe import Recipe
    from flowopd.session import Session

RECIPE, MODELS, RUN, OUTPUT = "Recipe", "Models and prompts", "Run", "Output"
HARDWARE, ADDRESS = "Hardware", "Address"
"""The groups of options in a command's help."""

RUNS = Path("runs")
"""Where runs lie unless --out says otherwise."""


def completed_recipe(incomplete: str) -> list[tuple[str, str]]:
    """Shipped recipes that begin so, with what they are for, for a shell to complete."""
    return [(name, summary) for name, summary in shipped_recipes().items() if name.startswith(incomplete)]


def completed_hardware(incomplete: str) -> list[tuple[str, str]]:
    """GPUs, with their memory, and the CPU, as far as their names begin so, for a shell to complete."""
    known = {name: f"{gpu.memory:g} GiB" for name, gpu in GPUS.items()} | {CPU: "this machine"}
    return [(name, fact) for name, fact in known.items() if name.startswith(incomplete.lower())]


RecipeName = Annotated[
    str,
    typer.Argument(
        help="A recipe or suite (YAML), or the name of one that ships; see `flowopd recipes`.",
        autocompletion=completed_recipe,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="A recipe (YAML), or the name of one that ships.",
        show_default=False,
        rich_help_panel=RECIPE,
        autocompletion=completed_recipe,
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change a key of the recipe: distill.optim.updates=20. Repeatable.",
        show_default=False,
        rich_help_panel=RECIPE,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(help="Seed of everything random; the recipe's, or 0.", show_default=False, rich_help_panel=RECIPE),
]
Base = Annotated[
    str | None,
    typer.Option(help="Base model: folder, hub id, or package:mini/base.", show_default=False, rich_help_panel=MODELS),
]
NoT5 = Annotated[
    bool,
    typer.Option(
        "--no-t5",
        help="Encode prompts by the two CLIPs alone, without the largest encoder.",
        rich_help_panel=MODELS,
    ),
]
Teachers = Annotated[
    list[str] | None,
    typer.Option(
        "--teacher",
        help="NAME=ADAPTER of an expert: folder, file, hub id or package: name. Repeatable.",
        show_default=False,
        rich_help_panel=MODELS,
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompts",
        help="LABEL=FILE of training prompts; a label goes to the expert of its name. Repeatable.",
        show_default=False,
        rich_help_panel=MODELS,
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="The run's folder.", rich_help_panel=RUN)]

NewRun = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="The run's folder.", show_default="runs/ and the recipe's name", rich_help_panel=RUN
    ),
]


def run_of(recipe: str, out: Path | None) -> Path:
    """Where a recipe is run, unless --out says so."""
    return out or RUNS / Path(recipe).stem


LastRun = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="The run's folder.", show_default="the last one in runs", rich_help_panel=RUN),
]


def run_meant(out: Path | None, config: Path | None = None) -> Path:
    """The run that a command looks at: the one named, a recipe's, or the one last worked on, which it says.

    Raises ConfigError if there is none, and for several processes, which might not agree.
    """
    from flowopd.cli.shown import note

    if out is not None:
        return out
    if config is not None:
        return run_of(str(config), None)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("which run? several processes need its folder: --out FOLDER")
    run = newest_run(RUNS)
    note(f"run: {run}, the last one worked on; --out names another")
    return run


DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Show the whole recipe and what would be done, and do nothing.", rich_help_panel=RUN
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Such as cuda, cuda:1, mps or cpu.", show_default="the recipe's, or the best there is", rich_help_panel=RUN
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        help="Where metrics go besides metrics.jsonl: tensorboard, wandb, trackio. Repeatable.",
        show_default="tensorboard, if installed",
        rich_help_panel=RUN,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One line of JSON.", rich_help_panel=OUTPUT)]


def recipe_of_run(config: Path | None, sets: list[str], out: Path) -> Recipe:
    """The recipe of a run that is there, its own unless another is given."""
    if config is None:
        read_manifest(out)
    from flowopd.pipeline import manifest_recipe
    from flowopd.recipe import load_recipe, recipe_path

    return load_recipe(recipe_path(str(config)), sets) if config else manifest_recipe(out, sets)


def existing_session(config: Path | None, sets: list[str], out: Path) -> Session:
    """The session of a run that is there, with its own recipe unless another is given."""
    recipe = recipe_of_run(config, sets, out)
    from flowopd.pipeline import open_run

    return open_run(recipe, out)


def recipe_tree(
    config: Path | None, base: str | None, no_t5: bool, teachers: list[str] | None, prompts: list[str] | None
) -> dict[str, Any]:
    """A recipe's plain values: the file's, changed by flags. Raises ConfigError if neither names a base."""
    from flowopd.recipe import load_recipe, recipe_path

    tree: dict[str, Any] = {}
    if config is not None:
        tree = load_recipe(recipe_path(str(config))).model_dump(mode="json", exclude_unset=True)
    if base is not None:
        tree["base"] = base
    if "base" not in tree:
        raise ConfigError("which base? give --base FOLDER or hub id, or a recipe with --config")
    if no_t5:
        tree["t5"] = False
    for name, folder in pairs(teachers, "--teacher"):
        tree.setdefault("teachers", {})[name] = {"adapter": folder}
    for label, file in pairs(prompts, "--prompts"):
        tree.setdefault("prompts", {}).setdefault(label, {})["train"] = file
    return tree


def pairs(values: list[str] | None, flag: str) -> list[tuple[str, str]]:
    """NAME=PATH values of a flag, apart. Raises ConfigError for one that is none, and for a name that comes twice."""
    apart = [value.partition("=")[::2] for value in values or []]
    wrong = [value for value, (name, path) in zip(values or [], apart, strict=True) if not (name and path)]
    if wrong:
        raise ConfigError(f"{flag} {wrong[0]!r} is not of the form NAME=PATH")
    names = [name for name, _ in apart]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{flag} gives {twice[0]!r} twice; leave one out, or name it otherwise")
    return apart


def settings(sets: list[str] | None, **flags: Any) -> list[str]:
    """Flags that were given as further `KEY=VALUE` changes of the recipe."""
    return [*(sets or []), *(f"{key}={value}" for key, value in flags.items() if value is not None)]


def tracked(track: list[str] | None) -> str | None:
    """The trackers of `--track` as the value of a recipe's key; None if there are none."""
    return f"[{', '.join(track)}]" if track else None
