"""The command that makes a page of many runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowopd.cli.flags import OUTPUT, Out
from flowopd.cli.shown import finish


def study(
    suite: Annotated[str, typer.Argument(help="A suite (YAML), or the name of one that ships.")],
    out: Out = Path("runs/study"),
    to: Annotated[Path, typer.Option(help="Folder for RESULTS.md and its figures.", rich_help_panel=OUTPUT)] = Path(
        "docs"
    ),
) -> None:
    """One page for all runs of a suite: tables over seeds, claims put to the test, figures, costs.

    Example: `flowopd study recipes/mini-paper/all.yaml --out runs/mini-paper --to docs`
    """
    from flowopd.recipe import recipe_path
    from flowopd.stages.study import write_study

    finish(write_study(recipe_path(suite), out, to), f"read {to}")
