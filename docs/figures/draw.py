"""Draws the figures of docs/concepts.md as SVG; every number in them is computed by the package.

`python docs/figures/draw.py` writes them beside this file. A test draws them again and compares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path

import torch

from flowopd.dynamics import FlowSde
from flowopd.hub import located
from flowopd.lora_file import Factors, read_lora
from flowopd.merge import merge
from flowopd.objectives import step_weights
from flowopd.schedule import sigma_grid

INK, PALE, PAPER = "#263238", "#b0bec5", "#ffffff"
STUDENT, TEACHER, ANCHOR = "#1565c0", "#ef6c00", "#2e7d32"
EXPERTS = ("composition", "text", "quality")
STEPS, SHIFT, NOISE = 10, 3.0, 0.7
"""SD3.5's schedule as the paper trains with it; the last step ends at 0, where the SDE has nothing left to weigh."""

Point = tuple[float, float]


def line(
    start: Point, end: Point, colour: str = INK, width: float = 2, arrow: bool = False, dashed: bool = False
) -> str:
    """A straight line, with a head if it is an arrow."""
    extra = f' marker-end="url(#{colour[1:]})"' if arrow else ""
    extra += ' stroke-dasharray="5 4"' if dashed else ""
    (x1, y1), (x2, y2) = start, end
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" stroke-width="{width:g}"{extra}/>'


def dot(place: Point, colour: str = INK, radius: float = 5) -> str:
    """A filled circle."""
    return f'<circle cx="{place[0]:g}" cy="{place[1]:g}" r="{radius:g}" fill="{colour}"/>'


def box(corner: Point, size: Point, colour: str, text: str = "", fill: str = PAPER) -> str:
    """A rounded rectangle with a line of text in its middle."""
    (x, y), (w, h) = corner, size
    edge = f'rx="6" fill="{fill}" stroke="{colour}" stroke-width="2"'
    shape = f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" {edge}/>'
    return shape + (words((x + w / 2, y + h / 2 + 5), text, colour) if text else "")


def words(place: Point, text: str, colour: str = INK, size: float = 14, anchor: str = "middle") -> str:
    """A line of text whose baseline is at a place."""
    x, y = place
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{colour}" font-size="{size:g}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def figure(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """A whole SVG on white paper."""
    heads = "".join(
        f'<marker id="{colour[1:]}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto-start-reverse"><path d="M0 0 8 4 0 8z" fill="{colour}"/></marker>'
        for colour in (INK, PALE, STUDENT, TEACHER, ANCHOR)
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="system-ui, sans-serif"><title>{escape(title)}</title><defs>{heads}</defs>'
    )
    paper = f'<rect width="{width}" height="{height}" fill="{PAPER}"/>'
    return "\n".join([head, paper, *parts, "</svg>", ""])


def trajectory() -> str:
    """The student's path; at three of its states what the student and what the expert says."""
    path = [(70, 80), (190, 110), (310, 165), (430, 195), (550, 190), (650, 165)]
    parts = [line(a, b, PALE, 3) for a, b in pairwise(path)] + [dot(place) for place in path]
    for (x, y), lift in ((path[1], -52), (path[2], -70), (path[3], -34)):
        own, wanted = (x + 88, y + 34), (x + 88, y + lift)
        parts += [line((x, y), own, STUDENT, 3, arrow=True), line((x, y), wanted, TEACHER, 3, arrow=True)]
        parts.append(line((own[0] + 4, own[1] - 6), (wanted[0] + 4, wanted[1] + 6), INK, 1.5, dashed=True))
    parts += [words((70, 58), "noise, t = 1"), words((660, 143), "picture, t = 0")]
    parts += [
        words((30, 270), "student's velocity v_S", STUDENT, anchor="start"),
        words((260, 270), "its expert's velocity v_T at the same state", TEACHER, anchor="start"),
        words((590, 270), "dashed: the gap", anchor="start"),
    ]
    return figure(740, 295, "The student walks; at each state its expert says where it would have gone", parts)


def routing() -> str:
    """Prompts with labels, each led to its expert; one mixed route."""
    prompts = ("two red circles", 'a sign "K7"', "a drawing of a tree", "a mixed label")
    routes = ((0,), (1,), (2,), (1, 2))
    rows, experts = [40 + 56 * i for i in range(4)], [54 + 72 * k for k in range(3)]
    parts = [box((20, y), (200, 36), INK, text) for y, text in zip(rows, prompts, strict=True)]
    parts += [box((330, y), (150, 40), TEACHER, name) for y, name in zip(experts, EXPERTS, strict=True)]
    for y, route in zip(rows, routes, strict=True):
        for k in route:
            parts.append(line((222, y + 18), (326, experts[k] + 20), INK, 3 if len(route) == 1 else 1.5, arrow=True))
    parts += [line((482, y + 20), (556, 146), TEACHER, 2, arrow=True) for y in experts]
    parts += [box((560, 120), (160, 52), STUDENT, "v_T = sum α_k v_k")]
    parts += [words((120, 26), "prompt c, by its label"), words((405, 26), "experts"), words((640, 105), "target")]
    return figure(740, 275, "Each prompt is routed to its expert, or to a mixture of them", parts)


def anchoring() -> str:
    """Each sample is drawn to its own expert, and all of them, weakly, to the anchor."""
    samples, experts = [(170, 90), (170, 170), (170, 250)], [(440, 60), (440, 170), (440, 280)]
    parts = []
    for sample, expert, name in zip(samples, experts, EXPERTS, strict=True):
        parts.append(line((sample[0] + 10, sample[1]), (expert[0] - 6, expert[1]), TEACHER, 4, arrow=True))
        parts.append(line((sample[0] + 10, sample[1]), (612, 170), ANCHOR, 1.5, arrow=True, dashed=True))
        parts += [dot(sample, STUDENT, 9), box((expert[0], expert[1] - 20), (120, 40), TEACHER, name)]
    parts += [box((616, 150), (104, 40), ANCHOR, "anchor")]
    parts += [words((130, 320), "student's samples", STUDENT), words((440, 322), "weight 1", TEACHER, anchor="start")]
    parts.append(words((616, 214), "weight λ = 0.02", ANCHOR, 13, anchor="start"))
    return figure(740, 340, "Manifold Anchor Regularization holds every sample to the anchor as well", parts)


def shares() -> dict[str, list[float]]:
    """The share of each trained step in the loss, for equal velocity gaps, by weighting."""
    grid = sigma_grid(STEPS, SHIFT)[:-1]
    weights = {name: step_weights(name, FlowSde(a=NOISE), grid) for name in ("kl", "ode", "velocity")}
    return {name: (weight / weight.sum()).tolist() for name, weight in weights.items()}


def weighting() -> str:
    """The shares of the nine trained steps as bars."""
    tall, floor, colours = 200.0, 250.0, (TEACHER, ANCHOR, STUDENT)
    parts = [line((50, floor), (725, floor), INK, 1)]
    for j, (name, values) in enumerate(shares().items()):
        for i, share in enumerate(values):
            x, h = 62 + 74 * i + 20 * j, max(1.0, tall * share / 0.65)
            parts.append(f'<rect x="{x}" y="{floor - h:.1f}" width="18" height="{h:.1f}" fill="{colours[j]}"/>')
            parts.append(words((x + 9, floor - h - 5), f"{100 * share:.0f}", colours[j], 11))
        parts.append(
            words((70, 40 + 22 * j), f"{name}: first five steps {100 * sum(values[:5]):.1f} %", colours[j], 14, "start")
        )
    for i, t in enumerate(sigma_grid(STEPS, SHIFT)[:-2].tolist()):
        parts.append(words((91 + 74 * i, floor + 18), f"t {t:.3f}", INK, 12))
    parts.append(words((390, floor + 40), "share of the loss in %, by step, for equal gaps of the velocity"))
    return figure(740, 305, "How much each step weighs", parts)


def merge_errors() -> dict[str, float]:
    """How far two ways to merge the demo's experts are from the mean of their changes, by Frobenius norm."""
    loras = {name: read_lora(located(f"package:mini/teachers/{name}")) for name in EXPERTS}
    exact = merge(loras).lora.modules
    found = {"mean of the changes": 0.0, "mean of A times mean of B": 0.0}
    total = 0.0
    for name, merged in exact.items():
        parts = [lora.modules[name] for lora in loras.values()]
        mean = torch.stack([part.delta().double() for part in parts]).mean(0)
        total += float(mean.square().sum())
        ways = (merged.delta().double(), _mean_of_factors(parts).delta().double())
        for way, change in zip(found, ways, strict=True):
            found[way] += float((change - mean).square().sum())
    return {way: (error / total) ** 0.5 for way, error in found.items()}


def _mean_of_factors(parts: Sequence[Factors]) -> Factors:
    a, b = torch.stack([part.a for part in parts]).mean(0), torch.stack([part.b for part in parts]).mean(0)
    return Factors(a, b, sum(part.scale for part in parts) / len(parts))


def merging() -> str:
    """The two formulas with their errors."""
    formulas = ("1/K Σ s_k B_k A_k, ranks side by side", "s (1/K Σ B_k)(1/K Σ A_k)")
    parts = []
    for y, (way, error), formula in zip((60, 160), merge_errors().items(), formulas, strict=True):
        parts += [words((30, y), way, INK, 16, "start"), words((30, y + 24), formula, INK, 14, "start")]
        parts.append(f'<rect x="330" y="{y - 14}" width="{max(2, 330 * error):.0f}" height="34" fill="{TEACHER}"/>')
        parts.append(words((342 + 330 * error, y + 9), f"{100 * error:.0f} % off", INK, 16, "start"))
    parts.append(
        words((30, 232), "distance from the mean of the weight changes, the demo's three experts", INK, 13, "start")
    )
    return figure(740, 250, "Merging weight changes, and merging factors", parts)


FIGURES: Mapping[str, Callable[[], str]] = {
    "trajectory": trajectory,
    "routing": routing,
    "anchor": anchoring,
    "weighting": weighting,
    "merge": merging,
}

if __name__ == "__main__":
    for name, drawn in FIGURES.items():
        Path(__file__).with_name(f"{name}.svg").write_text(drawn(), encoding="utf-8")
