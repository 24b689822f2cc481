"""Options that commands share, and the recipe that a command's options make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowopd.errors import ConfigError

if TYPE_CHECKING:
    from flowopd.session import Session

Config = Annotated[Path | None, typer.Option("--config", "-c", help="A recipe (YAML).", show_default=False)]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Change a key: distill.optim.updates=20. Repeatable.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The run's folder.")]
Base = Annotated[str | None, typer.Option(help="Base model: folder, hub id, or package:mini/base.")]
NoT5 = Annotated[
    bool, typer.Option("--no-t5", help="Encode prompts by the two CLIPs alone, without the largest encoder.")
]
Teachers = Annotated[
    list[str] | None, typer.Option("--teacher", help="NAME=FOLDER of an expert's adapter. Repeatable.")
]
Prompts = Annotated[list[str] | None, typer.Option("--prompts", help="LABEL=FILE of training prompts. Repeatable.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]


def new_session(tree: dict[str, Any], sets: list[str], out: Path) -> Session:
    """The session of a run that `tree` describes, changed by `sets`; its folder is made and its manifest checked."""
    from flowopd.pipeline import open_run
    from flowopd.recipe import make_recipe

    return open_run(make_recipe(tree, sets), out)


def existing_session(config: Path | None, sets: list[str], out: Path) -> Session:
    """The session of a run that is there, with its own recipe unless another is given."""
    from flowopd.pipeline import manifest_recipe, open_run
    from flowopd.recipe import load_recipe, recipe_path

    recipe = load_recipe(recipe_path(str(config)), sets) if config else manifest_recipe(out, sets)
    return open_run(recipe, out)


def recipe_tree(
    config: Path | None, base: str | None, no_t5: bool, teachers: list[str] | None, prompts: list[str] | None
) -> dict[str, Any]:
    """A recipe's plain values: the file's, changed by flags."""
    from flowopd.recipe import load_recipe, recipe_path

    tree: dict[str, Any] = {}
    if config is not None:
        tree = load_recipe(recipe_path(str(config))).model_dump(mode="json", exclude_unset=True)
    if base is not None:
        tree["base"] = base
    if no_t5:
        tree["t5"] = False
    for name, folder in _pairs(teachers, "--teacher"):
        tree.setdefault("teachers", {})[name] = {"adapter": folder}
    for label, file in _pairs(prompts, "--prompts"):
        tree.setdefault("prompts", {}).setdefault(label, {})["train"] = file
    return tree


def _pairs(values: list[str] | None, flag: str) -> list[tuple[str, str]]:
    pairs = [tuple(value.split("=", 1)) for value in values or []]
    wrong = [pair[0] for pair in pairs if len(pair) != 2]
    if wrong:
        raise ConfigError(f"{flag} {wrong[0]!r} is not of the form NAME=PATH")
    return [(name, path) for name, path in pairs]


def settings(sets: list[str] | None, **flags: Any) -> list[str]:
    """Flags that were given as further `KEY=VALUE` changes of the recipe."""
    return [*(sets or []), *(f"{key}={value}" for key, value in flags.items() if value is not None)]
