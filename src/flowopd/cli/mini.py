"""Commands that make the mini world's parts anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowopd.cli.flags import Out
from flowopd.cli.shown import finish


def pretrain(
    out: Out = Path("runs/mini-base"),
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting: autoencoder_steps=500. Repeatable.", show_default=False),
    ] = None,
) -> None:
    """Train the mini base from nothing: autoencoder, corpus, transformer with its text side.

    Example: `flowopd mini pretrain --out runs/mini-base --set autoencoder_steps=500`
    """
    from flowopd.mini import pretrain as stage
    from flowopd.recipe import validated

    base = stage.pretrain(out, validated(stage.PretrainConfig, {}, sets or [], "pretrain"))
    finish(base, f"flowopd run RECIPE.yaml --set base={base}")


def prompts(
    out: Out = Path("runs/mini-prompts"),
    seed: Annotated[int, typer.Option(help="Seed of the prompts that are drawn.")] = 0,
) -> None:
    """Write the mini world's prompt files.

    Example: `flowopd mini prompts --out runs/mini-prompts`
    """
    from flowopd.mini.splits import write_splits

    write_splits(out, seed)
    finish(out, f"name the files of {out} as prompts in a recipe")
