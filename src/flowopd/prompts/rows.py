"""One record of a prompt source, and which column of a table is the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowopd.errors import DataError

COLUMNS = ("prompt", "caption", "text")
"""Columns of a table that may hold its prompts: the first that is there does, however it is capitalised."""


@dataclass(frozen=True)
class Row:
    """One record: where it stands, its prompt, and its other fields. For example `Row("a.csv:2", "a bench", {})`."""

    where: str
    text: str
    fields: Mapping[str, Any]


def absent(place: object) -> DataError:
    """The error that a source of prompts is not there; paths are relative to where the program is called."""
    whole = "" if Path(str(place)).is_absolute() else f" in {Path.cwd()}"
    return DataError(f"prompt file {place} does not exist{whole}; check the path in the recipe")


def prompt_column(names: Sequence[str], where: str) -> str:
    """The column of a table that holds its prompts.

    Raises DataError, which begins with `where`, if there is none, or two columns have one name.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{where} has two columns {twice[0]!r}; rename one")
    for column in COLUMNS:
        found = [name for name in names if name.strip().casefold() == column]
        if found:
            return found[0]
    raise DataError(f"{where} has no column prompt, caption or text, but {', '.join(names)}; rename the one meant")


def table_row(values: Mapping[str, Any], column: str, where: str) -> Row:
    """The record of a table's row; its other columns are its fields. Raises DataError if its prompt is empty."""
    text = values.get(column)
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where} has no text in its column {column!r}; fill it in, or delete the row")
    return Row(where, text, {name: value for name, value in values.items() if name != column})
