"""The records of a prompt file as it lies in the wild, each with its place: text, JSON, CSV and parquet.

Lines end as they may, a byte-order mark is passed over, and so are empty lines. Nothing is guessed: what is broken is
named with its file and line.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from flowopd.errors import DataError
from flowopd.prompts.rows import Row, absent, prompt_column, table_row
from flowopd.prompts.tables import parquet
from flowopd.untrusted import json_values, read_at_most

PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
}
"""How compressed files begin."""

WIDE = (b"\xff\xfe", b"\xfe\xff")
"""How files in UTF-16 begin."""

MARK = "\ufeff"

LARGEST = 1 << 30
"""Bytes of a file of prompts."""


def file_rows(path: Path) -> Iterator[Row]:
    """The records of a file in order; its ending says what it is, and any other ending is plain text.

    Raises DataError if the file is missing, compressed, not UTF-8, or has a broken line, which it names; ConfigError
    if what reads parquet is not installed.
    """
    return FORMATS.get(path.suffix.lower(), _lines)(path)


def read_bytes(path: Path) -> bytes:
    """What a prompt file holds. Raises DataError if it cannot be read."""
    try:
        return read_at_most(path, LARGEST)
    except FileNotFoundError:
        raise absent(path) from None
    except OSError as error:
        raise DataError(f"prompt file {path} cannot be read ({error.strerror}); give a file of prompts") from None
    except ValueError as error:
        raise DataError(f"prompt file {path} cannot be read: {error}; split it, or give a file of prompts") from None


def _text(path: Path) -> str:
    content = read_bytes(path)
    packed = [kind for start, kind in PACKED.items() if content.startswith(start)]
    if packed:
        raise DataError(f"prompt file {path} is compressed ({packed[0]}); unpack it")
    if content.startswith(WIDE):
        raise DataError(f"prompt file {path} is UTF-16; save it as UTF-8")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"prompt file {path} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    if "\0" in text:
        raise DataError(f"prompt file {path} is no text: byte {content.index(0)} is zero; save it as UTF-8")
    return text.removeprefix(MARK)


def _numbered(path: Path) -> Iterator[tuple[str, str]]:
    """Each line that is not empty, with its place."""
    for number, line in enumerate(io.StringIO(_text(path), newline=None), 1):
        if line.strip():
            yield f"{path}:{number}", line.strip()


def _lines(path: Path) -> Iterator[Row]:
    return (Row(where, line, {}) for where, line in _numbered(path))


def _json_lines(path: Path) -> Iterator[Row]:
    for where, line in _numbered(path):
        try:
            values = json_values(line)
        except ValueError as error:
            raise DataError(f"{where} is not JSON ({_place(error)}); mend or delete the line") from None
        yield _object(values, where)


def _json_list(path: Path) -> Iterator[Row]:
    try:
        entries = json_values(_text(path))
    except ValueError as error:
        line = f":{error.lineno}" if isinstance(error, JSONDecodeError) else ""
        raise DataError(
            f"{path}{line} is not JSON ({_place(error)}); mend it, or name a file of one object a line .jsonl"
        ) from None
    if not isinstance(entries, list):
        raise DataError(f"{path} must hold a list of prompts, got one {type(entries).__name__}; put it into [ ]")
    for number, entry in enumerate(entries, 1):
        yield _object({"prompt": entry} if isinstance(entry, str) else entry, f"{path}, entry {number},")


def _place(error: ValueError) -> str:
    """What is wrong with a text of JSON, and in which column, as far as it is known."""
    return f"{error.msg} at column {error.colno}" if isinstance(error, JSONDecodeError) else str(error)


def _object(value: Any, where: str) -> Row:
    text = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise DataError(f'{where} has no prompt; it looks like {{"prompt": "a photo of a bench"}}')
    return Row(where, text, value)


def _csv(path: Path, delimiter: str) -> Iterator[Row]:
    records = _records(path, delimiter)
    where, names = next(records, (str(path), []))
    column = prompt_column(names, where) if names else ""
    for where, cells in records:
        if len(cells) != len(names):
            raise DataError(
                f"{where} has {len(cells)} cells, the header {len(names)}; "
                f"put quotes around cells that hold {delimiter!r} or line breaks"
            )
        yield table_row(dict(zip(names, cells, strict=True)), column, where)


def _records(path: Path, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """The cells of each record that is not empty, with the place where it begins."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{where} is broken ({error}); mend its quotes: a quote within a cell is doubled") from None
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield where, cells


FORMATS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".txt": _lines,
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".csv": partial(_csv, delimiter=","),
    ".tsv": partial(_csv, delimiter="\t"),
    ".parquet": parquet,
}
