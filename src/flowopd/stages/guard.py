"""What every trained stage is watched for: frozen models that change, values that are not finite, drift and hacking."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256

import torch
from torch import Tensor

from flowopd.checkpoint import Checkpoints
from flowopd.errors import CheckpointError, ConfigError
from flowopd.nonfinite import Trace, View
from flowopd.processes import first_found, state
from flowopd.session import Session
from flowopd.stages.monitor import Monitor, Trained
from flowopd.train import Trainer, Watch


class Guard(Watch):
    """Seals the frozen models, names what is not finite, and looks at pictures if the recipe has a `monitor`.

    `repeat(view)` is an update that sees prompts and models through `view`, one sample at a time.
    """

    def __init__(self, session: Session, trained: Trained, repeat: Callable[[View], Callable[[int], object]]) -> None:
        self._session, self._trained, self._repeat = session, trained, repeat
        config = session.recipe.monitor
        self._monitor = Monitor(session, trained, config) if config else None
        self._seal: dict[str, dict[str, str]] = {}
        self._folder = ""

    def begin(self, trainer: Trainer, checkpoints: Checkpoints) -> None:
        """Raises CheckpointError unless the optimiser holds exactly the trained adapter, ConfigError if more trains."""
        held = [p for group in trainer.optimizer.param_groups for p in group["params"]]
        self._session.adapters.check_trainable(held, self._trained.name)
        for model, weights in self._frozen().items():
            loose = [name for name, p in weights.items() if p.requires_grad]
            if loose:
                raise ConfigError(f"{model} is to stay as it is, and its {loose[0]} requires a gradient; freeze it")
        self._seal, self._folder = self._digests(), str(checkpoints.folder)
        if self._monitor is not None:
            self._monitor.begin(trainer, checkpoints)

    def fault(self, step: int) -> str | None:
        """The first value of the first process that is not finite, with its sample, prompt, model and layer."""
        trace = Trace(self._trained.conditioning)
        parameters = self._session.adapters.parameters(self._trained.name)
        with trace.watching(self._session.networks().values(), parameters):
            self._repeat(trace)(step)
        found = first_found(trace.fault)
        if found is None:
            return (
                "its gradient is not finite, though nothing is when samples are taken one by one; look at the rewards"
            )
        process = f" (process {found[0]})" if state().num_processes > 1 else ""
        return f"{found[1]}{process}"

    def look(self, step: int, trainer: Trainer) -> Mapping[str, float]:
        """The monitor's numbers, when they are due."""
        return {} if self._monitor is None else self._monitor.look(step, trainer)

    def end(self) -> None:
        """Raises CheckpointError if a frozen model is not what it was; nothing is written of what learnt from it."""
        now = self._digests()
        for model, digests in self._seal.items():
            changed = [name for name, digest in digests.items() if now[model].get(name) != digest]
            if changed:
                raise CheckpointError(
                    f"{model} changed while {self._trained.name} was trained, though it is frozen (its {changed[0]}, "
                    f"{len(changed)} tensors in all); delete {self._folder} and train again"
                )

    def _frozen(self) -> dict[str, dict[str, Tensor]]:
        """The weights of every model in memory but the trained one."""
        return {model: weights for model, weights in self._session.weights().items() if model != self._trained.name}

    def _digests(self) -> dict[str, dict[str, str]]:
        return {model: {name: digest(p) for name, p in weights.items()} for model, weights in self._frozen().items()}


def digest(tensor: Tensor) -> str:
    """sha256 of a tensor's bytes."""
    return sha256(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()).hexdigest()
