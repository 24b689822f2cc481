"""What a recipe may call things: names that are folders too, labels, paths that stay inside; files named by models."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated

from pydantic import AfterValidator

OWN = ("base", "coldstart", "grpo_mix", "student")
"""Names that a run's own models have, and no teacher."""

_NAME = re.compile(r"\w[\w +-]{0,59}")


def _name(text: str) -> str:
    if not _NAME.fullmatch(text) or text != text.strip():
        raise ValueError("a name is 1 to 60 letters, digits, spaces, _, + or -, as it names folders; choose another")
    return text


def check_teacher(text: str) -> str:
    """A name that a teacher may have. Raises ValueError for another."""
    if text in OWN:
        raise ValueError(f"{', '.join(OWN)} are names of a run's own models; choose another for a teacher")
    return _name(text)


def _label(text: str) -> str:
    if not 0 < len(text) <= 100 or not text.isprintable():
        raise ValueError("a label is 1 to 100 letters that print; choose another")
    return text


def file_name(model: str) -> str:
    """A model's name as a part of a file's: `checkpoint-distill-20`."""
    return model.replace(":", "-").replace("/", "-")


def tile(prompt: int, model: str) -> str:
    """The file of a prompt's picture by a model on a run's wall: `3-teacher-ocr.png`."""
    return f"{prompt}-{file_name(model)}.png"


def _inside(text: str) -> str:
    path = PurePath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text:
        raise ValueError("a subfolder lies within its adapter's folder; give it relative to that, without ..")
    return text


Name = Annotated[str, AfterValidator(_name)]
"""What may name a folder: no separator, no dot."""

TeacherName = Annotated[str, AfterValidator(check_teacher)]
"""A name that no model of the run itself has."""

Label = Annotated[str, AfterValidator(_label)]
"""What prompts are routed by."""

Subfolder = Annotated[str, AfterValidator(_inside)]
"""A path that stays below another."""
