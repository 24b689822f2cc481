"""The commands. Each turns its flags into a recipe and hands it to a stage; what stages do stands elsewhere.

torch and the model libraries take seconds to import, so a command imports what it needs when it is called.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowopd.errors import ConfigError, FlowOpdError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowopd.results import Results
    from flowopd.session import Session
    from flowopd.stages.doctor import Check

app = typer.Typer(
    help="On-policy distillation for flow-matching text-to-image models: several experts in, one model out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
mini = typer.Typer(help="The mini world: how its base, prompts and judges were made.", no_args_is_help=True)
app.add_typer(mini, name="mini")

WIDE = 120
"""Columns of a table that goes to a file or another program."""

Config = Annotated[Path | None, typer.Option("--config", "-c", help="A recipe (YAML).", show_default=False)]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Change a key: distill.optim.updates=20. Repeatable.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The run's folder.")]
Base = Annotated[str | None, typer.Option(help="Base model: folder, hub id, or package:mini/base.")]
Teachers = Annotated[
    list[str] | None, typer.Option("--teacher", help="NAME=FOLDER of an expert's adapter. Repeatable.")
]
Prompts = Annotated[list[str] | None, typer.Option("--prompts", help="LABEL=FILE of training prompts. Repeatable.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train the experts too (about an hour).")
    ] = False,
    seed: Seed = None,
) -> None:
    """Three shipped experts become one model, on a CPU, in minutes.

    Example: `flowopd demo --out runs/demo`
    """
    _run("mini-from-scratch.yaml" if from_scratch else "mini-demo.yaml", _sets([], seed=seed), out)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe (YAML); a name from recipes/ will do.")],
    out: Out = Path("runs/run"),
    sets: Sets = None,
) -> None:
    """All stages of a recipe. Called again, it goes on where it stopped.

    Example: `flowopd run recipes/mini-demo.yaml --out runs/demo --set seed=1`
    """
    _run(recipe, sets or [], out)


@app.command()
def teacher(
    name: Annotated[str | None, typer.Option(help="The expert's name in the recipe; none is the reward's.")] = None,
    reward: Annotated[str | None, typer.Option(help="Reward to train on, if the recipe does not say.")] = None,
    config: Config = None,
    sets: Sets = None,
    base: Base = None,
    prompts: Prompts = None,
    out: Out = Path("runs/teacher"),
    seed: Seed = None,
) -> None:
    """Train one expert by Flow-GRPO on one reward.

    Example: `flowopd teacher --name text --reward ocr --base package:mini/base --prompts text=signs.txt`
    """
    from flowopd.stages.teacher import train_teacher

    name = name or reward
    if name is None:
        raise ConfigError("which expert? give --name NAME of the recipe's, or --reward NAME to train on")
    tree = _tree(config, base, [], prompts)
    if reward is not None:
        label = prompts[0].partition("=")[0] if prompts else name
        trained = tree.setdefault("teachers", {}).setdefault(name, {}).setdefault("train", {"prompts": label})
        trained["reward"] = reward
    folder = train_teacher(_session(tree, _sets(sets, seed=seed), out), name)
    _done(folder, f"flowopd sample --out {out} --model teacher:{name} --prompt '...'")


@app.command()
def merge(
    config: Config = None,
    sets: Sets = None,
    base: Base = None,
    teachers: Teachers = None,
    rank: Annotated[int | None, typer.Option(help="Truncate to this rank; exact without.")] = None,
    out: Out = Path("runs/merge"),
) -> None:
    """The exact mean of the experts' weight changes, with their interference.

    Example: `flowopd merge --base package:mini/base --teacher text=experts/text --teacher look=experts/look`
    """
    tree = _tree(config, base, teachers, [])
    tree["coldstart"] = {"kind": "merge", **({"rank": rank} if rank else {})}
    _cold_start(tree, sets, out)


@app.command()
def sft(
    config: Config = None,
    sets: Sets = None,
    base: Base = None,
    teachers: Teachers = None,
    prompts: Prompts = None,
    out: Out = Path("runs/sft"),
) -> None:
    """Cold start by flow matching on images that each expert draws for its own prompts.

    Example: `flowopd sft --config recipe.yaml --set coldstart.images=512 --out runs/sft`
    """
    tree = _tree(config, base, teachers, prompts)
    if (tree.get("coldstart") or {}).get("kind") != "sft":
        tree["coldstart"] = {"kind": "sft"}
    _cold_start(tree, sets, out)


@app.command()
def distill(
    config: Config = None,
    sets: Sets = None,
    base: Base = None,
    teachers: Teachers = None,
    prompts: Prompts = None,
    out: Out = Path("runs/distill"),
    seed: Seed = None,
) -> None:
    """On-policy distillation of the experts into one student, from the cold start that lies in --out, if any.

    Example: `flowopd distill --base package:mini/base --teacher text=experts/text --prompts text=signs.txt`
    """
    from flowopd.processes import agreed
    from flowopd.stages import coldstart as start
    from flowopd.stages import distill as stage

    tree = _tree(config, base, teachers, prompts)
    tree["distill"] = tree.get("distill") or {}
    session = _session(tree, _sets(sets, seed=seed), out)
    if session.recipe.coldstart is not None and agreed(lambda: not (out / "coldstart").exists()):
        start.cold_start(session)
    _done(stage.distill(session), f"flowopd sample --out {out} --prompt '...'")


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe (YAML); a name from recipes/ will do.")],
    gpu: Annotated[str, typer.Option(help="The GPU it is planned for.")] = "a100-80gb",
    flops: Annotated[float | None, typer.Option(help="Or its rate, in floating-point operations a second.")] = None,
    processes: Annotated[int, typer.Option(help="How many GPUs share an update.")] = 1,
    sets: Sets = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """What a training will take: parameters, memory, work and time of an update, traps. Needs no weights.

    Example: `flowopd plan recipes/sd35-medium.yaml --gpu h100`
    """
    from dataclasses import asdict

    from flowopd.recipe import load_recipe, recipe_path
    from flowopd.session import Session
    from flowopd.stages import plan as stage

    session = Session(load_recipe(recipe_path(recipe), sets or []), Path("runs/plan"))
    planned = stage.plan(session, gpu, flops, processes)
    typer.echo(json.dumps(asdict(planned)) if as_json else stage.described(planned))


@app.command()
def doctor(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe (YAML), or its name; none is the machine alone.")
    ] = None,
    out: Out = Path("runs/run"),
    sets: Sets = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Find what a machine and a recipe lack before a run does: libraries, room, prompts, experts, sound judges.

    Exit code 1 if a check failed. Example: `flowopd doctor recipes/mini-demo.yaml`
    """
    from dataclasses import asdict

    from flowopd.recipe import load_recipe, recipe_path
    from flowopd.stages import doctor as stage

    checks = stage.doctor(load_recipe(recipe_path(recipe), sets or []) if recipe else None, out)
    if as_json:
        typer.echo(json.dumps({"ok": stage.passed(checks), "checks": [asdict(check) for check in checks]}))
    else:
        _checks(checks)
    if not stage.passed(checks):
        raise typer.Exit(1)


@app.command("eval")
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

    changes = _sets(sets, **{"evaluate.split": split, "evaluate.limit": "null" if limit == 0 else limit})
    _table(stage.evaluate(_existing(config, changes, out)))


@app.command()
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

    session = _existing(config, sets or [], out)
    if prompts_file is None:
        for file in sample.draw_to(session, model, prompt or [], seed or 0, to):
            typer.echo(file)
        return
    prompts = read_prompts(located(prompts_file), layout or "")
    layouts.draw_layout(session, model, prompts, layout or "", images_per_prompt, seed, to)
    typer.echo(to)


@app.command()
def report(out: Out = Path("runs/demo")) -> None:
    """Write report.html, one self-contained page, from what a run folder holds; also table.md and wall.png.

    Example: `flowopd report --out runs/demo`
    """
    from flowopd.stages.report import write_report
    from flowopd.stages.summary import write_summary

    path = write_report(out)
    write_summary(out)
    typer.echo(path)


@mini.command("pretrain")
def mini_pretrain(
    out: Out = Path("runs/mini-base"),
    sets: Sets = None,
) -> None:
    """Train the mini base from nothing: autoencoder, corpus, transformer with its text side.

    Example: `flowopd mini pretrain --out runs/mini-base --set autoencoder_steps=500`
    """
    from flowopd.mini.pretrain import PretrainConfig, pretrain
    from flowopd.recipe import validated

    typer.echo(pretrain(out, validated(PretrainConfig, {}, sets or [], "pretrain")))


@mini.command("prompts")
def mini_prompts(out: Out = Path("runs/mini-prompts"), seed: Annotated[int, typer.Option()] = 0) -> None:
    """Write the mini world's prompt files.

    Example: `flowopd mini prompts --out runs/mini-prompts`
    """
    from flowopd.mini.splits import write_splits

    write_splits(out, seed)
    typer.echo(out)


def _run(recipe: str, sets: list[str], out: Path) -> None:
    from flowopd.pipeline import run as run_stages
    from flowopd.recipe import load_recipe, recipe_path

    results = run_stages(load_recipe(recipe_path(recipe), sets), out)
    if results is not None:
        _table(results)
        _done(out / "report.html", f"flowopd sample --out {out} --prompt 'a red sign that says \"K7\"'")


def _cold_start(tree: dict[str, Any], sets: list[str] | None, out: Path) -> None:
    from flowopd.stages.coldstart import cold_start

    _done(cold_start(_session(tree, sets or [], out)), f"flowopd distill --config RECIPE.yaml --out {out}")


def _session(tree: dict[str, Any], sets: list[str], out: Path) -> Session:
    from flowopd.pipeline import open_run
    from flowopd.recipe import make_recipe

    return open_run(make_recipe(tree, sets), out)


def _existing(config: Path | None, sets: list[str], out: Path) -> Session:
    """The session of a run that is there, with its own recipe unless another is given."""
    from flowopd.pipeline import manifest_recipe, open_run
    from flowopd.recipe import load_recipe, recipe_path

    recipe = load_recipe(recipe_path(str(config)), sets) if config else manifest_recipe(out, sets)
    return open_run(recipe, out)


def _tree(
    config: Path | None, base: str | None, teachers: list[str] | None, prompts: list[str] | None
) -> dict[str, Any]:
    """A recipe's plain values: the file's, changed by flags."""
    from flowopd.recipe import load_recipe, recipe_path

    tree: dict[str, Any] = {}
    if config is not None:
        tree = load_recipe(recipe_path(str(config))).model_dump(mode="json", exclude_unset=True)
    if base is not None:
        tree["base"] = base
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


def _sets(sets: list[str] | None, **flags: Any) -> list[str]:
    return [*(sets or []), *(f"{key}={value}" for key, value in flags.items() if value is not None)]


def _table(results: Results) -> None:
    from rich.console import Console
    from rich.table import Table

    from flowopd.processes import is_main

    console = Console(width=None if sys.stdout.isatty() else WIDE, quiet=not is_main())
    table = Table(title="mean ± half of the 95 % interval")
    table.add_column("model")
    for metric in results.metrics:
        table.add_column(metric, justify="right")
    for model, row in results.models.items():
        cells = [row.get(metric) for metric in results.metrics]
        table.add_row(
            model,
            *(f"{e.mean:.3f} [dim]±{(e.ci95[1] - e.ci95[0]) / 2:.3f}[/dim]" if e else "" for e in cells),
        )
    console.print(table)
    for metric, share in results.gap_closed.items():
        console.print(f"gap closed on {metric}: {'not defined' if share is None else f'{share:.3f}'}")


COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


def _checks(checks: Sequence[Check]) -> None:
    """A table on a terminal, else a line a check; then what failed, on standard error."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table("", "check", "fact", "mend")
        for check in checks:
            table.add_row(Text(check.state, COLOURS[check.state]), *map(Text, (check.name, check.fact, check.mend)))
        Console().print(table)
    else:
        for check in checks:
            typer.echo(f"{check.state:8} {check.name}: {check.fact}" + (f"; {check.mend}" if check.mend else ""))
    failed = [check.name for check in checks if check.state == "failed"]
    if failed:
        typer.secho(f"failed: {', '.join(failed)}", fg="red", err=True)


def _done(path: Path, following: str) -> None:
    """The result on standard output, a hint on standard error; of several processes the main one speaks."""
    from flowopd.processes import is_main

    if is_main():
        typer.echo(path)
        typer.echo(f"next: {following}", err=True)


def main() -> None:
    """The `flowopd` command: exit code 0, 2 on a user's mistake, 1 on a failure of ours."""
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    try:
        app()
    except FlowOpdError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(2)
