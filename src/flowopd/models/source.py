"""Where a model comes from: a folder, a hub id, or `package:NAME` for what ships with flowopd."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from flowopd.errors import CheckpointError
from flowopd.hub import cached_folder, fetched, is_local, located
from flowopd.untrusted import json_values, read_at_most

INDEX = "model_index.json"
"""The file that names the parts of a pipeline."""

LARGEST_INDEX = 1 << 20
"""Bytes of that file."""

CONFIG = "config.json"
"""The file that says what a model is."""


@dataclass(frozen=True)
class Source:
    """A pipeline by folder, hub id or `package:` name; `revision` is the hub's."""

    name: str
    revision: str | None = None

    @property
    def path(self) -> str:
        """What diffusers' `from_pretrained` takes."""
        folder = located(self.name)
        return str(folder) if os.path.isdir(folder) else self.name

    @property
    def pipeline(self) -> str:
        """The class of the pipeline, from its index. Raises CheckpointError if there is none."""
        return str(self._index().get("_class_name"))

    @property
    def parts(self) -> list[str]:
        """The parts that the pipeline's index names and has: folders in its own.

        Raises CheckpointError if there is no index, or it names a part that lies elsewhere.
        """
        parts = [name for name, kind in self._index().items() if isinstance(kind, list) and all(kind)]
        for name in parts:
            if not re.fullmatch(r"\w+", name):
                raise CheckpointError(f"{INDEX} of {self.name} names a part {name!r}, no folder beside it; restore it")
        return parts

    def load(self, kind: Any, subfolder: str | None = None, **options: Any) -> Any:
        """`kind.from_pretrained` of this source, or of one of its subfolders.

        Raises CheckpointError if a file is missing or cannot be read.
        """
        if subfolder:
            options["subfolder"] = subfolder
        return fetched(kind, self.path, revision=self.revision, **options)

    @property
    def is_pipeline(self) -> bool:
        """Whether this is a pipeline, and not one model's own folder."""
        try:
            self._index()
        except CheckpointError:
            return False
        return True

    def load_config(self, kind: Any, subfolder: str | None = None) -> dict[str, Any]:
        """The config of this source, or of one of its parts. Raises CheckpointError if there is none."""
        try:
            return dict(kind.load_config(self.path, subfolder=subfolder, revision=self.revision))
        except OSError as error:
            raise CheckpointError(
                f"model {self.name} has no readable config of its {subfolder or 'own'}; fetch it again"
            ) from error

    @property
    def folder(self) -> Path | None:
        """Where its files lie: a folder, or the hub's cache; None if they are not on this machine."""
        if is_local(self.name):
            return located(self.name) if os.path.isdir(located(self.name)) else None
        return cached_folder(self.name, self.revision, INDEX, CONFIG)

    def weights(self) -> int:
        """Bytes of the weights of all parts, as far as they are on this machine; only their heads are read.

        Raises CheckpointError if a part is missing, or its weights are missing or cut short.
        """
        folder = self.folder
        if folder is None:
            return 0
        if not self.is_pipeline:
            return _weights(folder)
        return sum(_weights(folder / name) for name in self.parts)

    def fingerprint(self) -> str:
        """sha256 over the names, sizes and ends of a model's files in a folder; of the id for the hub.

        What lies beside them, such as a page about the model or a download's notes, does not count.
        """
        digest = sha256(f"{self.name}@{self.revision}".encode() if not os.path.isdir(self.path) else b"")
        for file in self._files() if os.path.isdir(self.path) else ():
            digest.update(f"{file.relative_to(self.path)}:{file.stat().st_size}".encode())
            digest.update(_ends(file))
        return digest.hexdigest()

    def _files(self) -> list[Path]:
        """A pipeline's index and what its parts hold, or the weights and the config of one model's own folder."""
        folder = Path(self.path)
        if not self.is_pipeline:
            return sorted(file for file in folder.iterdir() if file.suffix in (".json", ".bin", ".safetensors"))
        parts = [file for name in self.parts for file in (folder / name).rglob("*.*")]
        return sorted(file for file in [folder / INDEX, *parts] if file.is_file())

    def _index(self) -> dict[str, Any]:
        folder = located(self.name)
        try:
            file = folder / INDEX if is_local(self.name) else self._from_hub()
            index = json_values(read_at_most(Path(file), LARGEST_INDEX).decode("utf-8"))
        except (OSError, HFValidationError, HfHubHTTPError, LocalEntryNotFoundError):
            raise CheckpointError(
                f"model {self.name} has no readable {INDEX}; give a diffusers folder or a hub id"
            ) from None
        except ValueError as error:
            raise CheckpointError(f"{folder / INDEX} is not JSON ({error}); restore it") from None
        if not isinstance(index, dict):
            raise CheckpointError(f"{folder / INDEX} is no mapping of parts; restore it")
        return index

    def _from_hub(self) -> str:
        return hf_hub_download(self.name, INDEX, revision=self.revision)


def _weights(part: Path) -> int:
    """The bytes of a part's weights; 0 for a part that has none, such as a tokenizer."""
    if not part.is_dir():
        raise CheckpointError(f"{part} is missing; fetch the model again")
    files = [*part.glob("*.safetensors"), *part.glob("*.bin")]
    if (part / CONFIG).exists() and not files:
        raise CheckpointError(f"{part} holds no weights; fetch the model again")
    for file in part.glob("*.safetensors"):
        try:
            safe_open(file, framework="pt").keys()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is cut short or no weights ({error}); fetch the model again") from None
    return sum(file.stat().st_size for file in files)


def _ends(file: Path, size: int = 1 << 16) -> bytes:
    """The first and last bytes of a file: enough to tell weights apart, cheap for gigabytes."""
    with file.open("rb") as stream:
        head = stream.read(size)
        stream.seek(max(0, file.stat().st_size - size))
        return head + stream.read(size)
