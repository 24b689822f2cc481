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
from flowopd.processes import everywhere, is_main, sum_gradients, sum_metrics, wait
from flowopd.signals import listening
from flowopd.tracking import Tracker, warn

Update = Callable[[int], Mapping[str, Tensor]]
"""Leaves this process's share of the gradient of update `step` in the parameters; returns the metrics, scalars."""


class TrainConfig(BaseModel):
    """How a stage is optimised: AdamW with a short warm-up, the gradient's norm clipped, weights averaged (EMA)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    updates: int = Field(300, ge=1, description="updates in all")
    learning_rate: float = Field(3e-4, gt=0, description="AdamW's, after the warm-up")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's")
    warmup: int = Field(5, ge=0, description="updates over which the learning rate rises to its value")
    decay: bool = Field(False, description="let the learning rate fall to a tenth along a cosine")
    max_grad_norm: float = Field(1.0, gt=0, description="largest norm of the gradient; a larger one is scaled down")
    ema: float = Field(0.9, ge=0, lt=1, description="decay of the averaged weights a stage ends with; 0 is off")
    checkpoint_every: Annotated[int, HARMLESS] = Field(50, ge=1, description="updates between two checkpoints")
    keep: Annotated[int | None, HARMLESS] = Field(
        2, ge=1, description="how many of the last checkpoints stay; none is all"
    )
    best: Annotated[BestConfig | None, HARMLESS] = Field(None, description="a metric by which another one stays too")
    max_skips: Annotated[int, HARMLESS] = Field(
        3, ge=0, description="updates in a row that may be skipped because their gradient is not finite"
    )


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


class Watch:
    """What watches a stage while it trains, and may stop it; this one sees nothing."""

    def begin(self, trainer: Trainer, checkpoints: Checkpoints) -> None:
        """Called once a call of the stage, while the weights are those that it starts from."""

    def fault(self, step: int) -> str | None:
        """What is not finite in update `step`, found by making it again; it may leave gradients."""
        return None

    def look(self, step: int, trainer: Trainer) -> Mapping[str, float]:
        """Called after update `step`; returns metrics for its row. May raise NumericsError, or roll back."""
        return {}

    def end(self) -> None:
        """Called after the last update, before its state is kept."""


class Trainer:
    """Trains some named parameters under a watch; what it ends with are the averaged weights."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: TrainConfig, watch: Watch | None = None) -> None:
        self.config, self.names, self.parameters = config, list(parameters), list(parameters.values())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.999)
        )
        self.average = Average(self.parameters, config.ema)
        self.watch = watch or Watch()
        self.rate = 1.0  # share of the learning rate that roll-backs have left
        self._proven, self._skipped = -1, 0  # the last update whose gradient was finite; those skipped since
        self._fault, self._reached = "", False
        self._told: set[str] = set()  # the metrics there were so far

    def run(self, update: Update, tracker: Tracker, checkpoints: Checkpoints) -> None:
        """Make all updates that are left, and leave the averaged weights in the parameters.

        SIGINT and SIGTERM are heard after an update, which is kept: all processes then raise Interrupted. What stops an
        update is raised again, once the updates before it are kept. Raises CheckpointError if no checkpoint is whole,
        or the one there is belongs to another run; NumericsError if more updates in a row than `max_skips` have no
        finite gradient, or the watch says so.

        The tracker's `on_update` may end the training early; called again, it goes on.
        """
        with tracker, listening() as heard:
            self.watch.begin(self, checkpoints)
            start, metrics = self._resume(tracker, checkpoints), dict[str, float]()
            self._proven = start - 1
            for step in range(start, self.config.updates):
                try:
                    told = {**update(step), **self.step(step)}
                except FlowOpdError:
                    if step > start and not self._is_due(step):
                        self._keep(step, metrics, tracker, checkpoints)
                    raise
                self._refuse_more_skips(step, checkpoints)
                told |= self.watch.look(step, self)
                metrics = {name: float(value) for name, value in told.items()}
                self._check_best(step, metrics)
                tracker.log(step, metrics)
                ends = tracker.ends(step, metrics)
                if ends or step + 1 == self.config.updates:
                    self.watch.end()
                stop = max(everywhere(heard()))
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
        """The main process makes a checkpoint, once the disk holds the rows before it; none while updates are skipped.

        Raises NumericsError for a weight that is not finite.
        """
        if self._skipped:
            return
        broken = self._broken_weight()
        if broken:
            raise NumericsError(f"after update {step - 1} {broken}; {self._way_out(checkpoints)}")
        if is_main():
            checkpoints.save(step, self._state(), Log(tracker.flush(), metrics))
            checkpoints.prune(step, self.config.keep, self.config.best)

    def _check_best(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raises ConfigError if the best checkpoint is to be known by a metric that there is not.

        One of a part, as a label's, is not there after every update: it is missed when the first checkpoint is made.
        """
        best, self._told = self.config.best, {*self._told, *metrics}
        if best is None or best.metric in self._told:
            return
        near = get_close_matches(best.metric, sorted(self._told), n=1, cutoff=0.0)[0]
        said = f"optim.best.metric: there is no {best.metric!r} among the metrics; did you mean {near!r}?"
        if "/" not in best.metric:
            raise ConfigError(said)
        if step + 1 == min(self.config.checkpoint_every, self.config.updates):
            warn(said)

    def step(self, step: int) -> dict[str, Tensor | float]:
        """Take step `step` on the gradients that are there, which it clears, or skip it if they are not finite.

        Returns `grad_norm`, before clipping, and `skipped`, 0 or 1.
        """
        self._check_reached(step)
        sum_gradients(self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        if not torch.isfinite(norm):
            self._skip(step)
            return {"grad_norm": norm, "skipped": 1.0}
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self._rate(step) * self.rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.parameters)
        self._proven, self._skipped = step, 0
        return {"grad_norm": norm, "skipped": 0.0}

    def _check_reached(self, step: int) -> None:
        """Before the first step: every process's gradients together reach every tensor that is trained.

        A zero is a gradient: the A of a fresh adapter, whose B is zero, has no other at first.
        """
        if self._reached:
            return
        named = zip(self.names, self.parameters, strict=True)
        there = sum_metrics({name: 1.0 for name, p in named if p.grad is not None})
        missing = [name for name in self.names if name not in there]
        if missing:
            raise NumericsError(
                f"no gradient reached {missing[0]}, nor {len(missing) - 1} more of {len(self.names)} trained tensors, "
                f"in update {step}; take layers that the model uses as `adapter.targets`"
            )
        self._reached = True

    def _skip(self, step: int) -> None:
        """Leave weights, moments and average as they are, and name what is not finite."""
        self.optimizer.zero_grad(set_to_none=True)
        broken = self._broken_weight()
        self._fault = broken or self.watch.fault(step) or "its gradient is not finite"
        self.optimizer.zero_grad(set_to_none=True)
        self._skipped += self.config.max_skips + 1 if broken else 1
        warn(f"update {step} is skipped, weights kept: {self._fault}")

    def _refuse_more_skips(self, step: int, checkpoints: Checkpoints) -> None:
        """Raises NumericsError after more skipped updates in a row than there may be, or for a broken weight."""
        if self._skipped > self.config.max_skips:
            raise NumericsError(f"update {step}: {self._fault}; {self._way_out(checkpoints)}")

    def _broken_weight(self) -> str | None:
        named = zip(self.names, self.parameters, strict=True)
        return next((f"weight {name} is not finite" for name, p in named if not bool(p.isfinite().all())), None)

    def _way_out(self, checkpoints: Checkpoints) -> str:
        """The newest checkpoint from which an update with a finite gradient was made, and the mend."""
        kept = [int(folder.name.removeprefix("step-")) for folder in checkpoints.folder.glob("step-*")]
        good = max((n for n in kept if n <= self._proven), default=None)
        known = "no checkpoint" if good is None else f"checkpoint {checkpoints.folder / f'step-{good}'}"
        return f"{known} is the last known to be good; begin anew with a lower learning rate or a wider dtype"

    def snapshot(self, step: int, checkpoints: Checkpoints) -> None:
        """Let this state, after `step` updates, be the only one in a folder of its own; the main process writes."""
        if is_main():
            checkpoints.save(step, self._state())
            checkpoints.prune(step, keep=1)

    def roll_back(self, checkpoints: Checkpoints) -> None:
        """Take weights, moments and average of the newest checkpoint, and halve the learning rate from here on."""
        found, rate = checkpoints.latest(), self.rate
        assert found is not None
        self._restore(found.tensors)
        self.rate = rate / 2

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
        return state | {"ema_updates": torch.tensor(self.average.updates), "rate": torch.tensor(self.rate)}

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
        self.average.updates, self.rate = int(state["ema_updates"]), float(state.get("rate", 1.0))
