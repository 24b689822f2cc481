"""From a prompt's label to weights over teachers: rows of routes (B, K) are not negative and sum to 1.

A prompt whose label says nothing is given that of the prompts that its embedding resembles, by a linear fit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor

from flowopd.errors import ConfigError, DataError
from flowopd.gaussian import widen
from flowopd.shapes import Batch, Classes, Features, PerTeacher, Routes


class LabelRouter:
    """Routes by label, hard or soft, without a state.

    `table` maps a label to a teacher, or to `{teacher: weight}`; weights are scaled to sum to 1. For example
    `LabelRouter({"ocr": "text", "mixed": {"text": 1.0, "layout": 3.0}}, teachers=["text", "layout"])`.
    Raises ConfigError for a repeated or unknown teacher, an empty table, and weights that are negative, not
    finite, or all zero.
    """

    def __init__(self, table: Mapping[str, str | Mapping[str, float]], teachers: Sequence[str]) -> None:
        if not table or len(set(teachers)) < len(teachers):
            raise ConfigError(f"routing needs labels and distinct teachers, got {sorted(table)} and {list(teachers)}")
        self.teachers, self.labels = tuple(teachers), tuple(table)
        self._rows = {label: _row(label, route, self.teachers) for label, route in table.items()}

    def __call__(self, labels: Sequence[str]) -> Routes:
        """The float32 weights (B, K) of these samples. Raises DataError for a label without a route."""
        unknown = sorted(set(labels) - set(self._rows))
        if unknown:
            raise DataError(f"no route for label {unknown[0]!r}; known labels: {', '.join(sorted(self._rows))}")
        return torch.tensor([self._rows[label] for label in labels]).reshape(len(labels), len(self.teachers))


@dataclass(frozen=True, eq=False)
class LinearClasses:
    """Scores of features (B, F) by class (B, C), `((x - mean) / std) weights + bias`: the largest is the likeliest."""

    mean: Tensor
    std: Tensor
    weights: Tensor
    bias: Tensor

    def __call__(self, features: Features) -> Features:
        return (features.to(self.mean) - self.mean) / self.std @ self.weights + self.bias


def fit_classes(features: Features, classes: Classes, ridge: float = 0.01) -> LinearClasses:
    """Ridge regression of standardised features on which of the classes 0 .. C-1 a row is of, each class as heavy.

    `argmin_{W, b} mean_classes mean_rows norm(x W + b - onehot)^2 + ridge norm(W)^2`, in closed form and float64. A
    feature that is the same in all rows is left as it is.
    """
    x, onehot = features.double(), torch.nn.functional.one_hot(classes).double()
    mean, std = x.mean(0), x.std(0, correction=0)
    std = torch.where(std > 1e-8, std, 1.0)
    x = (x - mean) / std
    each = (onehot / onehot.sum(0).clamp(min=1)).sum(1, keepdim=True) / onehot.shape[1]
    center, share = (each * x).sum(0), (each * onehot).sum(0)
    x, onehot = x - center, onehot - share
    normal = x.T @ (each * x) + ridge * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(normal, x.T @ (each * onehot))
    return LinearClasses(mean, std, weights, share - center @ weights)


def checked(routes: Tensor, samples: int, teachers: int) -> Tensor:
    """`routes` of any router, if they are weights (samples, teachers) >= 0 whose rows sum to 1, in float32.

    Raises DataError if they are not.
    """
    if tuple(routes.shape) != (samples, teachers):
        shape = tuple(routes.shape)
        raise DataError(
            f"the router gave routes {shape} for {samples} samples and {teachers} teachers; one row a sample"
        )
    routes = routes.float()
    sums = routes.sum(1)
    if not (routes >= 0).all() or ((sums - 1).abs() > 1e-4).any():
        worst = int((sums - 1).abs().argmax())
        raise DataError(f"the router gave the weights {routes[worst].tolist()}; a row is not negative and sums to 1")
    return routes


def mix(routes: Routes, velocities: PerTeacher) -> Batch:
    """The routed velocity `sum_k alpha_k v_k` (2605.08063), in float32 at least."""
    return torch.einsum("bk,kb...->b...", routes.to(widen(velocities)), widen(velocities))


def _row(label: str, route: str | Mapping[str, float], teachers: Sequence[str]) -> list[float]:
    weights = {route: 1.0} if isinstance(route, str) else dict(route)
    for teacher, weight in weights.items():
        if teacher not in teachers:
            raise ConfigError(f"route {label!r} names an unknown teacher {teacher!r}{_hint(teacher, teachers)}")
        if not 0 <= weight < float("inf"):
            raise ConfigError(f"route {label!r} gives {teacher!r} the weight {weight}; weights are finite and >= 0")
    total = sum(weights.values())
    if not total > 0:
        raise ConfigError(f"the weights of route {label!r} sum to {total}; give at least one teacher a positive one")
    return [weights.get(teacher, 0.0) / total for teacher in teachers]


def _hint(teacher: str, teachers: Sequence[str]) -> str:
    near = get_close_matches(teacher, teachers, n=1, cutoff=0.0)
    return f"; did you mean {near[0]!r}?" if near else "; there are no teachers"
