"""Commands that look at a run's models: scores, pictures, a page, and what is taken home."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowopd.cli.flags import Config, Out, Seed, Sets, existing_session, settings
from flowopd.cli.shown import finish, show_results
from flowopd.errors import ConfigError


def evaluate(
    config: Config = None,
    sets: Sets = None,
    out: Out = Path("runs/demo"),
    split: Annotated[str | None, typer.Option(help="train, test, unseen or rewritten.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many prompts of a label; 0 is all.")] = None,
) -> None:
    """Base, experts, merge and student in one table, with intervals, to results.json.

    Without --config, the recipe in the run's manifest. Example: `flowopd eval --out runs/demo --limit 0`
    """
    from flowopd.stages import evaluate as stage

    changes = settings(sets, **{"evaluate.split": split, "evaluate.limit": "null" if limit == 0 else limit})
    show_results(stage.evaluate(existing_session(config, changes, out)))


def sample(
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="What to draw. Repeatable.")] = None,
    prompts_file: Annotated[
        Path | None, typer.Option(help="Or a file of prompts, drawn into a --layout.", show_default=False)
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="compbench or geneval: the folders that these benchmarks' tools read.")
    ] = None,
    images_per_prompt: Annotated[int, typer.Option(min=1, help="Pictures of each prompt of the file.")] = 4,
    model: Annotated[str, typer.Option(help="base, teacher:NAME, merge or sft, grpo_mix or student.")] = "student",
    config: Config = None,
    sets: Sets = None,
    out: Out = Path("runs/demo"),
    seed: Seed = None,
    to: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("pictures"),
) -> None:
    """Draw pictures with any model of a run: of prompts, or of a whole file for another benchmark.

    Example: `flowopd sample --out runs/demo --model student --prompt 'a red sign that says "K7"'`

    For GenEval: `flowopd sample --out runs/mine --prompts-file evaluation_metadata.jsonl --layout geneval --to geneval`
    """
    if bool(prompt) == bool(prompts_file) or bool(prompts_file) != bool(layout):
        raise ConfigError("what to draw? give --prompt TEXT, or --prompts-file FILE with --layout compbench or geneval")
    from flowopd.hub import located
    from flowopd.prompts import read_prompts
    from flowopd.stages import layouts, sample

    session = existing_session(config, sets or [], out)
    if prompts_file is None:
        for file in sample.draw_to(session, model, prompt or [], seed or 0, to):
            typer.echo(file)
        return
    prompts = read_prompts(located(prompts_file), layout or "")
    layouts.draw_layout(session, model, prompts, layout or "", images_per_prompt, seed, to)
    typer.echo(to)


def export(
    out: Out = Path("runs/demo"),
    to: Annotated[list[str] | None, typer.Option(help="diffusers, peft, comfyui or merged. Repeatable.")] = None,
    model: Annotated[str, typer.Option(help="student, merge or sft, grpo_mix, or teacher:NAME.")] = "student",
    dest: Annotated[
        Path | None, typer.Option(help="Folder of a single format; none is OUT/export/FORMAT.", show_default=False)
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16, of a merged model; none is the base's.")
    ] = None,
    push: Annotated[str | None, typer.Option(help="Upload a single format to the hub, as OWNER/NAME.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Let what is pushed be private.")] = False,
    sets: Sets = None,
) -> None:
    """Take a model of a run home: read back and compared with the trained adapter, with a model card.

    Without --to, for diffusers. Example: `flowopd export --out runs/demo --to diffusers --to comfyui`
    """
    from flowopd.stages import export as stage

    session = existing_session(None, ["compile=false", *(sets or [])], out)
    folders = stage.export(session, to or ["diffusers"], model, dest, dtype=dtype, push=push, private=private)
    finish("\n".join(map(str, folders)), f"how to use it stands in {folders[-1] / 'README.md'}")


def report(out: Out = Path("runs/demo")) -> None:
    """Write report.html, one self-contained page, from what a run folder holds; also table.md and wall.png.

    Example: `flowopd report --out runs/demo`
    """
    from flowopd.stages.report.page import write_report
    from flowopd.stages.summary import write_summary

    path = write_report(out)
    write_summary(out)
    typer.echo(path)


def study(
    suite: Annotated[str, typer.Argument(help="A suite (YAML); a name from recipes/ will do.")],
    out: Out = Path("runs/study"),
    to: Annotated[Path, typer.Option(help="Folder for RESULTS.md and its figures.")] = Path("docs"),
) -> None:
    """One page for all runs of a suite: tables over seeds, claims put to the test, figures, costs.

    Example: `flowopd study recipes/mini-paper/all.yaml --out runs/mini-paper --to docs`
    """
    from flowopd.recipe import recipe_path
    from flowopd.stages.study import write_study

    typer.echo(write_study(recipe_path(suite), out, to))
