"""A study's figures, as PNG files beside its page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowopd.durable import replace_bytes, replace_picture
from flowopd.results import BASE
from flowopd.stages.study.records import ROUTED, Line, Spot, Study, label
from flowopd.stages.summary import WALL, tiled
from flowopd.suite import Compute, parted

DPI = 160
WIDTH = 7.0
"""Inches."""


def draw(study: Study, folder: Path) -> dict[str, str]:
    """The figures that the suite asks for, as far as their rows are there; returns {caption: file name}."""
    drawn: dict[str, str] = {}
    asked: Mapping[str, tuple[Any, Callable[[Study, Any], Figure | None]]] = {
        "compute": (study.compute, compute),
        "forgetting": (study.pictures.forgetting, forgetting),
        "seesaw": (study.pictures.seesaw, seesaw),
        "gaps": (study.pictures.gaps, gaps),
        "interference": (study.pictures.interference, interference),
    }
    for name, (source, make) in asked.items():
        figure = make(study, source) if source is not None else None
        if figure is not None:
            file = BytesIO()
            figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
            replace_bytes(folder / f"{name}.png", file.getvalue())
            drawn[CAPTIONS[name]] = f"{folder.name}/{name}.png"
    return drawn | _wall(study, folder)


def _wall(study: Study, folder: Path) -> dict[str, str]:
    """The wall of the pictures that lie in `folder`, if it has them all."""
    files = {} if study.wall is None else {name: [folder / f for f in own] for name, own in study.wall.files.items()}
    if study.wall is None or not all(file.exists() for own in files.values() for file in own):
        return {}
    shown = tiled(study.wall.prompts, {label(name): own for name, own in files.items()})
    replace_picture(folder / WALL, shown, optimize=True)
    return {CAPTIONS["wall"]: f"{folder.name}/{WALL}"}


CAPTIONS = {
    "compute": "Quality against compute, by checkpoints; dashed with the passes of the experts",
    "wall": "Test prompts and prompts in other words, with the same noise for all",
    "forgetting": "What each expert gains and forgets: difference to the base",
    "seesaw": "The seesaw: adding rewards one by one",
    "gaps": "Squared distance of the student's velocities from its expert's by step of the path, on training prompts, "
    "one seed: the first and the last tenth of the updates, and the share by which it fell",
    "interference": "Cosines between the tasks' gradients; on the diagonal two batches of one task",
}


def compute(study: Study, asked: Compute) -> Figure | None:
    """Averages, and gaps closed where they are known, against passes and against seconds: a line a row."""
    curves = {row: study.curves[row] for row in asked.rows if row in study.curves}
    if not curves:
        return None
    measures = {"average": [spot.average for curve in curves.values() for spot in curve]}
    closed = [spot.closed for curve in curves.values() for spot in curve if spot.closed is not None]
    measures |= {"closed": closed} if closed else {}
    figure = Figure(figsize=(WIDTH, 0.5 + 2.5 * len(measures)), layout="constrained")
    panels = figure.subplots(len(measures), 2, sharex="col", sharey="row", squeeze=False)
    for measure, row in zip(measures, panels, strict=True):
        for axes, spent in zip(row, ("passes", "seconds"), strict=True):
            _curves(axes, curves, spent, measure)
            if spent == "passes":
                _with_experts(axes, curves, {row: study.costs[row].taught for row in curves}, measure)
            axes.grid(alpha=0.3)
        row[0].set_ylabel(MEASURES[measure])
    for axes, words in zip(panels[-1], ("passes through the transformer", "seconds"), strict=True):
        axes.set_xlabel(words)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False)
    return figure


MEASURES = {"average": "average", "closed": "gap closed"}


def _curves(axes: Axes, curves: Mapping[str, Sequence[Spot]], spent: str, measure: str) -> None:
    """A line a row, as far as both numbers are known; the axis is linear up to the first point, then logarithmic."""
    shown = {name: [(getattr(spot, spent), getattr(spot, measure)) for spot in curve] for name, curve in curves.items()}
    known = {name: [pair for pair in pairs if None not in pair] for name, pairs in shown.items()}
    for name, pairs in known.items():
        axes.plot([x for x, _ in pairs], [y for _, y in pairs], marker="o", markersize=3, linewidth=1.4, label=name)
    spans = [x for pairs in known.values() for x, _ in pairs if x > 0]
    if spans:
        axes.set_xscale("symlog", linthresh=min(spans), linscale=0.5)
        least, most = math.ceil(math.log10(min(spans))), math.floor(math.log10(max(spans)))
        axes.set_xticks([0, *(10.0**power for power in range(least, most + 1))])


def _with_experts(axes: Axes, curves: Mapping[str, Sequence[Spot]], taught: Mapping[str, float], measure: str) -> None:
    """The lines of rows that learn from experts once more, dashed, after the passes that those took."""
    for line, (row, curve) in zip(axes.get_lines(), curves.items(), strict=True):
        known = [(spot.passes + taught[row], value) for spot in curve if (value := getattr(spot, measure)) is not None]
        if taught[row] and known:
            axes.plot(*zip(*known, strict=True), linestyle="--", linewidth=1.4, color=line.get_color())


def forgetting(study: Study, row: str) -> Figure | None:
    """Models of a row against metrics: the difference of means to the base."""
    lines = {parted(name)[1]: line for name, line in study.lines.items() if parted(name)[0] == row}
    base, _ = lines.pop(BASE, None), lines.pop(ROUTED, None)
    if base is None or not lines:
        return None
    metrics = list(base.metrics)
    table = np.array([[_mean(line, name) - base.metrics[name].mean for name in metrics] for line in lines.values()])
    figure = Figure(figsize=(WIDTH, 1.4 + 0.4 * len(lines)), layout="constrained")
    axes = figure.subplots()
    limit = float(np.nanmax(np.abs(table)))
    axes.imshow(table, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto", alpha=0.75)
    _ticks(axes, table, metrics, list(lines), "{:+.2f}")
    return figure


def seesaw(study: Study, table: str) -> Figure | None:
    """One line a metric over the rows of a table, in their order."""
    rows = [row for row in study.tables[table].rows if _only(study, row) is not None]
    if len(rows) < 2:
        return None
    lines = [line for row in rows if (line := _only(study, row)) is not None]
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    for name in study.tables[table].metrics or lines[0].metrics:
        axes.plot(range(len(rows)), [_mean(line, name) for line in lines], marker="o", label=name)
    axes.set_xticks(range(len(rows)), rows)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, ncols=3)
    return figure


def gaps(study: Study, row: str) -> Figure | None:
    """Three panels of a student's gaps by label and step: at first, in the end, and the share that closed."""
    gap = study.gaps.get(row)
    if gap is None:
        return None
    labels = list(gap.first)
    first, last = (_table(side, labels) for side in (gap.first, gap.last))
    figure = Figure(figsize=(WIDTH, 1.2 + 0.28 * len(first)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    largest = float(np.nanmax(np.stack([first, last])))
    for axes, title, values in zip(panels, ("first updates", "last updates"), (first, last), strict=False):
        axes.imshow(np.sqrt(values), cmap="Oranges", vmin=0, vmax=np.sqrt(largest), aspect="auto")
        _ticks(axes, values, labels, _steps(values), "{:.2g}")
        axes.set_title(title, loc="left", fontsize=9)
    closed = 1 - np.divide(last, first, out=np.full_like(first, np.nan), where=first > 0)
    panels[2].imshow(closed, cmap="RdBu", vmin=-1, vmax=1, aspect="auto", alpha=0.75)
    _ticks(panels[2], closed, labels, _steps(closed), "{:.0%}")
    panels[2].set_title("fell by", loc="left", fontsize=9)
    panels[0].set_ylabel("step of the path, noise on top")
    return figure


def _table(columns: Mapping[str, Sequence[float | None]], labels: Sequence[str]) -> np.ndarray:
    """Values (rows, labels), nan where there is none."""
    return np.array([[np.nan if value is None else value for value in columns[label]] for label in labels]).T


def _steps(values: np.ndarray) -> list[str]:
    return [str(step) for step in range(len(values))]


def interference(study: Study, models: Sequence[str]) -> Figure | None:
    """A panel a measurement, two in a row: tasks against tasks."""
    found = [(name, one) for name in models for one in study.interference.get(name, ())]
    if not found:
        return None
    rows = -(-len(found) // 2)
    figure = Figure(figsize=(WIDTH, rows * (0.9 + 0.4 * WIDTH)), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False).flat
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    for axes, (name, one) in zip(panels, found, strict=False):
        values = np.array([[np.nan if value is None else value for value in row] for row in one.mean])
        axes.imshow(values, cmap="RdBu", vmin=-1, vmax=1, alpha=0.75)
        _ticks(axes, values, one.tasks, one.tasks, "{:+.2f}")
        axes.set_title(f"{name}, loss of {one.stage}", loc="left", fontsize=9)
    return figure


def _only(study: Study, row: str) -> Line | None:
    """The line of a row that has a single model."""
    mine = [line for name, line in study.lines.items() if parted(name)[0] == row]
    return mine[0] if len(mine) == 1 else None


def _mean(line: Line, metric: str) -> float:
    estimate = line.metrics.get(metric)
    return float("nan") if estimate is None else estimate.mean


def _ticks(axes: Axes, values: np.ndarray, columns: Sequence[str], rows: Sequence[str], form: str) -> None:
    for row, column in np.argwhere(np.isfinite(values)):
        axes.text(column, row, form.format(values[row, column]), ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(columns)), list(columns), rotation=25, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
