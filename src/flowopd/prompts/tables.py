"""Prompts from tables of columns: parquet files, and data sets read by Hugging Face's `datasets`.

`datasets:NAME[@SPLIT][#COLUMN]` is a data set: NAME is OWNER/NAME on the hub, a folder that `save_to_disk` wrote, or a
folder of parquet, CSV or JSON files; SPLIT is train unless said, COLUMN as in `prompt_column`. Columns that hold bytes,
such as images, are left out. Both need the extra `datasets`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flowopd.errors import ConfigError, DataError
from flowopd.prompts.rows import Row, absent, prompt_column, table_row
from flowopd.untrusted import check_values

DATASET = "datasets:"
"""How the name of a data set begins."""

_NAME = re.compile(rf"{DATASET}(?P<name>[^@#]+)(?:@(?P<split>[^#]+))?(?:#(?P<column>.+))?")

SAVED = ("state.json", "dataset_dict.json")
"""What lies in a folder of `save_to_disk`: one data set, or several splits."""


def parquet(path: Path) -> Iterator[Row]:
    """The rows of a parquet file in order.

    Raises DataError if it is missing, damaged or has no column of prompts; ConfigError if pyarrow is not installed.
    """
    _require("pyarrow", str(path))
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            names = _plain_columns(file.schema_arrow)
            rows = file.read(columns=names).to_pylist()
    except FileNotFoundError:
        raise absent(path) from None
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"prompt file {path} is no whole parquet file ({_line(error)}); fetch it again") from None
    return _rows(rows, prompt_column(names, str(path)), str(path))


@cache
def dataset(source: str) -> tuple[Row, ...]:
    """The rows of a data set in order, read once a process.

    Raises ConfigError if the name is none or `datasets` is not installed; DataError if the data set cannot be had, or
    has no such split or column.
    """
    match = _NAME.fullmatch(source)
    if match is None:
        raise ConfigError(f"{source!r} names no data set; write it as datasets:OWNER/NAME@SPLIT#COLUMN")
    _require("datasets", source)
    found = _loaded(source, match["name"], match["split"])
    names = _plain_columns(found.data.schema)
    column = match["column"] or prompt_column(names, source)
    if column not in names:
        raise DataError(f"{source} has no column of texts {column!r}; it has: {', '.join(names)}")
    try:
        rows = found.select_columns(names).with_format("arrow")[:].to_pylist()
    except UnicodeDecodeError as error:
        raise DataError(f"{source} holds a text that is no UTF-8 ({_line(error)}); save it anew") from None
    return tuple(_rows(rows, column, source))


def _loaded(source: str, name: str, split: str | None) -> Any:
    """The `Dataset` of one split; from the cache at once if the hub does not answer within seconds."""
    import datasets

    from flowopd.hub import offline, silence

    datasets.disable_progress_bars()
    try:
        if any(os.path.exists(Path(name) / file) for file in SAVED):
            return _split(source, datasets.load_from_disk(name), split)
        silent = None if os.path.exists(name) else silence()
        with offline(silent) if silent else nullcontext():
            return datasets.load_dataset(name, split=split or "train")
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{source} cannot be read ({_line(error)}); check its name and split, and the access to the hub"
        ) from None


def _split(source: str, found: Any, split: str | None) -> Any:
    """One split of what a folder held: a data set, or several by name."""
    if not isinstance(found, dict):
        if split is not None:
            raise DataError(f"{source} is one data set without splits; leave out @{split}")
        return found
    if (split or "train") not in found:
        raise DataError(f"{source} has no split {split or 'train'!r}; add one of @{', @'.join(found)}")
    return found[split or "train"]


def _rows(rows: Sequence[Mapping[str, Any]], column: str, source: str) -> Iterator[Row]:
    for number, values in enumerate(rows, 1):
        where = f"{source}, row {number},"
        try:
            check_values(values)
        except ValueError as error:
            raise DataError(f"{where} cannot be kept: {error}; mend or delete the row") from None
        yield table_row(_without_nulls(values), column, where)


def _without_nulls(value: Any) -> Any:
    """A value without the fields that a table had to fill with nulls, all the way down."""
    if isinstance(value, dict):
        return {name: _without_nulls(below) for name, below in value.items() if below is not None}
    return [_without_nulls(below) for below in value] if isinstance(value, list) else value


def _plain_columns(schema: Any) -> list[str]:
    return [field.name for field in schema if not _holds_bytes(field.type)]


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    below = [kind.field(i).type for i in range(kind.num_fields)]
    is_bytes = types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    return is_bytes or any(map(_holds_bytes, below))


def _require(library: str, source: str) -> None:
    if find_spec(library) is None:
        raise ConfigError(f"{source} needs {library}, which is not installed: pip install 'flowopd[datasets]'")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
