"""What every reward is: pictures and their prompts in, one score a picture out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Protocol

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from flowopd.prompts import Prompt


def _variable(text: str) -> str:
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,99}", text):
        raise ValueError("a token is named by its environment variable, in capitals; export it, and give that name")
    return text


Variable = Annotated[str, AfterValidator(_variable)]
"""The name of an environment variable, never what it holds."""


class JudgeConfig(BaseModel):
    """Where a reward's model comes from and where it runs; by default as published, in this process."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_min_length=1)

    model: str | None = Field(None, description="hub id or folder, or the model's name at its endpoint")
    url: str | None = Field(None, description="where `flowopd serve-reward` serves it, or a chat judge's endpoint")
    token: Variable | None = Field(None, description="name of the environment variable that holds the server's token")
    deadline: float = Field(60.0, gt=0, description="seconds that an answer may take")
    retries: int = Field(2, ge=0, le=100, description="how often a request that failed is sent again")
    trust_remote_code: bool = Field(False, description="run code that comes with the model's files")


@dataclass(frozen=True)
class Scores:
    """Scores of a batch: `value` (B,) float64 in 0..1, larger is better; `details` holds other views of it, (B,)."""

    value: np.ndarray
    details: Mapping[str, np.ndarray] = field(default_factory=dict)


class Reward(Protocol):
    """Scores pictures (B, H, W, 3) uint8 for their B prompts, from pixels and prompts alone."""

    def __call__(self, pictures: np.ndarray, prompts: Sequence[Prompt]) -> Scores: ...
