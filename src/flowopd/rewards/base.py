"""What every reward is: pictures and their prompts in, one score a picture out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from flowopd.prompts import Prompt


@dataclass(frozen=True)
class Scores:
    """Scores of a batch: `value` (B,) float64 in 0..1, larger is better; `details` holds other views of it, (B,)."""

    value: np.ndarray
    details: Mapping[str, np.ndarray] = field(default_factory=dict)


class Reward(Protocol):
    """Scores pictures (B, H, W, 3) uint8 for their B prompts, from pixels and prompts alone."""

    def __call__(self, pictures: np.ndarray, prompts: Sequence[Prompt]) -> Scores: ...
