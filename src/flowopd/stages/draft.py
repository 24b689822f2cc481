"""A first recipe for a base, its experts and their prompts, sized for a piece of hardware by the plan's own figures."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from flowopd.errors import CheckpointError, ConfigError
from flowopd.gpus import CPU, GPUS, gpu_named
from flowopd.hub import PACKAGE, check_shipped, is_local, located
from flowopd.lora_file import weights_file
from flowopd.models.published import TRANSFORMERS
from flowopd.models.source import CONFIG, INDEX
from flowopd.prompts import DATASET
from flowopd.recipe import Recipe, make_recipe
from flowopd.rewards.registry import REWARDS
from flowopd.session import Session
from flowopd.stages.plan import GIB, Plan, plan
from flowopd.stages.templates import rendered

BASES: Mapping[str, str] = {
    "sd35-medium": "stabilityai/stable-diffusion-3.5-medium",
    "sd35-large": "stabilityai/stable-diffusion-3.5-large",
}
"""Short names of published bases."""

ROOM = 0.9
"""Share of the memory that a plan may take: the rest is for what no plan sees, such as fragmentation."""

MOST, LEAST = 16, 2
"""Largest micro-batch, and the smallest that is worth more than recomputing activations."""

GUIDANCE = 4.5
"""The guidance of Stable Diffusion 3.5 that the paper trains and evaluates with (2605.08063)."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a recipe is wanted for: `teachers` are sources by name, `prompts` files by the same names."""

    base: str
    teachers: Mapping[str, str]
    prompts: Mapping[str, str]
    hardware: str
    guidance: float = GUIDANCE


@dataclass(frozen=True)
class Draft:
    """A recipe as commented text, and its plan."""

    text: str
    plan: Plan
    recipe: Recipe = field(repr=False)


def hardware_names() -> list[str]:
    """What a recipe can be drafted for."""
    return [*GPUS, CPU]


def check_base(name: str) -> None:
    """Raises ConfigError for a base that is no short name, nothing here, and cannot be on the hub."""
    check_shipped(name)
    if name not in BASES and not is_there(name):
        raise ConfigError(f"base {name} is no folder here, and no hub id; give one, or {' or '.join(BASES)}")


def usual_guidance(base: str) -> float:
    """The guidance that a base is sampled with where nobody says otherwise: none for one that ships with flowopd."""
    return 1.0 if base.startswith(PACKAGE) else GUIDANCE


def is_there(source: str) -> bool:
    """Whether a source lies here or in the package, or may lie on the hub."""
    return not is_local(source) or located(source).exists()


def is_file_there(file: str) -> bool:
    """Whether a file of prompts lies here or in the package, or is a data set, which lies elsewhere."""
    return file.startswith(DATASET) or located(file).exists()


def draft(wish: Wish, folder: Path = Path("runs/plan")) -> Draft:
    """The recipe for a wish: the largest micro-batch that fits, activations recomputed only if they have to be.

    Raises ConfigError for hardware that is not known, labels that are no teachers, and a base that does not fit;
    CheckpointError for a base that is none.
    """
    facts = _facts(wish)
    limit = ROOM * _memory(facts["hardware"])
    for checkpointing in (False, True):
        one = {**facts, "checkpointing": checkpointing, "micro_batch": 1}
        planned = _planned(one, folder)
        fitting = _fitting(planned, limit)
        if fitting >= (1 if checkpointing else LEAST):
            return _fitted(one, min(MOST, fitting), limit, folder)
    total = planned.memory_gib["total"]
    raise ConfigError(
        f"{wish.base} with {len(wish.teachers)} teachers takes {total:.1f} GiB at the least, "
        f"{wish.hardware} has {_memory(facts['hardware']):.0f}; take a larger one of {', '.join(hardware_names())}"
    )


def _fitting(one: Plan, limit: float) -> int:
    """The largest micro-batch within `limit` GiB, from the plan of a micro-batch of one; 0 if there is none.

    The encoders are gone before training begins, so they are not added to it, and have to fit by themselves.
    """
    parts = one.memory_gib
    training = sum(value for name, value in parts.items() if name not in ("encoders", "activations", "total"))
    if parts["encoders"] + parts["libraries"] > limit:
        return 0
    return max(0, int((limit - training) / parts["activations"]))


def _fitted(facts: Mapping[str, Any], micro_batch: int, limit: float, folder: Path) -> Draft:
    """The draft with this micro-batch, or the largest smaller one whose own plan fits."""
    for size in range(micro_batch, 0, -1):
        sized = {**facts, "micro_batch": size}
        planned = _planned(sized, folder)
        if planned.memory_gib["total"] <= limit or size == 1:
            break
    text = _text(sized)
    return Draft(text, planned, make_recipe(yaml.safe_load(text)))


def _planned(facts: Mapping[str, Any], folder: Path) -> Plan:
    """What a recipe of these facts takes."""
    hardware = facts["hardware"]
    rate = {"flops": 1e12} if hardware == CPU else {"gpu": hardware}
    return plan(Session(make_recipe(yaml.safe_load(_text(facts))), folder), **rate)


def _memory(hardware: str) -> float:
    """GiB of a GPU by its key, or of this machine."""
    return psutil.virtual_memory().total / GIB if hardware == CPU else GPUS[hardware].memory


def _facts(wish: Wish) -> dict[str, Any]:
    """What the text says, but for what has to be fitted."""
    base, hardware = BASES.get(wish.base, wish.base), gpu_named(wish.hardware)
    alone = sorted({*wish.teachers} ^ {*wish.prompts})
    if alone or not wish.teachers:
        missing = alone[0] if alone else "NAME"
        raise ConfigError(
            f"{missing!r} needs both --teacher {missing}=ADAPTER and --prompts {missing}=FILE; add the other"
        )
    teachers = {name: {_kind(source): source} for name, source in wish.teachers.items()}
    prompts = {label: _splits(file) for label, file in wish.prompts.items()}
    published = base in TRANSFORMERS
    return {
        "title": f"{', '.join(teachers)} of {base} become one student.",
        "hardware": hardware,
        "base": base,
        "dtype": "float32" if hardware == CPU else "bfloat16",
        "resolution": 512 if published else None,
        "prompts": prompts,
        "teachers": teachers,
        "merges": all("adapter" in keys for keys in teachers.values()),
        "samples": 8,
        "steps": 40 if published else 10,
        "guidance": f"{wish.guidance:g}",
        "metrics": [label for label, files in prompts.items() if "test" in files and label in REWARDS],
    }


def _kind(source: str) -> str:
    """The key that a teacher's source goes by: what has weights of a LoRA is an adapter, another model is whole."""
    folder = located(source)
    if not any((folder / name).exists() for name in (CONFIG, INDEX)):
        return "adapter"
    try:
        weights_file(folder)
    except CheckpointError:
        return "transformer"
    return "adapter"


def _splits(file: str) -> dict[str, str]:
    """The training prompts, and the test prompts where a file is so named, beside them or in a folder beside theirs."""
    other = file.replace("train", "test")
    there = other != file and not file.startswith(DATASET) and located(other).is_file()
    return {"train": file, **({"test": other} if there else {})}


def _text(facts: Mapping[str, Any]) -> str:
    """The recipe's text."""
    return rendered("recipe.yaml.jinja", facts, plain=_plain, pad=lambda value, width: f"{value!s:<{width}}")


def _plain(value: str) -> str:
    """A value as YAML, without quotes where it needs none."""
    plain = re.fullmatch(r"[\w./@#+=~-][\w./:@#+=~-]*", value) and yaml.safe_load(value) == value
    return value if plain else json.dumps(value, ensure_ascii=False)
