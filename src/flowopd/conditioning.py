"""Conditioning of prompts: each distinct one is encoded once, kept on disk by content, and shared by processes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from flowopd.models.base import Model
from flowopd.types import Condition

BATCH = 64
NULL = ""
"""The empty prompt, which guidance steers away from."""


class Conditioning:
    """The encoded prompts of a run: `conditioning(texts)` is their `Condition`, B rows in that order."""

    def __init__(self, rows: dict[str, int], table: Condition, device: torch.device) -> None:
        self._rows, self._table, self._device = rows, table, device

    def __call__(self, texts: Sequence[str]) -> Condition:
        """Rows for these prompts, on the model's device. Raises KeyError for a prompt that was not encoded."""
        return self._table.rows([self._rows[text] for text in texts]).to(self._device)

    @property
    def null(self) -> Condition:
        """The conditioning of the empty prompt, one row."""
        return self([NULL])


def encode_all(model: Model, texts: Iterable[str], cache: Path) -> Conditioning:
    """Encode every distinct prompt, and the empty one, that the cache does not hold; then let the encoders go."""
    distinct = list(dict.fromkeys([NULL, *texts]))
    fingerprint = model.source.fingerprint()
    files = {text: cache / _name(fingerprint, str(model.dtype), text) for text in distinct}
    missing = [text for text in distinct if not files[text].exists()]
    for start in range(0, len(missing), BATCH):
        part = missing[start : start + BATCH]
        encoded = model.encode(part)
        for i, text in enumerate(part):
            _keep(files[text], encoded.rows([i]))
    model.free_encoders()
    table = Condition.cat(*(Condition(load_file(files[text])) for text in distinct))
    return Conditioning({text: i for i, text in enumerate(distinct)}, table, model.device)


def _name(*parts: str) -> str:
    digest = sha256("\x1f".join(parts).encode()).hexdigest()
    return f"{digest[:2]}/{digest}.safetensors"


def _keep(file: Path, condition: Condition) -> None:
    """Written aside and renamed, so that a reader never sees half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(f".{os.getpid()}.tmp")
    save_file({name: tensor.contiguous() for name, tensor in condition.tensors.items()}, aside)
    aside.rename(file)
