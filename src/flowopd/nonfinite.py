"""Which value of an update stopped being finite first: the sample, its prompt, the model, the layer.

An update is a function of the seed and the step, so nothing is watched while all is well. When its gradient is not
finite the update is made again, one sample at a time, through fields that look at what they pass on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flowopd.types import Condition
from flowopd.velocity import VelocityField

SAMPLE = "sample"
"""The name under which a traced condition carries the numbers of its samples."""


class Encoded(Protocol):
    """Encoded prompts: one row for each that is asked for, and the row of the empty one."""

    def __call__(self, texts: Sequence[str]) -> Condition: ...

    @property
    def null(self) -> Condition:
        """The condition of the empty prompt, one row."""
        ...


class View(Protocol):
    """How an update sees prompts and models."""

    conditioning: Encoded

    def field(self, model: str, field: VelocityField) -> VelocityField:
        """The field of a model, as this view shows it."""
        ...


@dataclass(frozen=True, eq=False)
class Plain:
    """Prompts and models as they are."""

    conditioning: Encoded

    def field(self, model: str, field: VelocityField) -> VelocityField:
        """The field itself."""
        return field


@dataclass(frozen=True)
class Fault:
    """What is not finite, whose it is, and where. For example `Fault("the velocity of teacher text", "proj_out", 3,
    "a red sign", 0.5)`: sample 3 of this process's in the update, counted from 0."""

    what: str
    layer: str | None
    sample: int
    prompt: str
    t: float

    def __str__(self) -> str:
        where = f" (layer {self.layer})" if self.layer else ""
        return f"{self.what} is not finite{where}, sample {self.sample}, prompt {self.prompt!r}, t = {self.t:.3g}"


@dataclass(frozen=True, eq=False)
class _Numbered:
    """Encoded prompts whose rows carry a number: their place in `asked`, (place in its request, prompt) each."""

    conditioning: Encoded
    asked: list[tuple[int, str]]

    def __call__(self, texts: Sequence[str]) -> Condition:
        cond = self.conditioning(texts)
        device = next(iter(cond.tensors.values())).device
        numbers = torch.arange(len(self.asked), len(self.asked) + len(texts), device=device)
        self.asked.extend(enumerate(texts))
        return Condition({**cond.tensors, SAMPLE: numbers})

    @property
    def null(self) -> Condition:
        return self.conditioning.null


class Trace:
    """A view that remembers the first value which is not finite: `fault`, None if there is none.

    Samples are numbered within each request for their prompts.
    """

    def __init__(self, conditioning: Encoded) -> None:
        self.fault: Fault | None = None
        self.conditioning = _Numbered(conditioning, [])
        self._layer: str | None = None
        self._trained: tuple[int, float] = (0, 0.0)  # number and time of the last sample that carries a gradient

    def field(self, model: str, field: VelocityField) -> VelocityField:
        """The field, its output looked at, and the gradient that comes back to it."""
        return _Looked(self, model, field)

    @contextmanager
    def watching(self, networks: Iterable[nn.Module], parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Inside, the layers of these networks and the gradients of these parameters are looked at too.

        What was compiled runs uncompiled meanwhile, since compiled code passes hooks by.
        """
        hooks = [
            module.register_forward_hook(partial(self._after_layer, name))
            for network in networks
            for name, module in network.named_modules()
        ]
        hooks += [
            p.register_post_accumulate_grad_hook(partial(self._after_gradient, name)) for name, p in parameters.items()
        ]
        try:
            with torch.compiler.set_stance("force_eager"):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def look(self, model: str, field: VelocityField, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The field's velocity (B, *shape), and a note if it is not finite."""
        numbers, times = cond[SAMPLE].tolist(), t.expand(len(x)).tolist()
        plain = Condition({name: tensor for name, tensor in cond.tensors.items() if name != SAMPLE})
        self._layer = None
        for tensor in plain.tensors.values():
            self._note("the conditioning", tensor, numbers, times)
        v = field(x, t, plain)
        self._note(f"the velocity of {model}", v.detach(), numbers, times)
        if v.requires_grad:
            self._trained = numbers[0], times[0]
            v.register_hook(lambda gradient: self._after_loss(gradient, numbers, times))
        return v

    def _note(self, what: str, rows: Tensor, numbers: Sequence[int], times: Sequence[float]) -> None:
        """Remember the first of these rows (B, ...) that is not finite, unless there was one before."""
        wrong = (~rows.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
        if wrong and self.fault is None:
            self.fault = Fault(what, self._layer, *self.conditioning.asked[numbers[wrong[0]]], times[wrong[0]])

    def _after_layer(self, name: str, _module: nn.Module, _given: Any, output: Any) -> None:
        outputs = output if isinstance(output, tuple | list) else [output]
        if self._layer is None and any(isinstance(o, Tensor) and not bool(o.isfinite().all()) for o in outputs):
            self._layer = name

    def _after_loss(self, gradient: Tensor, numbers: Sequence[int], times: Sequence[float]) -> None:
        self._layer = None
        self._note("the loss", gradient, numbers, times)

    def _after_gradient(self, name: str, parameter: nn.Parameter) -> None:
        self._layer, (number, time) = None, self._trained
        if parameter.grad is not None:
            self._note(f"the gradient of {name}", parameter.grad.reshape(1, -1), [number], [time])


@dataclass(frozen=True, eq=False)
class _Looked:
    """A field under a trace."""

    trace: Trace
    model: str
    inner: VelocityField

    def __call__(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.trace.look(self.model, self.inner, x, t, cond)
