"""The squared gap between two predictions.

This is the one place where a mean over the D elements of a sample is chosen instead of the sum of the
mathematics: it keeps losses and learning rates comparable between resolutions. D times a weight undoes it.
"""

from flowopd.gaussian import widen
from flowopd.shapes import Batch, PerSample


def squared_gap(v: Batch, target: Batch) -> PerSample:
    """Mean over D of `(v - sg(target))^2`, in float32 at least; the gradient is through `v` only."""
    return (widen(v) - widen(target.detach())).square().flatten(1).mean(1)
