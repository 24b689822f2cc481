"""What every format offers, and the plain base that exports are read back onto."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from flowopd.lora_file import LoraFile
from flowopd.models import Model


@dataclass(frozen=True, eq=False)
class Trained:
    """An adapter to export, the model whose base it changes, and names for both that hold for other people.

    `dtype` is what whole weights are stored in. For example
    `Trained(lora, model, name="demo-student", base="stabilityai/stable-diffusion-3.5-medium", dtype=torch.bfloat16)`.
    """

    lora: LoraFile
    model: Model
    name: str
    base: str
    dtype: torch.dtype


class Format(Protocol):
    """One way to write an adapter, with the reader that others have for it."""

    def write(self, folder: Path, trained: Trained) -> None:
        """The export's files, into a folder that exists. Raises CheckpointError for what the format cannot hold."""
        ...

    def reloaded(self, folder: Path, trained: Trained) -> nn.Module:
        """The base with what lies in `folder`, as other programs read it.

        Called within `full_precision` of the base, whose tensors the result shares wherever they are the same.
        """
        ...

    def unrounded(self, transformer: nn.Module, trained: Trained) -> nn.Module:
        """A reloaded transformer without the rounding that writing brought; by default there is none.

        Raises CheckpointError if what was read is not that rounding.
        """
        return transformer


def plain(model: Model) -> nn.Module:
    """The model's transformer without adapters, as a module of its own whose tensors are the model's own.

    Nothing is copied: what is loaded onto the one does not touch the other, and both follow `full_precision`.
    """
    state = model.transformer.state_dict(keep_vars=True)
    own = {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}
    transformer = model.skeleton()
    transformer.load_state_dict(own, assign=True)
    return transformer


@contextmanager
def full_precision(transformer: nn.Module) -> Iterator[None]:
    """Inside, every parameter is in fp32; afterwards in its own dtype again, bit for bit what it was."""
    dtypes = [(parameter, parameter.dtype) for parameter in transformer.parameters()]
    try:
        for parameter, _ in dtypes:
            parameter.data = parameter.data.float()
        yield
    finally:
        for parameter, dtype in dtypes:
            parameter.data = parameter.data.to(dtype)


def changed(transformer: nn.Module, module: str, delta: Tensor) -> Tensor:
    """The weight (out, in) of a linear module with its change, added in fp32."""
    weight = transformer.get_submodule(module).weight
    assert isinstance(weight, Tensor)
    return weight.detach().float() + delta.to(weight.device)


def replace_weight(transformer: nn.Module, module: str, weight: Tensor) -> None:
    """Gives a linear module another weight; the old one, which others may share, stays as it is."""
    transformer.get_submodule(module).weight = nn.Parameter(weight, requires_grad=False)
