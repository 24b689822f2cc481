"""What a forward and a backward of a transformer take, found by running them on tensors without content.

Nothing is computed and nothing is allocated: shapes alone pass through the model's own code (torch's fake tensors),
so the figures are those of the model as it is, in any size, on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from flowopd.types import Condition
from flowopd.velocity import VelocityField

ATEN = torch.ops.aten
ATTENTION = {
    ATEN._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}
"""Attention on the CPU, which torch's counter does not know; the same work as on a GPU."""


@dataclass(frozen=True)
class Footprint:
    """Floating-point operations of a forward and of its backward, and the bytes that the forward keeps for it."""

    forward: int
    backward: int
    kept: int


def footprint(
    field: VelocityField, transformer: nn.Module, x: Tensor, cond: Condition, dtype: torch.dtype
) -> Footprint:
    """The footprint of a field at states like x (B, C, H, W) with a condition like `cond`.

    `transformer` is the one the field runs: its tensors, which may lie on the meta device, are replaced by ones without
    content, frozen ones in `dtype`, so it is of no further use.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        _hollow(transformer, dtype)
        kept = _Kept(transformer)
        rows = Condition({name: torch.empty(value.shape, dtype=dtype) for name, value in cond.tensors.items()})
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            with torch.autograd.graph.saved_tensors_hooks(kept.note, lambda tensor: tensor):
                v = field(torch.empty(x.shape), torch.empty(()), rows)
            forward = counter.get_total_flops()
            v.float().square().mean().backward()
        return Footprint(forward, counter.get_total_flops() - forward, kept.nbytes)


def _hollow(module: nn.Module, dtype: torch.dtype) -> None:
    """Give every parameter and buffer a stand-in of its shape."""
    for part in module.modules():
        for name, p in part.named_parameters(recurse=False):
            kind = p.dtype if p.requires_grad else dtype
            part.register_parameter(name, nn.Parameter(torch.empty(p.shape, dtype=kind), p.requires_grad))
        for name, b in part.named_buffers(recurse=False):
            part.register_buffer(name, torch.empty(b.shape, dtype=dtype))


class _Kept:
    """The storages that a backward will need, each counted once, parameters not at all."""

    def __init__(self, module: nn.Module) -> None:
        self._own = {p.untyped_storage()._cdata for p in module.parameters()}
        self._storages: dict[int, torch.UntypedStorage] = {}

    def note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own:
            self._storages[storage._cdata] = storage
        return tensor

    @property
    def nbytes(self) -> int:
        return sum(storage.nbytes() for storage in self._storages.values())
