"""Resumable state: tensors as safetensors and facts as JSON, written aside and renamed, verified when read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowopd.errors import CheckpointError

TENSORS, FACTS = "state.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` updates: its tensors by name, and what the run was (`identity`)."""

    step: int
    tensors: Mapping[str, Tensor]
    identity: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one stage, `step-N` folders in `folder`; the last `keep` of them stay."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], keep: int = 2) -> None:
        self.folder, self.identity, self.keep = folder, dict(identity), keep

    def save(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep this state; a reader finds all of it or nothing of it."""
        target, aside = self.folder / f"step-{step}", self.folder / f".step-{step}.{os.getpid()}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside / TENSORS)
        facts = {"step": step, "identity": self.identity, "sha256": _hash(aside / TENSORS)}
        (aside / FACTS).write_text(json.dumps(facts, indent=1))
        for file in (aside / TENSORS, aside / FACTS):
            _flush(file)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
        for old in self._steps()[: -self.keep]:
            shutil.rmtree(self.folder / f"step-{old}")

    def latest(self) -> Checkpoint | None:
        """The newest state, or None if there is none.

        Raises CheckpointError if it is damaged, or belongs to a run with other settings.
        """
        steps = self._steps()
        if not steps:
            return None
        folder = self.folder / f"step-{steps[-1]}"
        try:
            facts = json.loads((folder / FACTS).read_text())
            damaged = facts["sha256"] != _hash(folder / TENSORS)
            tensors = {} if damaged else load_file(folder / TENSORS)
        except (OSError, json.JSONDecodeError, KeyError, SafetensorError):
            damaged, facts, tensors = True, {}, {}
        if damaged:
            raise CheckpointError(f"checkpoint {folder} is damaged; delete it to go on from the one before")
        self._refuse_others(folder, facts["identity"])
        return Checkpoint(facts["step"], tensors, facts["identity"])

    def _refuse_others(self, folder: Path, found: Mapping[str, Any]) -> None:
        here = json.loads(json.dumps(self.identity))
        changed = sorted(key for key in {*found, *here} if found.get(key) != here.get(key))
        if changed:
            raise CheckpointError(
                f"checkpoint {folder} belongs to a run with another {', '.join(changed)}; use another --out"
            )

    def _steps(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*"))


def _hash(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()


def _flush(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
