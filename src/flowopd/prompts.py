"""Prompts: text, the label it is routed by, and GenEval metadata where there is any.

Files are read as they lie in the wild: one prompt a line (`*.txt`), or JSON lines (`*.jsonl`) with at least a
`prompt`; a line's own `label` wins over the label that the recipe gives the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowopd.errors import DataError


@dataclass(frozen=True)
class Prompt:
    """For example `Prompt("a photo of two hearts", "composition", {"tag": "counting", "include": [...]})`."""

    text: str
    label: str
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)


def read_prompts(path: Path, label: str) -> list[Prompt]:
    """All prompts of a file, in order; empty lines are passed over.

    Raises DataError if the file is missing, not UTF-8, holds no prompt, or has a broken line, which it names.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"prompt file {path} does not exist; check the path in the recipe") from None
    except OSError as error:
        raise DataError(f"prompt file {path} cannot be read ({error.strerror}); give a file of prompts") from None
    except UnicodeDecodeError as error:
        raise DataError(f"prompt file {path} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    read = _from_json if path.suffix == ".jsonl" else _from_text
    prompts = [read(line, label, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise DataError(f"prompt file {path} holds no prompt; write one a line")
    return prompts


def write_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    """Prompts as JSON lines, metadata and label included."""
    rows = [{**prompt.metadata, "prompt": prompt.text, "label": prompt.label} for prompt in prompts]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _from_text(line: str, label: str, _where: str) -> Prompt:
    return Prompt(line.strip(), label)


def _from_json(line: str, label: str, where: str) -> Prompt:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON ({error.msg} at column {error.colno}); mend or delete the line") from None
    text = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise DataError(f'{where} has no prompt; a line looks like {{"prompt": "a photo of a bench"}}')
    return Prompt(text.strip(), str(row.get("label", label)), row)
