"""What is measured: a model, its teachers, a batch, and a schedule."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from pydantic import Field, field_validator, model_validator

from flowopd.configs import Strict
from flowopd.errors import ConfigError
from flowopd.queries import AllSteps, BetaStep, Query, RandomSteps

Schedules = Literal["fused", "replay", "naive"]
SCHEDULES = get_args(Schedules)
QUERIES = {"all": AllSteps, "beta": BetaStep}


class BenchConfig(Strict):
    """One update of distillation, and how it is measured.

    The preset is the mini world's base, or a random Stable Diffusion 3 of 55 M parameters; a `model` goes before it.
    `patches` is the number of patches along a side of the latents, the model's own where there is none.
    """

    model: str | None = None
    preset: Literal["mini", "small"] = "mini"
    teachers: int = Field(3, ge=1)
    batch: int = Field(6, ge=1)
    steps: int = Field(10, ge=1)
    query: str = Field("all", description="all, beta, or the number of random steps")
    guidance: float = Field(4.5, ge=0)
    student_guidance: float | None = Field(None, ge=0, description="none is the teachers'")
    anchor: bool = True
    schedule: Schedules = "fused"
    patches: int | None = Field(None, ge=1)
    rank: int = Field(32, ge=1)
    repeats: int = Field(5, ge=1)
    threads: int | None = Field(None, ge=1)
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    @field_validator("query")
    @classmethod
    def _known(cls, query: str) -> str:
        if query not in QUERIES and not (query.isdecimal() and int(query) > 0):
            raise ValueError(f"a query is {', '.join(QUERIES)}, or a number of steps")
        return query

    @field_validator("device")
    @classmethod
    def _there(cls, device: str) -> str:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError):
            raise ValueError("there is no such device here") from None
        return device

    @model_validator(mode="after")
    def _fits(self) -> BenchConfig:
        if self.query.isdecimal() and int(self.query) > self.steps:
            raise ValueError(f"{self.query} queried steps do not fit in {self.steps}; raise steps")
        return self

    @property
    def rule(self) -> Query:
        """The rule that picks the queried steps."""
        return QUERIES[self.query]() if self.query in QUERIES else RandomSteps(int(self.query))

    @property
    def own_guidance(self) -> float:
        """The student's guidance."""
        return self.guidance if self.student_guidance is None else self.student_guidance

    def against(self, schedule: str) -> BenchConfig:
        """The same by another schedule; ConfigError if there is none of that name.

        `naive` is the field's: every step is trained, and the student is guided as its teachers are.
        """
        if schedule not in SCHEDULES:
            raise ConfigError(f"--vs {schedule!r} is no schedule; it is {', '.join(SCHEDULES[:-1])} or {SCHEDULES[-1]}")
        reference = {"query": "all", "student_guidance": None} if schedule == "naive" else {}
        return self.model_validate({**self.model_dump(), **reference, "schedule": schedule})
