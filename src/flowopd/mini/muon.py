"""Muon (Jordan et al., 2024): momentum whose matrices are orthogonalised, in fp32.

torch's own Muon orthogonalises in bf16, which CPUs without bf16 units do a hundred times slower than fp32, and takes
matrices only; here a convolution's kernel counts as the matrix (out, in x h x w).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton-Schulz step that pulls every singular value to about one."""


def orthogonalised(g: Tensor, steps: int) -> Tensor:
    """A matrix with the singular vectors of g (m, n) and singular values near one."""
    a, b, c = QUINTIC
    x = g / (g.norm() + 1e-12)
    if g.shape[0] > g.shape[1]:
        return orthogonalised(x.T, steps).T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Updates of root mean square 0.2 `lr`, so that AdamW's learning rates carry over (2502.16982, eq. 4)."""

    def __init__(
        self, matrices: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, iterations: int = 5
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "iterations": iterations})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, **{key: group[key] for key in ("lr", "momentum", "iterations")})

    def _update(self, p: nn.Parameter, lr: float, momentum: float, iterations: int) -> None:
        buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
        buffer.lerp_(p.grad, 1 - momentum)
        direction = orthogonalised(p.grad.lerp(buffer, momentum).flatten(1), iterations)
        p.add_(direction.reshape(p.shape), alpha=-0.2 * lr * max(direction.shape) ** 0.5)


def optimizers(
    model: nn.Module,
    learning_rate: float,
    *,
    adam_rate: float,
    weight_decay: float = 0.0,
    iterations: int = 5,
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of linear and convolutional layers, AdamW for embeddings, biases, scales and adaLN."""
    named = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    layers = [m for name, m in named if "norm" not in name]
    matrices = [m.weight for m in layers if m.weight.requires_grad]
    ours = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in ours]
    adam = torch.optim.AdamW(others, adam_rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    return [Muon(matrices, learning_rate, iterations=iterations), adam]
