"""Numbers as they are sent: four digits are what a screen can show."""

from __future__ import annotations

import math
from collections.abc import Iterable


def short(value: float) -> float:
    """The number with four significant digits."""
    return float(f"{value:.4g}")


def shorts(values: Iterable[float]) -> list[float | None]:
    """Each with four significant digits; None for what is not finite, which JSON has no word for."""
    return [short(value) if math.isfinite(value) else None for value in values]
