"""The commands. Each turns its flags into a recipe and hands it to a stage; what stages do stands elsewhere.

torch and the model libraries take seconds to import, so a command imports what it needs when it is called.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from flowopd.cli import benching, checking, mini, models, recipes, serving, studio, studying, training
from flowopd.cli.manners import OneLine, mannered
from flowopd.signals import ending_at_once

ABOUT = "On-policy distillation for flow-matching text-to-image models: several experts in, one model out."
WELCOME = f"""{ABOUT}

  flowopd demo      three shipped experts become one model, here, on a CPU, in minutes
  flowopd init      a recipe for your own base and experts, after a few questions
  flowopd doctor    what this machine lacks, before a run does

`flowopd --help` lists all commands, `flowopd COMMAND --help` explains one with an example."""

app = typer.Typer(help=ABOUT, pretty_exceptions_enable=False, rich_markup_mode="markdown")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"flowopd {version('flowopd')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def welcome(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it and end.")
    ] = False,
) -> None:
    """On-policy distillation for flow-matching text-to-image models: several experts in, one model out."""
    if context.invoked_subcommand is None:
        typer.echo(WELCOME)


PANELS = {
    "Train": {
        "demo": training.demo,
        "init": recipes.init,
        "run": training.run,
        "teacher": training.teacher,
        "merge": training.merge,
        "sft": training.sft,
        "distill": training.distill,
    },
    "Before a run": {
        "plan": checking.plan,
        "doctor": checking.doctor,
        "bench": benching.bench,
        "serve-reward": serving.serve_reward,
    },
    "After a run": {
        "eval": models.evaluate,
        "sample": models.sample,
        "report": models.report,
        "studio": studio.studio,
        "study": studying.study,
        "interference": studying.interference,
        "export": models.export,
    },
}
for panel, commands in PANELS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel)(mannered(command))

shelf = typer.Typer(invoke_without_command=True, callback=recipes.recipes)
for command in (recipes.show, recipes.schema):
    shelf.command()(mannered(command))
app.add_typer(shelf, name="recipes", rich_help_panel="Before a run")

world = typer.Typer(help="The mini world: how its base, prompts and judges were made.", no_args_is_help=True)
for command in (mini.pretrain, mini.prompts):
    world.command()(mannered(command))
app.add_typer(world, name="mini", rich_help_panel="Before a run")


def main() -> None:
    """The `flowopd` command: exit code 0, 2 on a user's mistake, 1 on a failure of ours, 128 + N after signal N.

    An error is one line; its traceback is shown where --debug or FLOWOPD_DEBUG asks for it.
    """
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    with OneLine(), ending_at_once():
        app()
