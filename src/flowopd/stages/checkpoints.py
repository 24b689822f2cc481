"""The checkpoints of a run's trainings as models: what they are called, where they lie, and the adapters they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flowopd.checkpoint import TENSORS
from flowopd.configs import AdapterConfig, DistillConfig
from flowopd.durable import SEAL, fault
from flowopd.errors import CheckpointError, ConfigError
from flowopd.lora_file import Factors, LoraFile, peft_config
from flowopd.recipe import Recipe
from flowopd.results import TEACHER

CHECKPOINT = "checkpoint:"
"""A checkpoint goes by `checkpoint:STAGE/STEP`."""


def checkpoints(run: Path) -> list[str]:
    """The names of a run's checkpoints, stage by stage, the earliest first."""
    found = [folder.parent for folder in (run / "checkpoints").glob(f"**/step-*/{TENSORS}")]
    steps = [(str(f.parent.relative_to(run / "checkpoints")), f.name.removeprefix("step-")) for f in found]
    return [f"{CHECKPOINT}{stage}/{step}" for stage, step in sorted(steps, key=_by_step) if step.isdigit()]


def known_checkpoints(recipe: Recipe, run: Path) -> list[str]:
    """Those of the stages that the recipe trains."""
    return [model for model in checkpoints(run) if _shape(recipe, parted(model)[0]) is not None]


def parted(model: str) -> tuple[str, int]:
    """The folder of a checkpoint's stage below `checkpoints`, and its updates: `distill` and 20."""
    stage, _, step = model.removeprefix(CHECKPOINT).rpartition("/")
    return stage, int(step)


def stage_folder(stage: str) -> str:
    """The folder of a stage below `checkpoints`, from the name that it is logged under."""
    return f"teachers/{stage.removeprefix(TEACHER)}" if stage.startswith(TEACHER) else stage


def nearest(model: str, there: Sequence[str]) -> str | None:
    """Of these checkpoints the one of the same stage whose step is closest, if `model` names a stage and a step."""
    stage, _, step = model.removeprefix(CHECKPOINT).rpartition("/")
    same = [other for other in there if parted(other)[0] == stage] if step.isdecimal() else []
    return min(same, key=lambda other: abs(parted(other)[1] - int(step)), default=None)


def checkpoint_folder(run: Path, model: str) -> Path:
    """The folder of a checkpoint by its name."""
    stage, _, step = model.removeprefix(CHECKPOINT).rpartition("/")
    return run / "checkpoints" / stage / f"step-{step}"


def checkpoint_hash(run: Path, model: str) -> str:
    """The SHA-256 of a checkpoint's tensors. Raises CheckpointError if it is not what was written."""
    folder = checkpoint_folder(run, model)
    wrong = fault(folder)
    if wrong is not None:
        raise CheckpointError(f"checkpoint {folder} is damaged ({wrong}); delete it")
    return str(json.loads((folder / SEAL).read_bytes())[TENSORS])


def checkpoint_lora(recipe: Recipe, run: Path, model: str) -> LoraFile:
    """The averaged weights of a checkpoint, as the adapter that the stage would end with.

    Raises CheckpointError if it cannot be read, ConfigError if the recipe does not have its stage any more.
    """
    folder = checkpoint_folder(run, model)
    stage = folder.parent.relative_to(run / "checkpoints").as_posix()
    try:
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read ({error}); draw with another") from error
    averaged = {name.removeprefix("ema."): tensor for name, tensor in tensors.items() if name.startswith("ema.")}
    shape = _shape(recipe, stage)
    if shape is None:
        raise ConfigError(f"the recipe has no stage {stage!r} any more; its checkpoints cannot draw")
    modules = {
        name.removesuffix(".lora_A.weight"): _factors(averaged, name, shape)
        for name in averaged
        if name.endswith(".lora_A.weight")
    }
    return LoraFile({"peft_type": "LORA", **peft_config(modules)}, modules)


def _factors(averaged: Mapping[str, Tensor], name: str, shape: AdapterConfig) -> Factors:
    a, b = averaged[name], averaged[name.replace(".lora_A.", ".lora_B.")]
    return Factors(a, b, shape.alpha / shape.rank)


def _shape(recipe: Recipe, stage: str) -> AdapterConfig | None:
    """The shape of the adapter that a stage trains; None if the recipe does not train it."""
    teacher = recipe.teachers.get(stage.removeprefix("teachers/"))
    owners = {
        "distill": recipe.distill,
        "sft": recipe.distill or DistillConfig(),
        "grpo_mix": recipe.grpo_mix,
        f"teachers/{stage.removeprefix('teachers/')}": teacher.train if teacher else None,
    }
    owner = owners.get(stage)
    return owner.adapter if owner is not None else None


def _by_step(place: tuple[str, str]) -> tuple[str, int]:
    return place[0], int(place[1]) if place[1].isdigit() else 0
