"""A page of measurements, written from their files alone: every number on it was measured, or counted by reading."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

from flowopd.errors import DataError
from flowopd.stages.bench.counting import ROLES

PAGE = "PERFORMANCE.md"
OTHERS = "others.json"

Found = Mapping[str, Any]

HEAD = """# Performance

What one update of distillation asks of the models, and what it takes. Every number comes from the files in
`{folder}`, which `make performance` writes anew; forwards and backwards are counted by wrapping the models'
fields. `naive` is the field's schedule in this code's own words: a rollout without a gradient, then for every step a
student forward, a teacher's, the anchor's and a backward, with a student that is guided as its teachers are. Times are
medians of updates that take turns with those of the other schedule; ratios are the median over such pairs, with the
least and the greatest.
"""

AGAINST = """## Against other schedules

| measurement | samples x steps | query | guidance of student / teachers | seconds | against | seconds | ratio |
|---|---|---|---|---:|---|---:|---:|
"""

COUNTS = """## Forwards and backwards

For each sample and step of the grid; rows count a guided sample twice. A rollout ends with its last queried step.
The ratio is that of all passes, a backward counted once (where quality is held against compute it counts as two).

| measurement | schedule | student | teacher | anchor | backward | rows forward | ratio of passes |
|---|---|---:|---:|---:|---:|---:|---:|
"""

FLOOR = """## What the time is

The floor is the work of the needed forwards and backwards at the machine's measured rate of matrix products; the ratio
says how far above it an update is. Outside the model is all that is neither a forward nor a backward of the
transformer: sampling, noise, guidance, the loss, the optimiser.

| measurement | work, GFLOP | rate, GFLOP/s | floor, s | measured, s | ratio | outside the model | peak memory, MiB |
|---|---:|---:|---:|---:|---:|---:|---:|
"""

SCAN = """| {name} | seconds | least to greatest | ms a sample, step | GFLOP | attention | ms a GFLOP | peak, MiB |
|---:|---:|---|---:|---:|---:|---:|---:|
"""

READ = """## Other public implementations

Forwards for each sample and trained step, counted by reading their code; a guided forward counts once.

| implementation | student | teacher | anchor or reference | backward | besides | read |
|---|---|---|---|---|---|---|
"""


def write_page(folder: Path, out: Path | None = None) -> Path:
    """PERFORMANCE.md beside the folder of measurements, or at `out`, and a plot of each scan in the folder.

    Raises DataError if the folder holds no measurement, or a file that is not one.
    """
    found = {file.stem: _read(file) for file in sorted(folder.glob("*.json")) if file.name != OTHERS}
    if not found:
        raise DataError(f"{folder} holds no measurement; write some by flowopd bench --out {folder}/NAME.json")
    scans = {name: each for name, each in found.items() if "scan" in each}
    single = {name: each for name, each in found.items() if "scan" not in each}
    for name, each in scans.items():
        _plot(each, folder / f"{name}.svg")
    parts = [
        HEAD.format(folder=folder.name),
        _machine(single),
        AGAINST + _lines(_against, {name: each for name, each in single.items() if "compare" in each}),
        COUNTS + "".join(_counts(name, each) for name, each in single.items()),
        FLOOR + _lines(_floor, single),
        *(_scanned(name, each, folder) for name, each in scans.items()),
        *(_profile(file) for file in sorted(folder.glob("*.txt"))),
        *([_others(_read(folder / OTHERS))] if (folder / OTHERS).exists() else []),
    ]
    path = out or folder.parent / PAGE
    path.write_text("\n".join(part for part in parts if part), encoding="utf-8")
    return path


def _read(file: Path) -> Found:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{file} is not JSON ({error.msg}); measure it again") from None


def _lines(row: Any, found: Mapping[str, Found]) -> str:
    return "".join(f"| {' | '.join(row(name, each))} |\n" for name, each in found.items())


def _machine(found: Mapping[str, Found]) -> str:
    shown = {
        f"{each['model']}: {each['parameters'] / 1e6:.1f} M parameters, {each['image_tokens']} image and "
        f"{each['text_tokens']} text tokens, {each['dtype']} on {each['threads']} threads of {each['device']}"
        for each in found.values()
    }
    return "".join(f"- {line}\n" for line in sorted(shown))


def _against(name: str, each: Found) -> list[str]:
    other = each["compare"]
    return [
        name,
        f"{each['batch']} x {each['steps']}",
        each["query"],
        f"{each['student_guidance']:g} / {each['guidance']:g}",
        f"{each['seconds_per_update']:.2f}",
        other["schedule"],
        f"{other['seconds_per_update']:.2f}",
        f"{other['ratio']:.2f} ({min(other['ratios']):.2f} to {max(other['ratios']):.2f})",
    ]


def _counts(name: str, each: Found) -> str:
    lines = [_passes(name, each, 1.0)]
    if "compare" in each:
        lines.append(_passes("", each["compare"], each["compare"]["passes_ratio"]))
    return "".join(lines)


def _passes(name: str, row: Found, ratio: float) -> str:
    forwards = " | ".join(f"{row['forwards'][role]:.3g}" for role in ROLES)
    rows = sum(row["rows"].values())
    return f"| {name} | {row['schedule']} | {forwards} | {row['backwards']:.3g} | {rows:.3g} | {ratio:.2f} |\n"


def _floor(name: str, each: Found) -> list[str]:
    return [
        name,
        f"{each['flops_per_update'] / 1e9:.1f}",
        f"{each['matmul_flops_per_second'] / 1e9:.0f}",
        f"{each['floor_seconds']:.2f}",
        f"{each['seconds_per_update']:.2f}",
        f"{each['seconds_per_update'] / each['floor_seconds']:.2f}",
        f"{100 * each['outside_model_share']:.1f} %",
        f"{each['peak_memory_mib']:.0f}",
    ]


def _scanned(name: str, each: Found, folder: Path) -> str:
    points: Sequence[Found] = each["points"]
    best = min(points, key=lambda point: point["seconds_per_sample_step"])
    lines = [
        f"| {point['value']} | {point['seconds_per_update']:.3f} | {point['seconds_spread'][0]:.3f} to "
        f"{point['seconds_spread'][1]:.3f} | {1000 * point['seconds_per_sample_step']:.1f} | "
        f"{point['flops_per_update'] / 1e9:.1f} | {100 * point['attention_share']:.1f} % | "
        f"{1e12 * point['seconds_per_update'] / point['flops_per_update']:.2f} | {point['peak_memory_mib']:.0f} |\n"
        for point in points
    ]
    title = f"## Over {each['scan']}\n\n![Seconds of an update over {each['scan']}]({folder.name}/{name}.svg)\n\n"
    note = f"\nThe least time a sample and step is at {each['scan']} {best['value']}.\n"
    return title + SCAN.format(name=each["scan"]) + "".join(lines) + note + _added(each)


def _added(each: Found) -> str:
    """What a teacher adds: in memory, and in time between the first and the last point of a scan."""
    if each["scan"] != "teachers":
        return ""
    first, last = each["points"][0], each["points"][-1]
    more = last["value"] - first["value"]
    memory = last["teacher_memory_mib"]
    seconds = (last["seconds_per_update"] / first["seconds_per_update"] - 1) / more
    return (
        f"Each teacher adds {memory:.2f} MiB of tensors and of the objects that hold them, "
        f"{memory / last['adapter_mib']:.2f} times its adapter's {last['adapter_mib']:.2f} MiB, and "
        f"{100 * seconds:.1f} % to the time of the same batch.\n"
    )


def _profile(file: Path) -> str:
    text = file.read_text(encoding="utf-8").rstrip()
    return f"## The operations of an update, {file.stem}\n\n```\n{text}\n```\n"


def _others(found: Found) -> str:
    lines = [
        f"| {each['name']} | {each['student']} | {each['teacher']} | {each['anchor']} | {each['backward']} | "
        f"{each['besides']} | {each['repository']} `{each['file']}` at {each['commit'][:10]} |\n"
        for each in found["implementations"]
    ]
    return READ + "".join(lines) + f"\n{found['note']}\n"


def _plot(each: Found, file: Path) -> None:
    """Seconds over the setting, beside what they would be in proportion to the work, from the last point."""
    points = each["points"]
    values = [point["value"] for point in points]
    seconds = [point["seconds_per_update"] for point in points]
    work = [point["flops_per_update"] for point in points]
    with matplotlib.rc_context({"svg.hashsalt": "flowopd", "svg.fonttype": "none"}):
        figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
        axes.plot(values, seconds, "o-", label="measured")
        axes.plot(values, [seconds[-1] * done / work[-1] for done in work], "--", label="in proportion to the work")
        axes.set(xlabel=each["scan"], ylabel="seconds an update", xlim=(0, None), ylim=(0, None))
        axes.legend()
        figure.savefig(file, metadata={"Date": None})
        plt.close(figure)
