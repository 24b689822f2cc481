"""Quality by the judge that nothing is trained on: another net, other lessons, partly other faults."""

from __future__ import annotations

from typing import ClassVar

from flowopd.mini.quality import HOLDOUT, Judge
from flowopd.rewards.mini_quality import MiniQuality


class MiniHoldout(MiniQuality):
    """As MiniQuality, for looking at alone."""

    judge: ClassVar[Judge] = HOLDOUT
