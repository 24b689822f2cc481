"""Conditioning of prompts: each distinct one is encoded once, kept on disk by content, and shared by processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from flowopd.durable import packed, replace_bytes
from flowopd.errors import CheckpointError
from flowopd.models.base import Model
from flowopd.types import Condition

NULL = ""
"""The empty prompt, which guidance steers away from."""


HELD = 2**30
"""Bytes of conditionings that are kept in memory; one of Stable Diffusion 3.5 has 2.7 MB in bf16."""


class Conditioning:
    """The encoded prompts of a run: `conditioning(texts)` is their `Condition`, B rows in that order.

    They are read from the cache when they are asked for, and those asked for last stay in memory.
    """

    def __init__(self, files: Mapping[str, Path], device: torch.device) -> None:
        self._files, self._device = files, device
        size = max((file.stat().st_size for file in files.values()), default=1)
        self._read = lru_cache(maxsize=max(1, HELD // size))(self._from_disk)

    def __call__(self, texts: Sequence[str]) -> Condition:
        """Rows for these prompts, maybe none, on the model's device. Raises KeyError for one that was not encoded."""
        rows = Condition.cat(*(self._read(text) for text in texts)) if texts else self._read(NULL).rows(slice(0))
        return rows.to(self._device)

    def _from_disk(self, text: str) -> Condition:
        file = self._files[text]
        try:
            return Condition(load_file(file))
        except SafetensorError as error:
            raise CheckpointError(f"{file} is damaged ({error}); delete it, and it is made anew") from None

    @property
    def null(self) -> Condition:
        """The conditioning of the empty prompt, one row."""
        return self([NULL])


def distinct(texts: Iterable[str]) -> list[str]:
    """Every different prompt once, the empty one first."""
    return list(dict.fromkeys([NULL, *texts]))


def missing(model: Model, texts: Sequence[str], cache: Path) -> list[str]:
    """Those of the prompts that the cache does not hold, or of which a power cut left it half a file."""
    return [text for text, file in _files(model, texts, cache).items() if not _is_whole(file)]


def _is_whole(file: Path) -> bool:
    """Whether a file is there, as long as its head says; the rest is not read."""
    try:
        safe_open(file, framework="pt").keys()
    except (OSError, SafetensorError):
        return False
    return True


def encode(model: Model, texts: Sequence[str], cache: Path) -> None:
    """Encode these prompts into the cache, then let the encoders go.

    One at a time: with others in its batch, a prompt's last bits would depend on which of them the cache held already.
    """
    for text, file in _files(model, texts, cache).items():
        replace_bytes(file, packed(model.encode([text]).tensors), flush=False)
    model.free_encoders()


def read(model: Model, texts: Sequence[str], cache: Path) -> Conditioning:
    """The conditioning of prompts that the cache holds."""
    return Conditioning(_files(model, texts, cache), model.device)


def _files(model: Model, texts: Sequence[str], cache: Path) -> dict[str, Path]:
    """Where each prompt's conditioning lies: a name made of the base's files, how it encodes, and the text."""
    encoder = (model.source.fingerprint(), *model.encoding)
    return {text: cache / _name(*encoder, text) for text in texts}


def _name(*parts: str) -> str:
    digest = sha256("\x1f".join(parts).encode()).hexdigest()
    return f"{digest[:2]}/{digest}.safetensors"
