"""How the time and the memory of an update grow with one setting at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowopd.errors import ConfigError
from flowopd.stages.bench.measure import bench
from flowopd.stages.bench.settings import BenchConfig
from flowopd.stages.bench.subject import bare_model

VALUES = {
    "batch": (1, 2, 4, 8, 16, 32),
    "steps": (1, 2, 4, 8),
    "tokens": (16, 64, 144, 256, 576, 1024),
    "teachers": (1, 2, 4, 8, 16),
}
"""What each setting is set to; tokens are those of the image."""


def scan(config: BenchConfig, setting: str, values: Sequence[int] = ()) -> dict[str, Any]:
    """One measurement for each value of a setting, by default those of VALUES: `{"scan": setting, "points": [...]}`.

    Raises ConfigError for a setting that is not one of VALUES, and for values that are not positive.
    """
    if setting not in VALUES:
        raise ConfigError(f"--scan {setting} is not known; scan one of {', '.join(VALUES)}")
    if any(value < 1 for value in values):
        raise ConfigError(f"--value {', '.join(map(str, values))} must be positive")
    chosen = values or _fitting(config, setting)
    points = [{"value": value, **bench(_changed(config, setting, value))} for value in chosen]
    return {"scan": setting, "points": points}


def _fitting(config: BenchConfig, setting: str) -> tuple[int, ...]:
    """The values that the model has room for."""
    if setting != "tokens":
        return VALUES[setting]
    most = bare_model(config).transformer.config.pos_embed_max_size ** 2
    return tuple(value for value in VALUES[setting] if value <= most)


def _changed(config: BenchConfig, setting: str, value: int) -> BenchConfig:
    change = {"patches": round(value**0.5)} if setting == "tokens" else {setting: value}
    return config.model_copy(update=change)
