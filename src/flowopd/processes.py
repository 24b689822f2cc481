"""Several processes as one: who takes which rows, and how their parts come together.

`accelerate launch -m flowopd ...` (or torchrun) starts the processes, accelerate's `PartialState` knows them. Every one
holds the whole model, which a frozen base and small adapters allow, and takes its rows of each batch. What is random
belongs to a sample, not to a process, so the number of processes changes no result beyond the order of a sum. The run's
folder must be one that all of them see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import cache
from typing import TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object, parse_flag_from_env, reduce
from torch import Tensor, nn

from flowopd.errors import FlowOpdError

Found = TypeVar("Found")

PATIENCE = timedelta(hours=1)
"""How long processes wait for one that works alone: merging experts or writing a large model takes minutes."""


@cache
def state() -> PartialState:
    """The processes; gloo on machines without an accelerator."""
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu, timeout=PATIENCE)


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return state().is_main_process


def wait() -> None:
    """Go on when all are here."""
    state().wait_for_everyone()


def one_by_one() -> AbstractContextManager[None]:
    """The main process goes first, the others follow when it is through."""
    return state().main_process_first()


def only_main(act: Callable[[], object]) -> None:
    """The main process acts, and all go on when it has."""
    if is_main():
        act()
    wait()


def agreed(question: Callable[[], bool]) -> bool:
    """An answer that all processes have found before one of them can change it."""
    answer = question()
    wait()
    return answer


def together(act: Callable[[], Found]) -> Found:
    """What `act` gives, once it has given it in every process. Where it raises a FlowOpdError, all processes raise.

    For what may fail in one process alone, before the others wait for its part.
    """
    try:
        own, error = act(), None
    except FlowOpdError as raised:
        own, error = None, raised
    failed = first_found(error and (type(error), str(error)))
    if error is not None:
        raise error
    if failed is not None:
        kind, said = failed[1]
        raise kind(said)
    return cast(Found, own)


def everywhere(value: int) -> list[int]:
    """The value of each process, in their order."""
    if state().num_processes == 1:
        return [value]
    return [int(one) for one in gather(torch.tensor([value], device=state().device))]


def own_rows(n: int, unit: int = 1) -> slice:
    """This process's rows of `n`: contiguous, in whole units, as even as can be, maybe none."""
    units, here = -(-n // unit), state()
    first, last = (units * (here.process_index + i) // here.num_processes for i in (0, 1))
    return slice(min(n, first * unit), min(n, last * unit))


def whole(part: Tensor, rows: slice, n: int, dim: int = 0) -> Tensor:
    """All `n` rows along `dim`, on the CPU, from each process's own."""
    if state().num_processes == 1:
        return part.cpu()
    shape = list(part.shape)
    shape[dim] = n
    padded = torch.zeros(shape, dtype=part.dtype, device=state().device)
    padded.narrow(dim, rows.start, rows.stop - rows.start).copy_(part)
    return reduce(padded, "sum").cpu()


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Every parameter's gradient becomes the sum of all processes', in one exchange; none at all counts as zero."""
    if state().num_processes == 1:
        return
    own = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = reduce(torch.cat([gradient.flatten() for gradient in own]), "sum")
    for parameter, total in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = total.view_as(parameter)


def sum_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Each metric summed over the processes that have it."""
    totals: dict[str, float] = {}
    for part in gather_object([dict(metrics)]):
        for name, value in part.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals


def first_found(own: Found | None) -> tuple[int, Found] | None:
    """What the first process that found something has found, with that process's number; None if none did."""
    everyone: list[Found | None] = gather_object([own])
    return next(((number, found) for number, found in enumerate(everyone) if found is not None), None)
