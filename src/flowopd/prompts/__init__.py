"""Prompts: text, the label it is routed by, and GenEval metadata where there is any.

They are read as they lie in the wild: one prompt a line (`.txt`); JSON lines (`.jsonl`) with at least a `prompt`; a
list of strings or such objects (`.json`); a table with a column `prompt`, else `caption`, else `text` (`.csv`, `.tsv`,
`.parquet`); or a data set, `datasets:NAME[@SPLIT][#COLUMN]`. A record's own `label`, if it is a word, wins over the
label that the recipe gives the source; its `wordings`, a list, say the same in other words (see `distill.reworded`);
whatever else it says is kept as metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from flowopd.durable import replace_text
from flowopd.errors import DataError
from flowopd.prompts.composition import composition
from flowopd.prompts.files import file_rows, read_bytes
from flowopd.prompts.rows import Row, absent
from flowopd.prompts.tables import DATASET, dataset

__all__ = ["DATASET", "Prompt", "absent", "read_prompts", "sha256_of_prompts", "write_prompts"]


WORDINGS = "wordings"
"""The field of a record that lists its prompt in other words."""

LONGEST, LONGEST_LABEL = 20_000, 1_000
"""Characters of a prompt, and of a label; text encoders read a few hundred words."""


@dataclass(frozen=True)
class Prompt:
    """For example `Prompt("a photo of two hearts", "composition", {"tag": "counting", "include": [...]})`."""

    text: str
    label: str
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def wordings(self) -> tuple[str, ...]:
        """The same in other words, which a student may read while its expert reads the prompt."""
        return tuple(self.metadata.get(WORDINGS) or ())


def read_prompts(source: Path | str, label: str) -> list[Prompt]:
    """All prompts of a file or data set, in order, repeated ones too; empty lines are passed over.

    Raises DataError if the source is missing, not UTF-8, holds no prompt, or has a broken line, a prompt longer than
    LONGEST, or broken GenEval metadata, whose place it names; ConfigError if what it takes to read it is not installed.
    """
    found: Iterable[Row] = dataset(source) if _is_dataset(source) else file_rows(Path(source))
    prompts = [_prompt(row, label) for row in found]
    if not prompts:
        raise DataError(f"prompt file {source} holds no prompt; write one a line")
    return prompts


def write_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    """Prompts as JSON lines, metadata and label included."""
    rows = [{**prompt.metadata, "prompt": prompt.text, "label": prompt.label} for prompt in prompts]
    replace_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def sha256_of_prompts(source: Path | str) -> str:
    """The SHA-256 of a prompt file, or of a data set's rows. Raises as `read_prompts` does for a missing source."""
    if not _is_dataset(source):
        return sha256(read_bytes(Path(source))).hexdigest()
    digest = sha256()
    for row in dataset(source):
        digest.update(json.dumps([row.text, row.fields], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _is_dataset(source: Path | str) -> bool:
    return isinstance(source, str) and source.startswith(DATASET)


def _prompt(row: Row, label: str) -> Prompt:
    if isinstance(row.fields.get("include"), list | dict):
        composition(row.fields, row.where)
    own, wordings = row.fields.get("label"), _wordings(row)
    told = [(row.text, LONGEST, "prompt"), (own, LONGEST_LABEL, "label"), *((w, LONGEST, "wording") for w in wordings)]
    for text, most, kind in told:
        if isinstance(text, str) and len(text) > most:
            raise DataError(f"{row.where} has a {kind} of {len(text):,} characters; shorten it to {most:,}")
    fields = {**row.fields, WORDINGS: wordings} if wordings else row.fields
    return Prompt(row.text.strip(), own if isinstance(own, str) and own else label, fields)


def _wordings(row: Row) -> list[str]:
    """The prompt of a record in other words. Raises DataError if it gives something else."""
    given = row.fields.get(WORDINGS)
    listed = [] if given is None else given
    if not isinstance(listed, list | tuple) or not all(isinstance(text, str) and text.strip() for text in listed):
        raise DataError(
            f"{row.where} has wordings that are no list of texts, {repr(given)[:80]}; list them, in JSON lines or JSON"
        )
    return [text.strip() for text in listed]
