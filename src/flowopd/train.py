"""The loop that every trained stage shares: update, clip, step, average, log, checkpoint, resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from flowopd.checkpoint import BestConfig, Checkpoints, Log
from flowopd.errors import CheckpointError, ConfigError, FlowOpdError, Interrupted, NumericsError
from flowopd.identity import HARMLESS
from flowopd.processes import everywhere, is_main, sum_gradients, wait
from flowopd.signals import listening
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
    checkpoint_every: Annotated[int, HARMLESS] = Field(50, ge=1, description="updates between two checkpoints")
    keep: Annotated[int, HARMLESS] = Field(2, ge=1, description="how many of the last checkpoints stay")
    best: Annotated[BestConfig | None, HARMLESS] = Field(None, description="a metric by which another one stays too")


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

        SIGINT and SIGTERM are heard after an update, which is kept: all processes then raise Interrupted. What stops an
        update is raised again, once the updates before it are kept. Raises CheckpointError if no checkpoint is whole,
        or the one there is belongs to another run.

        The tracker's `on_update` may end the training early; called again, it goes on.
        """
        with tracker, listening() as heard:
            start, metrics = self._resume(tracker, checkpoints), dict[str, float]()
            for step in range(start, self.config.updates):
                try:
                    told = {**update(step), "grad_norm": self._step(step)}
                except FlowOpdError:
                    if step > start and not self._is_due(step):
                        self._keep(step, metrics, tracker, checkpoints)
                    raise
                metrics = {name: float(value) for name, value in told.items()}
                self._check_best(metrics)
                tracker.log(step, metrics)
                ends, stop = tracker.ends(step, metrics), max(everywhere(heard()))
                if self._is_due(step + 1) or stop or ends:
                    self._keep(step + 1, metrics, tracker, checkpoints)
                    wait()
                if stop:
                    raise Interrupted(stop, f"{tracker.stage} stopped after update {step + 1} of {self.config.updates}")
                if ends:
                    break
        self.average.copy_to(self.parameters)

    def _is_due(self, step: int) -> bool:
        """Whether a checkpoint is made after so many updates, whatever happens."""
        return step % self.config.checkpoint_every == 0 or step == self.config.updates

    def _keep(self, step: int, metrics: Mapping[str, float], tracker: Tracker, checkpoints: Checkpoints) -> None:
        """The main process makes a checkpoint, once the disk holds the rows before it."""
        if is_main():
            checkpoints.save(step, self._state(), Log(tracker.flush(), metrics))
            checkpoints.prune(step, self.config.keep, self.config.best)

    def _check_best(self, metrics: Mapping[str, float]) -> None:
        """Raises ConfigError if the best checkpoint is to be known by a metric that there is not."""
        best = self.config.best
        if best is not None and best.metric not in metrics:
            near = get_close_matches(best.metric, metrics, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"optim.best.metric: there is no {best.metric!r} among the metrics; did you mean {near!r}?"
            )

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
        return state | {"ema_updates": torch.tensor(self.average.updates)}

    def _resume(self, tracker: Tracker, checkpoints: Checkpoints) -> int:
        """Take up the newest checkpoint; returns how many updates were made."""
        found = checkpoints.latest()
        start = found.step if found else 0
        starts = everywhere(start)
        if len(set(starts)) > 1:
            raise CheckpointError(
                f"the processes find {starts} updates in {checkpoints.folder}; give an --out that all of them see"
            )
        if found:
            self._restore(found.tensors)
        tracker.rewind(start, found.log.rows if found else 0)
        return start

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        moments: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for i, name in enumerate(self.names):
                self.parameters[i].copy_(state[f"weight.{name}"])
                self.average.values[i].copy_(state[f"ema.{name}"])
                if f"adam.step.{name}" in state:
                    moments[i] = {key: state[f"adam.{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.average.updates = int(state["ema_updates"])
