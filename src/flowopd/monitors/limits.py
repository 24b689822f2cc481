"""What may change between the start of a stage and now, and what happens when more has changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _ordered(band: tuple[float, float]) -> tuple[float, float]:
    if not band[0] <= band[1]:
        raise ValueError(f"a band is (lowest, highest), got {band}")
    return band


Band = Annotated[tuple[float, float], AfterValidator(_ordered)]
"""The lowest and the highest change that is allowed."""


DIFFERENCES = ("noise", "clipped")
"""Measures that may well be zero: their change is a difference, that of the others a quotient."""


class Limits(BaseModel):
    """Bands of the changes since the start: quotients, and of DIFFERENCES differences.

    Each is wider than what the mini world's clean drawings and healthy experts change, and narrower than what faults
    do; docs/MONITORS.md shows how much.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    grid: Band = Field((0.0, 5.0), description="peak of the spectrum: above, a grid or a checkerboard")
    noise: Band = Field((-255.0, 6.0), description="white noise in grey levels: above, grain")
    sharpness: Band = Field((0.2, 15.0), description="variance of the Laplacian: below, blur")
    clipped: Band = Field((-1.0, 0.06), description="share of pixels at the end of their range: above, burnt colours")
    chroma: Band = Field((0.4, 2.5), description="mean strength of colour: below faded, above garish")
    diversity: Band = Field((0.25, 4.0), description="distance of the pictures of one prompt: below, collapse")
    velocity: Band = Field((0.67, 1.5), description="norm of the velocity in units of the base's")


class MonitorConfig(BaseModel):
    """How a stage is watched without a reward: now and then it draws the same pictures as at its start."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: int = Field(25, ge=1, description="updates between two looks")
    prompts: int = Field(4, ge=1, description="prompts that are drawn, spread over the training prompts")
    images: int = Field(4, ge=2, description="pictures of each prompt")
    action: Literal["warn", "stop", "roll_back"] = Field(
        "warn", description="say it once, stop the run, or go back to the last state that passed at half the rate"
    )
    roll_backs: int = Field(3, ge=1, description="how often a stage may go back before it stops")
    limits: Limits = Field(Limits(), description="the band that each measure may change within")


def changes(start: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """The change of each measure that has a limit; what was zero counts from a tiny value."""
    return {
        name: now[name] - start[name] if name in DIFFERENCES else now[name] / max(start[name], 1e-6)
        for name in Limits.model_fields
    }


def exceeded(change: Mapping[str, float], limits: Limits) -> list[str]:
    """What lies outside its band, in words; a change that is no number does too. For example
    `["sharpness 4.1 (allowed 0.2 to 3)"]`."""
    return [
        f"{name} {change[name]:.3g} (allowed {low:g} to {high:g})"
        for name, (low, high) in limits
        if not low <= change[name] <= high
    ]
