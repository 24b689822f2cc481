"""The loop that every trained stage shares: update, clip, step, average, log, checkpoint, resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from flowopd.checkpoint import Checkpoints
from flowopd.errors import FlowOpdError, NumericsError
from flowopd.processes import is_main, sum_gradients
from flowopd.tracking import Tracker

Update = Callable[[int], Mapping[str, Tensor]]
"""Leaves this process's share of the gradient of update `step` in the parameters; returns the metrics, scalars."""


class TrainConfig(BaseModel):
    """How a stage is optimised: AdamW with a short warm-up, the gradient's norm clipped, weights averaged (EMA)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    updates: int = Field(300, ge=1, description="updates in all")
    learning_rate: float = Field(3e-4, gt=0, description="AdamW's, after the warm-up")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's")
    warmup: int = Field(5, ge=0, description="updates over which the learning rate rises to its value")
    decay: bool = Field(False, description="let the learning rate fall to a tenth along a cosine")
    max_grad_norm: float = Field(1.0, gt=0, description="largest norm of the gradient; a larger one is scaled down")
    ema: float = Field(0.9, ge=0, lt=1, description="decay of the averaged weights a stage ends with; 0 is off")
    checkpoint_every: int = Field(50, ge=1, description="updates between two checkpoints")


class Average:
    """Exponential moving average of parameters, in copies of its own; the decay after n updates is at most
    (1 + n)/(10 + n), so that short runs forget where they began."""

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.values = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, parameters: Sequence[Tensor]) -> None:
        """Move towards the parameters."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        get_ema_multi_avg_fn(decay)(self.values, list(parameters), None)

    @torch.no_grad()
    def copy_to(self, parameters: Sequence[Tensor]) -> None:
        """Put the averages into the parameters."""
        for parameter, value in zip(parameters, self.values, strict=True):
            parameter.copy_(value)


class Trainer:
    """Trains some named parameters; what it ends with are the averaged weights."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: TrainConfig) -> None:
        self.config, self.names, self.parameters = config, list(parameters), list(parameters.values())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.999)
        )
        self.average = Average(self.parameters, config.ema)

    def run(self, update: Update, tracker: Tracker, checkpoints: Checkpoints) -> None:
        """Make all updates that are left, and leave the averaged weights in the parameters.

        What stops an update is raised again, once the updates before it are kept. The tracker's `on_update` may end
        the stage early; called again, it goes on.
        """
        with tracker:
            start = self._resume(checkpoints)
            tracker.rewind(start)
            for step in range(start, self.config.updates):
                try:
                    told = {**update(step), "grad_norm": self._step(step)}
                except FlowOpdError:
                    if step > start and is_main():
                        checkpoints.save(step, self._state())
                    raise
                metrics = {name: float(value) for name, value in told.items()}
                tracker.log(step, metrics)
                last = tracker.ends(step, metrics) or step + 1 == self.config.updates
                if (last or (step + 1) % self.config.checkpoint_every == 0) and is_main():
                    checkpoints.save(step + 1, self._state())
                if last:
                    break
        self.average.copy_to(self.parameters)

    def _step(self, step: int) -> Tensor:
        sum_gradients(self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        if not torch.isfinite(norm):
            raise NumericsError(f"the gradient of update {step} is not finite; weights kept, lower the learning rate")
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self._rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.parameters)
        return norm

    def _rate(self, step: int) -> float:
        """Share of the learning rate in update `step`."""
        config = self.config
        rise = min(1.0, (step + 1) / (config.warmup + 1))
        fall = 0.55 + 0.45 * math.cos(math.pi * min(1.0, step / config.updates))
        return rise * (fall if config.decay else 1.0)

    def _state(self) -> dict[str, Tensor]:
        state = {f"weight.{name}": p for name, p in zip(self.names, self.parameters, strict=True)}
        state |= {f"ema.{name}": p for name, p in zip(self.names, self.average.values, strict=True)}
        for i, values in self.optimizer.state_dict()["state"].items():
            state |= {f"adam.{key}.{self.names[i]}": torch.as_tensor(value) for key, value in values.items()}
        return state

    def _resume(self, checkpoints: Checkpoints) -> int:
        found = checkpoints.latest()
        if found is None:
            return 0
        state = found.tensors
        moments: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for i, name in enumerate(self.names):
                self.parameters[i].copy_(state[f"weight.{name}"])
                self.average.values[i].copy_(state[f"ema.{name}"])
                moments[i] = {key: state[f"adam.{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.average.updates = found.step
        return found.step
