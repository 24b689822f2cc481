"""Commands that measure what a run's training was like, and that make a page of many runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowopd.cli.flags import MODELS, OUTPUT, RUN, LastRun, NewRun, Sets, existing_session, run_meant, run_of
from flowopd.cli.shown import finish, show_cosines


def study(
    suite: Annotated[str, typer.Argument(help="A suite (YAML), or the name of one that ships.")],
    out: NewRun = None,
    to: Annotated[
        Path, typer.Option(help="Folder for RESULTS.md, and results/ for its files.", rich_help_panel=OUTPUT)
    ] = Path("docs"),
) -> None:
    """One page for all runs of a suite: tables over seeds, claims put to the test, figures, costs.

    What finished runs found is kept beside it, without weights, so that runs elsewhere and later ones add to it.
    Example: `flowopd study recipes/mini-paper/all.yaml --out runs/mini-paper --to docs`
    """
    from flowopd.recipe import recipe_path
    from flowopd.stages.study import write_study

    finish(write_study(recipe_path(suite), run_of(suite, out), to), f"read {to}")


def interference(
    out: LastRun = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Whose weights: student, grpo_mix, base, merge, checkpoint:STAGE/STEP, or start, a stage's own start.",
            show_default="what the stage made",
            rich_help_panel=MODELS,
        ),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(
            help="Whose loss: distill or grpo_mix.", show_default="those of the recipe", rich_help_panel=MODELS
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="How often two batches of every task are compared.", rich_help_panel=RUN)
    ] = 8,
    sets: Sets = None,
) -> None:
    """Do the tasks pull apart? Cosines between the gradients of their losses, with their noise, to interference.json.

    Example: `flowopd interference --out runs/demo --model start --repeats 4`
    """
    out = run_meant(out)
    session = existing_session(None, sets or [], out)
    from flowopd.stages import interference as measuring

    show_cosines(measuring.write_interference(session, stage, model, repeats))
    finish(out / measuring.INTERFERENCE, "name it in a suite's pictures.interference, for flowopd study")
