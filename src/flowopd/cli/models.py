"""Commands that look at a run's models: scores, pictures, a page, and what is taken home."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowopd.cli.flags import (
    MODELS,
    OUTPUT,
    Config,
    DryRun,
    LastRun,
    Seed,
    Sets,
    Track,
    existing_session,
    recipe_of_run,
    run_meant,
    settings,
    tracked,
)
from flowopd.cli.shown import finish, hint, show_dry_run, show_results
from flowopd.errors import ConfigError

if TYPE_CHECKING:
    from flowopd.session import Session

DRAWN, HUB = "What is drawn", "Hub"
"""Groups of options: what pictures are of, and where a model is uploaded."""

Rows = Annotated[
    str | None,
    typer.Option(
        help="Rows, apart by commas; checkpoints too, as checkpoint:distill/20.",
        show_default="the recipe's, or all but checkpoints",
        rich_help_panel=MODELS,
    ),
]
Checkpoints = Annotated[
    bool,
    typer.Option(
        "--checkpoints",
        help="Judge every checkpoint that was kept too: quality against compute, to curve.json.",
        rich_help_panel=MODELS,
    ),
]
Drawer = Annotated[
    str,
    typer.Option(
        help="base, teacher:NAME, merge or sft, grpo_mix, student, or checkpoint:STAGE/STEP.",
        rich_help_panel=MODELS,
    ),
]


def evaluate(
    config: Config = None,
    sets: Sets = None,
    out: LastRun = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="train, test, unseen or rewritten prompts.", show_default="the recipe's", rich_help_panel=MODELS
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="At most so many prompts of a label; 0 is all.", show_default="the recipe's", rich_help_panel=MODELS
        ),
    ] = None,
    models: Rows = None,
    checkpoints: Checkpoints = False,
    track: Track = None,
    dry_run: DryRun = False,
) -> None:
    """Base, experts, merge and student in one table, with intervals, to results.json.

    Without --config, the recipe in the run's manifest. Example: `flowopd eval --out runs/demo --limit 0`
    """
    chosen = {
        "evaluate.split": split,
        "evaluate.limit": "null" if limit == 0 else limit,
        "evaluate.models": None if models is None else json.dumps(models.split(",")),
        "evaluate.checkpoints": "true" if checkpoints else None,
        "track": tracked(track),
    }
    changes, out = settings(sets, **chosen), run_meant(out, config)
    if dry_run:
        recipe = recipe_of_run(config, changes, out)
        from flowopd.pipeline import foreseen

        show_dry_run(recipe, foreseen(recipe, out, ["eval"]))
        return
    session = existing_session(config, changes, out)
    from flowopd.stages import evaluate as stage

    show_results(stage.evaluate(session))
    hint(f"flowopd report --out {out}")


PromptsFile = Annotated[
    Path | None,
    typer.Option(
        help="Or a file of prompts, a picture of each, or as many as a --layout has.",
        show_default=False,
        rich_help_panel=DRAWN,
    ),
]


def sample(
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", help="What to draw. Repeatable.", show_default=False, rich_help_panel=DRAWN),
    ] = None,
    prompts_file: PromptsFile = None,
    layout: Annotated[
        str | None,
        typer.Option(
            help="compbench or geneval: the folders that these benchmarks' tools read.",
            show_default=False,
            rich_help_panel=DRAWN,
        ),
    ] = None,
    images_per_prompt: Annotated[
        int, typer.Option(min=1, help="Pictures of each prompt in a layout.", rich_help_panel=DRAWN)
    ] = 4,
    model: Drawer = "student",
    config: Config = None,
    sets: Sets = None,
    out: LastRun = None,
    seed: Seed = None,
    to: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the pictures.", show_default="OUT/pictures, or OUT/LAYOUT", rich_help_panel=OUTPUT
        ),
    ] = None,
) -> None:
    """Draw pictures with any model of a run: of prompts, or of a whole file for another benchmark.

    Example: `flowopd sample --out runs/demo --model student --prompt 'a red sign that says "K7"'`

    For GenEval: `flowopd sample --out runs/mine --prompts-file evaluation_metadata.jsonl --layout geneval --to geneval`
    """
    if any(not text.strip() for text in prompt or ()):
        raise ConfigError("a --prompt is empty; say what to draw")
    if bool(prompt) == bool(prompts_file) or (layout and not prompts_file):
        raise ConfigError(
            "what to draw? give --prompt TEXT, or --prompts-file FILE, maybe with --layout compbench or geneval"
        )
    session = existing_session(config, sets or [], run_meant(out, config))
    to = to or session.out / (layout or "pictures")
    from flowopd.hub import located
    from flowopd.prompts import read_prompts
    from flowopd.stages import layouts

    prompts = read_prompts(located(prompts_file), layout or "") if prompts_file else []
    if layout is None:
        _draw_each(session, model, prompt or [one.text for one in prompts], seed or 0, to)
        return
    layouts.draw_layout(session, model, prompts, layout, images_per_prompt, seed, to)
    finish(to, f"judge {to} with the tools of {layout}")


def _draw_each(session: Session, model: str, prompts: list[str], seed: int, to: Path) -> None:
    from flowopd.stages import sample

    for file in sample.draw_to(session, model, prompts, seed, to):
        typer.echo(file)
    hint(f"look at {to}, or draw with --model base or --model teacher:NAME to compare")


def export(
    out: LastRun = None,
    to: Annotated[
        list[str] | None,
        typer.Option(
            help="diffusers, peft, comfyui or merged. Repeatable.", show_default="diffusers", rich_help_panel=OUTPUT
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="student, merge or sft, grpo_mix, teacher:NAME, or checkpoint:STAGE/STEP.", rich_help_panel=MODELS
        ),
    ] = "student",
    dest: Annotated[
        Path | None,
        typer.Option(help="Folder of a single format.", show_default="OUT/export/FORMAT", rich_help_panel=OUTPUT),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16, of a merged model.", show_default="the base's", rich_help_panel=OUTPUT
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(help="Upload a single format to the hub, as OWNER/NAME.", show_default=False, rich_help_panel=HUB),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Let what is pushed be private.", rich_help_panel=HUB)
    ] = False,
    sets: Sets = None,
) -> None:
    """Take a model of a run home: read back and compared with the trained adapter, with a model card.

    Without --to, for diffusers. Example: `flowopd export --out runs/demo --to diffusers --to comfyui`
    """
    session = existing_session(None, ["compile=false", *(sets or [])], run_meant(out))
    from flowopd.stages import export as stage

    folders = stage.export(session, to or ["diffusers"], model, dest, dtype=dtype, push=push, private=private)
    finish("\n".join(map(str, folders)), f"how to use it stands in {folders[-1] / 'README.md'}")


def report(out: LastRun = None) -> None:
    """Write report.html, one self-contained page, from what a run folder holds; also table.md and wall.png.

    Example: `flowopd report --out runs/demo`
    """
    from flowopd.stages.report.page import write_report
    from flowopd.stages.summary import write_summary

    out = run_meant(out)
    path = write_report(out)
    write_summary(out)
    finish(path, f"open {path} in a browser")
