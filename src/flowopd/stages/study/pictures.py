"""A study's figures, as PNG files beside its page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowopd.durable import replace_bytes
from flowopd.results import BASE
from flowopd.stages.study.records import Line, Study

DPI = 160
WIDTH = 7.0
"""Inches."""


def draw(study: Study, folder: Path) -> dict[str, str]:
    """The figures that the suite asks for, as far as their rows are there; returns {caption: file name}."""
    drawn: dict[str, str] = {}
    asked: Mapping[str, tuple[str | None, Callable[[Study, str], Figure | None]]] = {
        "forgetting": (study.pictures.forgetting, forgetting),
        "seesaw": (study.pictures.seesaw, seesaw),
        "gaps": (study.pictures.gaps, gaps),
    }
    for name, (source, make) in asked.items():
        figure = make(study, source) if source is not None else None
        if figure is not None:
            file = BytesIO()
            figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
            replace_bytes(folder / f"{name}.png", file.getvalue())
            drawn[CAPTIONS[name]] = f"{folder.name}/{name}.png"
    return drawn


CAPTIONS = {
    "forgetting": "What each expert gains and forgets: difference to the base",
    "seesaw": "The seesaw: adding rewards one by one",
    "gaps": "Gap to the teacher by step of the path, first and last tenth of the updates",
}


def forgetting(study: Study, row: str) -> Figure | None:
    """Models of a row against metrics: the difference of means to the base."""
    lines = {name.split("/", 1)[1]: line for name, line in study.lines.items() if name.split("/")[0] == row}
    base = lines.pop(BASE, None)
    if base is None or not lines:
        return None
    metrics = list(base.metrics)
    table = np.array([[_mean(line, name) - base.metrics[name].mean for name in metrics] for line in lines.values()])
    figure = Figure(figsize=(WIDTH, 1.4 + 0.4 * len(lines)), layout="constrained")
    axes = figure.subplots()
    limit = float(np.nanmax(np.abs(table)))
    axes.imshow(table, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto", alpha=0.75)
    _label(axes, table, metrics, list(lines), "{:+.2f}")
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
    """Two panels of a student's gaps, by label and step."""
    gap = study.gaps.get(row)
    if gap is None:
        return None
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    largest = max(value for table in (gap.first, gap.last) for row in table.values() for value in row if value)
    for axes, title, table in zip(panels, ("first", "last"), (gap.first, gap.last), strict=True):
        values = np.array([[np.nan if value is None else value for value in steps] for steps in table.values()]).T
        axes.imshow(np.sqrt(values), cmap="Oranges", vmin=0, vmax=np.sqrt(largest), aspect="auto")
        _label(axes, values, list(table), [str(step) for step in range(len(values))], "{:.2g}")
        axes.set_title(title, loc="left", fontsize=9)
    panels[0].set_ylabel("step of the path, noise on top")
    return figure


def _only(study: Study, row: str) -> Line | None:
    """The line of a row that has a single model."""
    mine = [line for name, line in study.lines.items() if name.split("/")[0] == row]
    return mine[0] if len(mine) == 1 else None


def _mean(line: Line, metric: str) -> float:
    estimate = line.metrics.get(metric)
    return float("nan") if estimate is None else estimate.mean


def _label(axes: Axes, values: np.ndarray, columns: Sequence[str], rows: Sequence[str], form: str) -> None:
    for row, column in np.argwhere(np.isfinite(values)):
        axes.text(column, row, form.format(values[row, column]), ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(columns)), list(columns), rotation=25, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
