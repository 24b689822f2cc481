"""One adapter out of several: the weighted mean of their weight changes, and how much they disagree.

With `dW_k = s_k B_k A_k` and weights `w_k` that add up to one, the mean is itself a product,
`sum_k w_k dW_k = [w_1 s_1 B_1 | ... | w_K s_K B_K] [A_1; ...; A_K]`, exact at the sum of the ranks. (The mean
of the A times the mean of the B is something else.) A lower rank keeps the leading singular values of that
product, found in a matrix no larger than the sum of the ranks: with `B = Q_b R_b`, `A^T = Q_a R_a` and
`R_b R_a^T = U S V^T`, `B A = (Q_b U) S (Q_a V)^T`. No (out, in) matrix is formed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowopd.errors import ConfigError
from flowopd.lora_file import Factors, LoraFile, peft_config


@dataclass(frozen=True, eq=False)
class Interference:
    """How the adapters' weight changes lie to each other: `inner` (M, K, K) is `<dW_i, dW_j>` by module.

    An adapter without a module has a change of zero there; a cosine with zero is zero.
    """

    names: tuple[str, ...]
    modules: tuple[str, ...]
    inner: Tensor

    @property
    def norms(self) -> Tensor:
        """Frobenius norms (M, K) of each module's change in each adapter."""
        return _norms(self.inner)

    @property
    def cosines(self) -> Tensor:
        """Cosines (M, K, K) between the adapters' changes of each module."""
        return _cosines(self.inner)

    @property
    def total_norms(self) -> Tensor:
        """Frobenius norms (K,) over all modules."""
        return _norms(self.inner.sum(0))

    @property
    def total_cosines(self) -> Tensor:
        """Cosines (K, K) over all modules."""
        return _cosines(self.inner.sum(0))

    def as_dict(self) -> dict[str, Any]:
        """For JSON: `names`, then `norms` by name and `cosines` as a matrix, overall and under `modules`."""
        return {
            "names": list(self.names),
            **self._report(self.total_norms, self.total_cosines),
            "modules": {
                module: self._report(norms, cosines)
                for module, norms, cosines in zip(self.modules, self.norms, self.cosines, strict=True)
            },
        }

    def _report(self, norms: Tensor, cosines: Tensor) -> dict[str, Any]:
        return {"norms": dict(zip(self.names, norms.tolist(), strict=True)), "cosines": cosines.tolist()}


@dataclass(frozen=True, eq=False)
class Merged:
    """A merged adapter; `relative_error` is `||kept - mean||_F / ||mean||_F` over all modules, 0 if exact."""

    lora: LoraFile
    relative_error: float
    interference: Interference


def merge(loras: Mapping[str, LoraFile], weights: Mapping[str, float] | None = None, rank: int | None = None) -> Merged:
    """The mean of the adapters' weight changes, weighted by `weights` (any scale; None: all alike).

    Adapters may differ in ranks, alphas and modules; where one lacks a module its change is zero. `rank` None
    is exact; otherwise each module keeps at most that many directions, the best in the Frobenius norm.
    Raises ConfigError if there are no adapters, `weights` name others than `loras`, are negative or all zero,
    `rank` < 1, or two adapters disagree on a module's shape.
    """
    shares = _shares(loras, weights)
    if rank is not None and rank < 1:
        raise ConfigError(f"a merge needs a rank of at least 1, got {rank}; leave it out for an exact one")
    names = sorted({name for lora in loras.values() for name in lora.modules})
    means = {name: _mean(name, loras, shares) for name in names}
    kept = {name: factors if rank is None else truncated(factors, rank) for name, factors in means.items()}
    lora = LoraFile({"peft_type": "LORA", **peft_config(kept)}, kept)
    return Merged(lora, _relative_error(means, kept), interference(loras))


def truncated(factors: Factors, rank: int) -> Factors:
    """The best approximation of at most `rank` in the Frobenius norm; `factors` itself if it is no larger.

    Each direction's singular value is shared evenly between `a` and `b`, and the scale is 1.
    """
    if factors.rank <= rank:
        return factors
    q_b, r_b = torch.linalg.qr(factors.scale * factors.b.double())
    q_a, r_a = torch.linalg.qr(factors.a.double().mT)
    u, s, vh = torch.linalg.svd(r_b @ r_a.mT)
    root = s[:rank].sqrt()
    b = q_b @ u[:, : len(root)] * root
    a = root[:, None] * (vh[: len(root)] @ q_a.mT)
    return Factors(a.float(), b.float(), 1.0)


def interference(loras: Mapping[str, LoraFile]) -> Interference:
    """The inner products of all pairs, from the factors: `<BA, DC> = sum((B^T D) * (A C^T))`."""
    modules = sorted({name for lora in loras.values() for name in lora.modules})
    rows = [[lora.modules.get(name) for lora in loras.values()] for name in modules]
    inner = [[[_inner(x, y) for y in row] for x in row] for row in rows]
    return Interference(tuple(loras), tuple(modules), torch.tensor(inner, dtype=torch.float64))


def _shares(loras: Mapping[str, LoraFile], weights: Mapping[str, float] | None) -> dict[str, float]:
    """Weights that add up to one."""
    if not loras:
        raise ConfigError("there is nothing to merge; give at least one adapter")
    weights = dict.fromkeys(loras, 1.0) if weights is None else dict(weights)
    if weights.keys() != loras.keys():
        raise ConfigError(f"merge weights name {sorted(weights)}, not {sorted(loras)}; give one an adapter")
    total = math.fsum(weights.values())
    if not (all(weight >= 0 for weight in weights.values()) and 0 < total < math.inf):
        raise ConfigError(f"merge weights must not be negative, nor all zero, got {weights}")
    return {name: weight / total for name, weight in weights.items()}


def _mean(name: str, loras: Mapping[str, LoraFile], shares: Mapping[str, float]) -> Factors:
    """The mean of one module's changes, ranks side by side."""
    present = {key: lora.modules[name] for key, lora in loras.items() if name in lora.modules}
    shapes = {key: (factors.b.shape[0], factors.a.shape[1]) for key, factors in present.items()}
    if len(set(shapes.values())) > 1:
        raise ConfigError(f"{name} has different shapes in {shapes}; merge adapters of one base")
    return Factors(
        torch.cat([factors.a for factors in present.values()]),
        torch.cat([shares[key] * factors.scale * factors.b for key, factors in present.items()], dim=1),
        1.0,
    )


def _relative_error(means: Mapping[str, Factors], kept: Mapping[str, Factors]) -> float:
    if all(kept[name] is factors for name, factors in means.items()):
        return 0.0
    whole = math.fsum(_inner(factors, factors) for factors in means.values())
    lost = math.fsum(_squared_distance(factors, kept[name]) for name, factors in means.items())
    return math.sqrt(lost / whole) if whole else 0.0


def _squared_distance(x: Factors, y: Factors) -> float:
    """`||x - y||^2` from the difference itself, which a sum of inner products would lose to cancellation."""
    difference = Factors(
        torch.cat([x.a, y.a]).double(), torch.cat([x.scale * x.b, -y.scale * y.b], dim=1).double(), 1.0
    )
    _, r_b = torch.linalg.qr(difference.b)
    _, r_a = torch.linalg.qr(difference.a.mT)
    return (r_b @ r_a.mT).square().sum().item()


def _inner(x: Factors | None, y: Factors | None) -> float:
    if x is None or y is None:
        return 0.0
    between_b = x.b.double().mT @ y.b.double()
    between_a = x.a.double() @ y.a.double().mT
    return x.scale * y.scale * (between_b * between_a).sum().item()


def _norms(inner: Tensor) -> Tensor:
    return inner.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()


def _cosines(inner: Tensor) -> Tensor:
    norms = _norms(inner)
    products = norms[..., :, None] * norms[..., None, :]
    return torch.where(products > 0, inner / products.clamp_min(torch.finfo(inner.dtype).tiny), 0.0)
