"""Resumable state: tensors as safetensors and facts as JSON in a sealed folder, verified when read."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load
from torch import Tensor

from flowopd.durable import fault, packed, remove_folder, remove_strays, write_folder
from flowopd.errors import CheckpointError
from flowopd.identity import differences
from flowopd.processes import is_main

TENSORS, FACTS = "state.safetensors", "state.json"


class BestConfig(BaseModel):
    """Which checkpoint to keep besides the last ones: that whose last update had the smallest or largest metric."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str = Field(description="a metric that the stage logs")
    mode: Literal["min", "max"] = Field("min", description="whether the smallest or the largest is the best")


@dataclass(frozen=True)
class Log:
    """What was logged when a checkpoint was made: rows of its stage in metrics.jsonl, and the last one's metrics."""

    rows: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` updates: its tensors by name, what the run was (`identity`), what was logged."""

    step: int
    tensors: Mapping[str, Tensor]
    identity: Mapping[str, Any]
    log: Log


class Checkpoints:
    """The checkpoints of one stage, `step-N` folders in `folder`."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder, self.identity = folder, dict(identity)

    def save(self, step: int, tensors: Mapping[str, Tensor], log: Log | None = None) -> None:
        """Keep this state; a reader finds all of it or nothing of it.

        Raises CheckpointError if it cannot be written; the checkpoints before it stay.
        """
        remove_strays(self.folder, "step-*")
        target, log = self._place(step), log or Log()
        if target.exists():
            remove_folder(target)
        facts = {"step": step, "rows": log.rows, "metrics": dict(log.metrics), "identity": self.identity}
        write_folder(target, {TENSORS: packed(tensors), FACTS: json.dumps(facts, indent=1).encode()})

    def prune(self, step: int, keep: int | None, best: BestConfig | None = None) -> None:
        """Of the checkpoints up to `step`, keep the last `keep` (None: all), and the best; later ones are damaged and
        stay."""
        there = [old for old in self._steps() if old <= step]
        kept = {*there[-(keep or len(there)) :], *([self._best(there, best)] if best else [])}
        for old in there:
            if old not in kept:
                remove_folder(self._place(old))

    def latest(self) -> Checkpoint | None:
        """The newest state that is whole, or None if there is none at all; a damaged one is named on standard error.

        Raises CheckpointError if all are damaged, or it belongs to a run with other settings or files.
        """
        if is_main():
            remove_strays(self.folder, "step-*")
        damaged: list[str] = []
        for step in reversed(self._steps()):
            wrong = fault(self._place(step))
            if wrong is None:
                found = self._read(step)
                self._refuse_others(step, found.identity)
                _tell(damaged, step)
                return found
            damaged.append(f"{self._place(step)} is damaged ({wrong})")
        if damaged:
            raise CheckpointError(f"checkpoint {damaged[0]}, and none is whole; delete {self.folder} to begin anew")
        return None

    def _read(self, step: int) -> Checkpoint:
        folder = self._place(step)
        facts = json.loads((folder / FACTS).read_bytes())
        log = Log(facts["rows"], facts["metrics"])
        return Checkpoint(facts["step"], load((folder / TENSORS).read_bytes()), facts["identity"], log)

    def _refuse_others(self, step: int, found: Mapping[str, Any]) -> None:
        changed = differences(found, json.loads(json.dumps(self.identity)))
        if changed:
            raise CheckpointError(
                f"checkpoint {self._place(step)} belongs to a run with another {changed}; "
                "undo the change, or use another --out"
            )

    def _best(self, steps: list[int], best: BestConfig) -> int | None:
        """The step with the best metric, the earliest of equals; None if no whole checkpoint has a finite one."""
        sign = 1 if best.mode == "min" else -1
        values = {step: sign * self._metric(step, best.metric) for step in steps}
        finite = {step: value for step, value in values.items() if math.isfinite(value)}
        return min(finite, key=lambda step: finite[step], default=None)

    def _metric(self, step: int, name: str) -> float:
        try:
            facts = json.loads((self._place(step) / FACTS).read_bytes())
            return float(facts["metrics"].get(name, math.nan))
        except (OSError, ValueError, KeyError):
            return math.nan

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step}"

    def _steps(self) -> list[int]:
        found = (re.fullmatch(r"step-(\d+)", path.name) for path in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in found if match)


def _tell(damaged: list[str], step: int) -> None:
    if is_main():
        for line in damaged:
            print(f"checkpoint {line}; going on from step-{step}, the one before", file=sys.stderr)
