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


def distinct(texts: Iterable[str]) -> list[str]:
    """Every different prompt once, the empty one first."""
    return list(dict.fromkeys([NULL, *texts]))


def missing(model: Model, texts: Sequence[str], cache: Path) -> list[str]:
    """Those of the prompts that the cache does not hold."""
    return [text for text, file in _files(model, texts, cache).items() if not file.exists()]


def encode(model: Model, texts: Sequence[str], cache: Path) -> None:
    """Encode these prompts into the cache, then let the encoders go."""
    files = _files(model, texts, cache)
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        encoded = model.encode(part)
        for i, text in enumerate(part):
            _keep(files[text], encoded.rows([i]))
    model.free_encoders()


def read(model: Model, texts: Sequence[str], cache: Path) -> Conditioning:
    """The conditioning of prompts that the cache holds."""
    table = Condition.cat(*(Condition(load_file(file)) for file in _files(model, texts, cache).values()))
    return Conditioning({text: i for i, text in enumerate(texts)}, table, model.device)


def _files(model: Model, texts: Sequence[str], cache: Path) -> dict[str, Path]:
    """Where each prompt's conditioning lies: a name made of the base's files, the dtype and the text."""
    fingerprint = model.source.fingerprint()
    return {text: cache / _name(fingerprint, str(model.dtype), text) for text in texts}


def _name(*parts: str) -> str:
    digest = sha256("\x1f".join(parts).encode()).hexdigest()
    return f"{digest[:2]}/{digest}.safetensors"


def _keep(file: Path, condition: Condition) -> None:
    """Written aside and renamed, so that a reader never sees half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(f".{os.getpid()}.tmp")
    save_file({name: tensor.contiguous() for name, tensor in condition.tensors.items()}, aside)
    aside.rename(file)
