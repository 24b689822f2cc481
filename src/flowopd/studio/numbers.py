"""Numbers as they are sent: a curve in the four digits that a screen can show, what a page rounds itself in more."""

from __future__ import annotations

import math
from collections.abc import Iterable


def short(value: float) -> float:
    """The number with four significant digits."""
    return float(f"{value:.4g}")


def exact(value: float) -> float:
    """The number with nine significant digits, so that a page which rounds it does so once."""
    return float(f"{value:.9g}")


def shorts(values: Iterable[float]) -> list[float | None]:
    """Each with four significant digits; None for what is not finite, which JSON has no word for."""
    return [short(value) if math.isfinite(value) else None for value in values]
