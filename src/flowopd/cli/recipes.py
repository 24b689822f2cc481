"""Commands that make recipes and show them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

from flowopd.cli.flags import (
    HARDWARE,
    MODELS,
    Base,
    Prompts,
    Teachers,
    completed_hardware,
    completed_recipe,
    pairs,
    run_of,
)
from flowopd.cli.shown import finish, hint
from flowopd.errors import ConfigError, Interrupted
from flowopd.gpus import gpu_named
from flowopd.shipped import shipped_recipe, shipped_recipes


def init(
    to: Annotated[Path, typer.Option("--to", help="The recipe to write; never an existing file.")] = Path(
        "recipe.yaml"
    ),
    base: Base = None,
    teachers: Teachers = None,
    prompts: Prompts = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="The hardware: a GPU that `flowopd plan` knows, or cpu.",
            rich_help_panel=HARDWARE,
            show_default=False,
            autocompletion=completed_hardware,
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Of student and experts; 1 is none. Without it 4.5, or 1 for a base that ships with flowopd.",
            rich_help_panel=MODELS,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a commented recipe after a few questions: base, experts, prompts, hardware.

    What flags answer is not asked. sd35-medium and sd35-large name the published bases.

    Example: `flowopd init --base sd35-medium --teacher ocr=experts/ocr --prompts ocr=signs.txt --gpu rtx4090`
    """
    if to.exists():
        raise ConfigError(f"{to} exists and is not overwritten; choose another file with --to")
    missing = {"--base": base, "--teacher": teachers, "--prompts": prompts, "--gpu": gpu}
    unanswered = [flag for flag, value in missing.items() if not value]
    if unanswered and not sys.stdin.isatty():
        raise ConfigError(
            f"init lacks {', '.join(unanswered)}; give them as flags, or run it on a terminal, where it asks"
        )
    from flowopd.stages import draft as stage
    from flowopd.stages.plan import hardware_here

    named, files = dict(pairs(teachers, "--teacher")), dict(pairs(prompts, "--prompts"))
    _check_given((base, stage.check_base), (gpu, gpu_named))
    _check_given(*((source, _note_missing) for source in named.values()))
    _check_given(*((file, _note_missing_file) for file in files.values()))
    bases = "folder, hub id, a package: name of the shipped recipes, or " + ", ".join(stage.BASES)
    base = base or _asked(f"Base model: {bases}", "sd35-medium", stage.check_base)
    named = named or _asked_teachers()
    files = files or _asked_files(named)
    gpu = gpu or _asked("Hardware: " + ", ".join(stage.hardware_names()), hardware_here(), gpu_named)
    if guidance is None:
        guidance = _guidance(stage.usual_guidance(base), asks=bool(unanswered))
    drafted = stage.draft(stage.Wish(base=base, teachers=named, prompts=files, hardware=gpu, guidance=guidance))
    _written(to, drafted.text)
    for warning in drafted.plan.warnings:
        typer.echo(f"note: {warning}", err=True)
    finish(to, f"flowopd doctor {to}, then flowopd run {to} --out {run_of(str(to), None)}")


def recipes(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False
) -> None:
    """The recipes that ship with flowopd, each with what it is for.

    Example: `flowopd recipes`
    """
    if context.invoked_subcommand is not None:
        return
    found = shipped_recipes()
    if as_json:
        typer.echo(json.dumps(found))
        return
    width = max(map(len, found))
    for name, summary in found.items():
        typer.echo(f"{name:<{width}}  {summary}")
    hint("flowopd recipes show NAME, or flowopd init for a recipe of your own")


def show(
    name: Annotated[str, typer.Argument(help="A shipped recipe's name.", autocompletion=completed_recipe)],
) -> None:
    """Print a shipped recipe, to read or to change: add `> my.yaml`.

    Example: `flowopd recipes show sd35-medium`
    """
    path = shipped_recipe(name)
    if path is None:
        raise ConfigError(f"no recipe {name!r} ships with flowopd; there are: {', '.join(shipped_recipes())}")
    typer.echo(path.read_text(encoding="utf-8"), nl=False)


def schema() -> None:
    """Print the JSON schema of recipes: every key with its meaning, bounds and default.

    Example: `flowopd recipes schema`
    """
    from flowopd.schema import recipe_schema

    typer.echo(recipe_schema(), nl=False)


def _written(file: Path, text: str) -> None:
    """Put the text into a new file."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror}); choose another file with --to") from None


def _check_given(*checks: tuple[str | None, Callable[[str], object]]) -> None:
    """Refuse what a flag says before anything is asked."""
    for value, check in checks:
        if value:
            check(value)


def _asked(question: str, default: str | None, check: Callable[[str], object] = lambda _: None) -> str:
    """An answer, asked for again as long as `check` refuses it."""

    def checked(answer: str) -> str:
        try:
            check(answer)
        except ConfigError as error:
            raise typer.BadParameter(str(error)) from None
        return answer

    try:
        return str(typer.prompt(question, default=default, value_proc=checked, err=True, show_default=bool(default)))
    except Interrupted as stop:
        raise Interrupted(stop.number, "stopped", then="nothing was written") from None


def _guidance(usual: float, asks: bool) -> float:
    """The usual guidance, or what is answered instead: a number from 0."""
    question = "Guidance of student and experts; 1 is none"
    return float(_asked(question, f"{usual:g}", _check_guidance)) if asks else usual


def _check_guidance(answer: str) -> None:
    """Raises ConfigError for what is no number from 0."""
    try:
        fits = 0 <= float(answer) < math.inf
    except ValueError:
        fits = False
    if not fits:
        raise ConfigError(f"guidance {answer!r} is no number from 0; the paper takes 4.5, 1 is none")


def _note_missing(source: str) -> None:
    """Say so at once if a source is not here, as it need not be where a recipe is only written.

    Raises ConfigError for one that would be in the package.
    """
    from flowopd.stages.draft import is_there

    _note(source, is_there(source))


def _note_missing_file(file: str) -> None:
    """As `_note_missing`, for prompts, which the hub has as a data set alone."""
    from flowopd.stages.draft import is_file_there

    _note(file, is_file_there(file))


def _note(source: str, there: bool) -> None:
    from flowopd.hub import check_shipped

    check_shipped(source)
    if not there:
        typer.echo(f"note: {source} is not here; it has to be where the recipe runs", err=True)


def _check_expert(name: str) -> None:
    """Raises ConfigError for a name that no teacher may have; an empty one ends the questions."""
    from flowopd.names import check_teacher

    try:
        if name.strip():
            check_teacher(name.strip())
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _asked_teachers() -> dict[str, str]:
    """Experts by name, asked for until an empty answer."""
    named: dict[str, str] = {}
    while True:
        question = "Name of an expert, such as ocr" + (" (empty: no more)" if named else "")
        name = _asked(question, "" if named else None, _check_expert)
        if not name.strip():
            return named
        where = "folder, file, hub id, or a package: name of the shipped recipes"
        named[name.strip()] = _asked(f"Adapter of {name.strip()}: {where}", None, _note_missing)


def _asked_files(names: Iterable[str]) -> dict[str, str]:
    """The prompt file of each expert."""
    return {name: _asked(f"File of training prompts for {name}", None, _note_missing_file) for name in names}
