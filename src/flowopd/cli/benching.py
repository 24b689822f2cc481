"""The command that measures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flowopd.cli.shown import hint
from flowopd.errors import ConfigError

SWITCH = {"on": True, "off": False}


def bench(
    model: Annotated[str | None, typer.Option(help="Folder or hub id of the base; none is the preset's.")] = None,
    preset: Annotated[str, typer.Option(help="mini, the mini world's base; or small, 55 M random weights.")] = "mini",
    teachers: Annotated[int, typer.Option(help="Random experts; every sample has one of them.")] = 3,
    batch: Annotated[int, typer.Option(help="Samples of an update.")] = 6,
    steps: Annotated[int, typer.Option(help="Steps of a rollout.")] = 10,
    query: Annotated[str, typer.Option(help="Trained steps: all, a number of random ones, or beta, one.")] = "all",
    guidance: Annotated[float, typer.Option(help="Of the teachers, the anchor, and the student.")] = 4.5,
    student_guidance: Annotated[
        float | None, typer.Option(help="Of the student alone: 1 absorbs the teachers'.", show_default=False)
    ] = None,
    anchor: Annotated[str, typer.Option(help="on, the base, or off.")] = "on",
    schedule: Annotated[str, typer.Option(help="fused, replay, or naive, the field's.")] = "fused",
    vs: Annotated[
        str | None, typer.Option("--vs", help="Another schedule, in turns; naive trains all steps, guided.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Updates that are timed.")] = 5,
    patches: Annotated[int | None, typer.Option(help="Patches along a side; none is the model's own.")] = None,
    rank: Annotated[int, typer.Option(help="Of student and teachers.")] = 32,
    threads: Annotated[int | None, typer.Option(help="Threads of torch; none is as it is.")] = None,
    device: Annotated[str, typer.Option(help="Where it runs.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16, of the base.")] = "float32",
    scan: Annotated[str | None, typer.Option(help="A curve over batch, steps, tokens or teachers.")] = None,
    values: Annotated[list[int] | None, typer.Option("--value", help="A value of the scan. Repeatable.")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Torch's table of one update instead.")] = False,
    page: Annotated[
        Path | None, typer.Option(help="Only write a page of the measurements in this folder.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also a file for the JSON, or the page.")] = None,
) -> None:
    """Measure one update: time, forwards and backwards by role, work against the machine's peak, memory.

    Example: `flowopd bench --preset small --vs naive --json`
    """
    if scan and vs:
        raise ConfigError("--scan measures one schedule; leave --vs out, or give --schedule")
    if page is not None:
        from flowopd.stages.bench import write_page

        typer.echo(write_page(page, out))
        return
    tree = {
        **{"model": model, "preset": preset, "teachers": teachers, "batch": batch, "steps": steps, "query": query},
        **{"guidance": guidance, "student_guidance": student_guidance, "anchor": SWITCH.get(anchor, anchor)},
        **{"schedule": schedule, "patches": patches, "rank": rank, "repeats": repeats, "threads": threads},
    }
    _measure({**tree, "device": device, "dtype": dtype}, vs, (scan, values or ()), profile, as_json, out)


def _measure(
    tree: dict[str, Any],
    vs: str | None,
    curve: tuple[str | None, Sequence[int]],
    profile: bool,
    as_json: bool,
    out: Path | None,
) -> None:
    """Print what was asked for, and keep it in a file if there is one; `curve` is a setting to scan and its values."""
    from flowopd.recipe import validated
    from flowopd.stages import bench as stage

    config, scanned = validated(stage.BenchConfig, tree, where="bench"), curve[0]
    if profile:
        shown = kept = stage.profiled(config)
    else:
        found = stage.scan(config, scanned, curve[1]) if scanned else stage.bench(config, vs)
        kept = json.dumps(found)
        shown = kept if as_json else stage.curve(found) if scanned else stage.described(found)
    if out is not None:
        _write(kept, out)
    typer.echo(shown)
    hint("flowopd bench --vs naive, or flowopd plan RECIPE for the time of an update on a GPU")


def _write(text: str, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text.rstrip() + "\n", encoding="utf-8")
