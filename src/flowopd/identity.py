"""What a run is: the settings that its trained weights depend on, and how those of two runs differ."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

SHOWN, LONGEST = 3, 70
"""How many differences a message names, and how many characters of a value."""

DIGEST, DIGITS = re.compile(r"[0-9a-f]{64}"), 8
"""A hash in full, and how much of it is shown."""

FILES = {"sha256": "file of {}", "sha256_prompts": "file of prompts.{}"}
"""Whose file it is that a hash of these was made of."""


@dataclass(frozen=True)
class Harmless:
    """Marks a setting, by `Annotated`, that may change between two calls: no result depends on it but by rounding."""


HARMLESS = Harmless()


TRAINING = (
    "base",
    "revision",
    "resolution",
    "seed",
    "prompts",
    "teachers",
    "routes",
    "route_by",
    "coldstart",
    "grpo_mix",
    "distill",
)
"""The parts of a recipe that its trained models depend on; the others may change between two calls."""


def training(recipe: BaseModel) -> dict[str, Any]:
    """What the trained models of a recipe depend on: of its prompts, those that are trained on."""
    parts = {name: value for name, value in lasting(recipe).items() if name in TRAINING}
    prompts = {label: {"train": files["train"]} for label, files in parts["prompts"].items()}
    return parts | {"prompts": prompts}


def lasting(part: BaseModel) -> dict[str, Any]:
    """A part of a recipe as plain values, without its harmless settings, at any depth."""
    fields = type(part).model_fields
    return {name: _plain(getattr(part, name)) for name, field in fields.items() if HARMLESS not in field.metadata}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What changed, for example `seed (0 -> 1), distill.loss ('closed_form' -> 'log_ratio')`; empty if nothing did."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    told = [f"{_titled(key)} ({_shown(old.get(key))} -> {_shown(new.get(key))})" for key in keys[:SHOWN]]
    return ", ".join(told) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return lasting(value)
    if isinstance(value, Mapping):
        return {key: _plain(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(below) for below in value]
    return value


def _leaves(tree: Mapping[str, Any], above: str = "") -> Sequence[tuple[str, Any]]:
    """Every value with its path; an empty mapping and None are alike, nothing."""
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        path = f"{above}{key}"
        found += _leaves(value, f"{path}.") if isinstance(value, Mapping) else [(path, value)]
    return found


def _titled(key: str) -> str:
    """The path of a setting; of a file's hash, whose file it is."""
    kind, _, name = key.partition(".")
    return FILES[kind].format(name) if name and kind in FILES else key


def _shown(value: Any) -> str:
    if isinstance(value, str) and DIGEST.fullmatch(value):
        return f"sha256 {value[:DIGITS]}"
    text = "none" if value is None else repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
