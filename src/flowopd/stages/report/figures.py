"""Figures of the report, as inline SVG that takes its colours and its type from the page around it.

matplotlib draws with stand-in colours, which become CSS variables: `--s0`, `--s1`, ... for series, `--faint`
for lines in the background, and the page's own text colour for ink. One figure serves light, dark and print.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from hashlib import sha256
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from flowopd.results import Estimate
from flowopd.stages.report.series import Curve, thinned

SERIES = 8
"""Colours that the page has for series; further ones begin again."""

POINTS = 120
"""Points that a curve has at most: longer ones are averaged in runs of neighbours."""

_INK, _FAINT = "#0b0b0b", "#0b0b0c"
_SERIES = tuple(f"#0b0c{i:02x}" for i in range(SERIES))
_CSS = {_INK: "currentColor", _FAINT: "var(--faint)"} | {c: f"var(--s{i})" for i, c in enumerate(_SERIES)}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "flowopd",
    "text.parse_math": False,
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
} | dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK)

_WIDTH = 4.9
"""Inches: a phone shows a figure nearly unscaled, a desk two side by side."""

P = ParamSpec("P")


def _as_svg(draw: Callable[P, Figure]) -> Callable[P, str]:
    """The same drawing in the report's style, as a bare `<svg>` whose ids clash with no other figure's."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with matplotlib.rc_context(_STYLE):
            draw(*args, **kwargs).savefig(file, format="svg", transparent=True, metadata=nothing)
        return _inline(file.getvalue())

    return drawn


@_as_svg
def intervals(rows: Mapping[str, Estimate], marked: str) -> Figure:
    """One a row, first on top: a dot at the mean, a bar for the interval; the `marked` one in colour."""
    figure = _figure(0.42 + 0.27 * len(rows))
    axes = figure.subplots()
    for place, (name, row) in enumerate(rows.items()):
        colour = _SERIES[0] if name == marked else _INK
        axes.plot(row.ci95, (place, place), color=colour, linewidth=2.2, alpha=0.45, solid_capstyle="round")
        axes.plot(row.mean, place, "o", color=colour, markersize=5)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    return figure


@_as_svg
def curves(lines: Mapping[str, Curve], order: Sequence[str], ylabel: str, *, log: bool = False) -> Figure:
    """A line a name, coloured by its place in `order`; a band is the range where neighbours were averaged."""
    figure = _figure(2.7)
    axes = figure.subplots()
    for label, curve in lines.items():
        colour = _SERIES[order.index(label) % SERIES]
        steps, low, mean, high = thinned(curve, POINTS)
        axes.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(steps, mean, color=colour, linewidth=1.5, label=label)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(axis="y")
    axes.set_xlabel("update")
    axes.set_ylabel(ylabel)
    figure.legend(loc="outside upper left", ncols=3, handlelength=1.4)
    return figure


@_as_svg
def heat_maps(panels: Mapping[str, np.ndarray], columns: Sequence[str], ylabel: str) -> Figure:
    """Panels side by side, each (rows, columns) of values >= 0 on one scale; what is NaN stays empty."""
    values = np.stack(list(panels.values()))
    largest = np.nanmax(values)
    figure = _figure(1.0 + 0.22 * values.shape[1])
    row_of_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, panel) in zip(row_of_axes, panels.items(), strict=True):
        _cells(axes, panel, largest)
        axes.set_title(title, loc="left")
        axes.set_xticks(range(len(columns)), list(columns), rotation=35, ha="right", rotation_mode="anchor")
    row_of_axes[0].set_yticks(range(values.shape[1]))
    row_of_axes[0].set_ylabel(ylabel)
    return figure


def _cells(axes: Axes, values: np.ndarray, largest: float) -> None:
    """A tinted rectangle and its number for each finite value (rows, columns), row 0 on top."""
    for row, column in np.argwhere(np.isfinite(values)):
        value = values[row, column]
        tint = 0.6 * np.sqrt(value / largest) if value > 0 else 0.0
        corner = (column - 0.48, row - 0.46)
        axes.add_patch(Rectangle(corner, 0.96, 0.92, facecolor=_SERIES[0], alpha=tint, linewidth=0))
        axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=7)
    axes.set_xlim(-0.5, values.shape[1] - 0.5)
    axes.set_ylim(values.shape[0] - 0.5, -0.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _figure(height: float) -> Figure:
    return Figure(figsize=(_WIDTH, height), layout="constrained")


def _inline(svg: str) -> str:
    """The element alone, its namespaces and style sheet left to the page, its colours to CSS."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"|<style.*?</style>', "", svg, flags=re.DOTALL)
    own = sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>f{own}-", svg)
    return re.sub("|".join(_CSS), lambda stand_in: _CSS[stand_in[0]], svg)
