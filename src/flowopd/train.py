"""The loop that every trained stage shares: update, clip, step, average, log, checkpoint, resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from diffusers.training_utils import EMAModel
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from flowopd.checkpoint import Checkpoints
from flowopd.errors import NumericsError
from flowopd.tracking import Tracker

Update = Callable[[int], Mapping[str, Tensor]]
"""Leaves the gradient of update `step` in the parameters and returns its metrics, scalars."""


class TrainConfig(BaseModel):
    """How a stage is optimised: AdamW with a short warm-up, the gradient's norm clipped, weights averaged (EMA)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    updates: int = Field(300, ge=1)
    learning_rate: float = Field(3e-4, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    warmup: int = Field(5, ge=0, description="updates over which the learning rate rises to its value")
    decay: bool = Field(False, description="let the learning rate fall to a tenth along a cosine")
    max_grad_norm: float = Field(1.0, gt=0)
    ema: float = Field(0.9, ge=0, lt=1, description="decay of the averaged weights a stage ends with; 0 is off")
    checkpoint_every: int = Field(50, ge=1)


class Trainer:
    """Trains some named parameters; what it ends with, and what evaluation sees, are the averaged weights."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: TrainConfig) -> None:
        self.config, self.names, self.parameters = config, list(parameters), list(parameters.values())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.999)
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.average = EMAModel(self.parameters, decay=config.ema, min_decay=0.0)

    def run(self, update: Update, tracker: Tracker, checkpoints: Checkpoints) -> None:
        """Make all updates that are left, and leave the averaged weights in the parameters."""
        with tracker:
            start = self._resume(checkpoints)
            tracker.rewind(start)
            for step in range(start, self.config.updates):
                metrics = {**update(step), "grad_norm": self._step(step)}
                tracker.log(step, {name: float(value) for name, value in metrics.items()}, _note(metrics))
                if (step + 1) % self.config.checkpoint_every == 0 or step + 1 == self.config.updates:
                    checkpoints.save(step + 1, self._state())
        self.average.copy_to(self.parameters)

    def _step(self, step: int) -> Tensor:
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        if not torch.isfinite(norm):
            raise NumericsError(f"the gradient of update {step} is not finite; weights kept, lower the learning rate")
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.step(self.parameters)
        return norm

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights stand in the parameters meanwhile."""
        self.average.store(self.parameters)
        self.average.copy_to(self.parameters)
        try:
            yield
        finally:
            self.average.restore(self.parameters)

    def _rate(self, step: int) -> float:
        config = self.config
        rise = min(1.0, (step + 1) / (config.warmup + 1))
        fall = 0.55 + 0.45 * math.cos(math.pi * min(1.0, step / config.updates))
        return rise * (fall if config.decay else 1.0)

    def _state(self) -> dict[str, Tensor]:
        state = {f"weight.{name}": p for name, p in zip(self.names, self.parameters, strict=True)}
        state |= {f"ema.{name}": p for name, p in zip(self.names, self.average.shadow_params, strict=True)}
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
                self.average.shadow_params[i].copy_(state[f"ema.{name}"])
                moments[i] = {key: state[f"adam.{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.average.optimization_step = found.step
        self.schedule.last_epoch = found.step - 1
        self.schedule.step()
        return found.step


def _note(metrics: Mapping[str, Tensor]) -> str:
    shown = [name for name in ("reward", "gap", "loss") if name in metrics][:1]
    return " ".join(f"{name} {float(metrics[name]):.4g}" for name in shown)
