"""Records passed between stages.

Time: `t = 1` is noise, `t = 0` is data; sampling runs `t` downwards, so a step has `dt = t_next - t < 0`.
Path `x_t = (1 - t) x_0 + t eps`, velocity `v = eps - x_0`.

Axes: `B` batch (always axis 0 of a sample), `N` steps of a rollout, `N + 1` points of its grid, `K` teachers,
`D` elements of one sample.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowopd.errors import ConfigError
from flowopd.gaussian import Gaussian
from flowopd.shapes import Batch, Grid, Path, Scalar


@dataclass(frozen=True, eq=False)
class Condition:
    """What a model is conditioned on, by name, one row a sample; the maths never looks inside.

    For example `Condition({"text": (B, 77, 4096), "pooled": (B, 2048)})`.
    Raises ConfigError if there is no tensor, or if they disagree on the size of axis 0.
    """

    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", dict(self.tensors))
        sizes = {name: tensor.shape[0] if tensor.ndim else None for name, tensor in self.tensors.items()}
        if len(set(sizes.values())) != 1 or None in sizes.values():
            raise ConfigError(f"condition tensors must share the batch as axis 0, got {sizes}; stack them by row")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return next(iter(self.tensors.values())).device

    def rows(self, index: Tensor | slice | Sequence[int]) -> "Condition":
        """The rows that `index` picks: a slice, positions, or a tensor of positions or of booleans."""
        picked = index if isinstance(index, Tensor | slice) else torch.tensor(index, dtype=torch.long)
        return self._map(lambda tensor: tensor[picked])

    def expand(self, n: int) -> "Condition":
        """`n` views of a single row, without a copy. Raises ConfigError if there are more rows than one."""
        if len(self) != 1:
            raise ConfigError(f"only a condition of one row expands, this has {len(self)}; pick one with rows([i])")
        return self._map(lambda tensor: tensor.expand(n, *tensor.shape[1:]))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Condition":
        """Moved to `device`; floating tensors are also cast to `dtype`."""
        return self._map(lambda x: x.to(device=device, dtype=dtype if x.is_floating_point() else None))

    @staticmethod
    def cat(*conditions: "Condition") -> "Condition":
        """All rows, in order. Raises ConfigError if the conditions do not carry the same names."""
        names = [sorted(condition.tensors) for condition in conditions]
        if not names or any(other != names[0] for other in names):
            raise ConfigError(f"conditions to join must carry the same tensors, got {names}")
        return Condition({name: torch.cat([c[name] for c in conditions]) for name in conditions[0].tensors})

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        return Condition({name: change(tensor) for name, tensor in self.tensors.items()})


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a rollout: at state `x` and time `t` the field said `v`, and `transition` drew `x_next`.

    Only `v` may carry a gradient; `transition` was built from its detached value. `rows` (B) are the places of these
    samples among those that were to walk. For example
    `Step(index=0, rows=(4,), t=1.0, t_next=0.96, x=(4, 16, 64, 64), v=..., transition=Gaussian(...), x_next=...)`.
    """

    index: int
    rows: Tensor
    t: Scalar
    t_next: Scalar
    x: Batch
    v: Batch
    transition: Gaussian
    x_next: Batch


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A finished rollout: `states[i]` (B, *shape) was reached at time `sigmas[i]`."""

    sigmas: Grid
    states: Path

    @property
    def final(self) -> Tensor:
        """The last states (B, *shape)."""
        return self.states[-1]
