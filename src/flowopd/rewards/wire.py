"""What a reward server and its clients say to each other: JSON, pictures as PNG in base64. Nothing is unpickled."""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Sequence
from io import BytesIO
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flowopd.errors import DataError
from flowopd.faults import Fault
from flowopd.prompts import LONGEST, LONGEST_LABEL, Prompt
from flowopd.rewards.base import Scores

HEALTH, SCORE = "/health", "/score"
"""Paths of a server: is it ready, and what are these pictures worth."""

MIB = 1 << 20

Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Message(BaseModel):
    """A message, or a part of one: keys that it does not know are mistakes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(BaseModel):
    """What one request may hold: bytes of its body, pictures, and pixels of all its pictures together."""

    model_config = ConfigDict(frozen=True)

    bytes: int = Field(64 * MIB, ge=1)
    pictures: int = Field(256, ge=1)
    pixels: int = Field(256 * 512 * 512, ge=1)


class Health(BaseModel):
    """What a server is, and whether it takes requests; other keys are passed over."""

    model_config = ConfigDict(frozen=True)

    reward: str
    version: str
    ready: bool
    limits: Limits = Limits()


class SentPrompt(Message):
    """A prompt as it travels."""

    text: str = Field(max_length=LONGEST)
    label: str = Field("", max_length=LONGEST_LABEL)
    metadata: dict[str, Any] = {}

    @classmethod
    def of(cls, prompt: Prompt) -> SentPrompt:
        """For example `{"text": "a ring", "label": "composition", "metadata": {"tag": "single_object"}}`."""
        return cls.model_construct(text=prompt.text, label=prompt.label, metadata=dict(prompt.metadata))

    def received(self) -> Prompt:
        """The prompt that a reward is given."""
        return Prompt(self.text, self.label, self.metadata)


class Batch(Message):
    """What is to be scored: N prompts and their N pictures, PNG in base64."""

    prompts: list[SentPrompt]
    pictures: list[str]


class Verdict(Message):
    """Scores of N pictures, in their order, as JSON: every list has N numbers, all of them finite."""

    value: list[Share]
    details: dict[str, list[Finite]] = {}

    def scores(self) -> Scores:
        """The same as arrays (N,) float64."""
        return Scores(np.array(self.value, np.float64), {k: np.array(v, np.float64) for k, v in self.details.items()})


def read_batch(body: bytes, limits: Limits) -> tuple[np.ndarray, list[Prompt]]:
    """Pictures (N, H, W, 3) uint8 and their prompts. Raises DataError for what is no batch, or more than allowed."""
    try:
        batch = Batch.model_validate_json(body)
    except ValidationError as error:
        raise DataError(f"this is no batch to score: {fault(error)}") from None
    count = len(batch.pictures)
    if count != len(batch.prompts):
        raise DataError(f"{count} pictures came with {len(batch.prompts)} prompts; send one prompt a picture")
    if not 1 <= count <= limits.pictures:
        raise DataError(f"{count} pictures came in one request; send 1 to {limits.pictures}")
    return _decoded(batch.pictures, limits.pixels), [prompt.received() for prompt in batch.prompts]


def read_verdict(tree: Any, count: int) -> Verdict:
    """A checked verdict on `count` pictures. Raises ValueError, in one line, for anything else."""
    try:
        verdict = Verdict.model_validate(tree, strict=True)
    except ValidationError as error:
        raise ValueError(fault(error)) from None
    for name, numbers in {"value": verdict.value, **verdict.details}.items():
        if len(numbers) != count:
            raise ValueError(f"{name} has {len(numbers)} numbers for {count} pictures")
    return verdict


def judged(scores: Scores, count: int) -> Verdict:
    """A reward's scores as they travel. Raises ValueError if they are not `count` finite numbers a list."""
    lists = {name: np.asarray(numbers, np.float64).tolist() for name, numbers in scores.details.items()}
    return read_verdict({"value": np.asarray(scores.value, np.float64).tolist(), "details": lists}, count)


def fault(error: ValidationError) -> str:
    """The first thing that is wrong, in one line: where, what, and the value."""
    first = Fault.first(error)
    return first.told() if isinstance(first.value, bytes) else f"{first.told()}, got {str(first.value)[:60]!r}"


def to_png(picture: np.ndarray) -> str:
    """A picture (H, W, 3) uint8 as PNG in base64, without loss."""
    stream = BytesIO()
    Image.fromarray(picture).save(stream, "PNG", compress_level=1)
    return b64encode(stream.getvalue()).decode("ascii")


def _decoded(pictures: Sequence[str], most: int) -> np.ndarray:
    """(N, H, W, 3) uint8 of N pictures of one size. No pixel is decoded before all of them are counted."""
    opened = [_opened(text, i) for i, text in enumerate(pictures)]
    sizes = list(dict.fromkeys(image.size for image in opened))
    if len(sizes) > 1:
        raise DataError(f"pictures of {sizes[0]} and of {sizes[1]} pixels came in one request; send one size at a time")
    width, height = sizes[0]
    if width * height * len(opened) > most:
        raise DataError(
            f"{len(opened)} pictures of {width} x {height} pixels came in one request, more than {most} pixels; "
            "send fewer at a time"
        )
    return np.stack([_pixels(image, i) for i, image in enumerate(opened)])


def _opened(text: str, i: int) -> Image.Image:
    """A picture of which only the head is read."""
    try:
        image = Image.open(BytesIO(b64decode(text, validate=True)), formats=["PNG"])
    except (binascii.Error, ValueError):
        raise DataError(f"picture {i} is no base64") from None
    except Image.DecompressionBombError:
        raise DataError(f"picture {i} has more pixels than any picture to score; send fewer") from None
    except (OSError, SyntaxError):
        raise DataError(f"picture {i} is no PNG; send RGB as PNG, 8 bits a channel") from None
    if image.mode != "RGB":
        raise DataError(f"picture {i} is a PNG of mode {image.mode}; send RGB, 8 bits a channel")
    return image


def _pixels(image: Image.Image, i: int) -> np.ndarray:
    try:
        return np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"picture {i} is a damaged PNG ({' '.join(str(error).split())}); send it again") from None
