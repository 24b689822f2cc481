"""The commands. Each turns its flags into a recipe and hands it to a stage; what stages do stands elsewhere.

torch and the model libraries take seconds to import, so a command imports what it needs when it is called.
"""

from __future__ import annotations

import os
import sys

import typer

from flowopd.cli import benching, checking, mini, models, serving, studio, training
from flowopd.errors import FlowOpdError, Interrupted
from flowopd.signals import ending_at_once, is_first

app = typer.Typer(
    help="On-policy distillation for flow-matching text-to-image models: several experts in, one model out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
PANELS = {
    "Train": {
        "demo": training.demo,
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
        "study": models.study,
        "export": models.export,
    },
}
for panel, commands in PANELS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel)(command)

world = typer.Typer(help="The mini world: how its base, prompts and judges were made.", no_args_is_help=True)
for command in (mini.pretrain, mini.prompts):
    world.command()(command)
app.add_typer(world, name="mini", rich_help_panel="Before a run")


def main() -> None:
    """The `flowopd` command: exit code 0, 2 on a user's mistake, 1 on a failure of ours, 128 + N after signal N."""
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    try:
        with ending_at_once():
            app()
    except FlowOpdError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(2)
    except Interrupted as end:
        if is_first():
            typer.secho(str(end), fg="yellow", err=True)
        sys.exit(end.code)
