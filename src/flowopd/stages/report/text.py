"""How the report puts numbers and names into words."""

from __future__ import annotations

from collections.abc import Sequence

from flowopd.results import TEACHER


def number(value: float) -> str:
    """Four digits or so: 0.871, 4.350, 23.08."""
    return f"{value:.{3 if abs(value) < 10 else 2}f}"


def signed(value: float) -> str:
    """A difference, with its sign: +0.031, −0.004."""
    return ("−" if value < 0 else "+") + number(abs(value))


def title(model: str) -> str:
    """A model's name for readers: `teacher:ocr` is the "ocr expert"."""
    if model.startswith(TEACHER):
        return model.removeprefix(TEACHER) + " expert"
    return model.replace("_", " ")


def duration(seconds: float) -> str:
    """Two units of a time: 48 s, 4 min 53 s, 2 h 5 min, 3 d 4 h."""
    whole = round(seconds)
    for unit, small, size, part in (("d", "h", 86_400, 3_600), ("h", "min", 3_600, 60), ("min", "s", 60, 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {small}"
    return f"{whole} s"


def size(count: int) -> str:
    """Bytes in a unit that fits: 812 B, 3.1 MB."""
    value, units = float(count), ["B", "kB", "MB", "GB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def listed(names: Sequence[str], none: str = "none") -> str:
    """Names in a sentence: a, b and c."""
    if not names:
        return none
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
