"""The base with the change added into its weights: a model that needs no adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowopd.errors import CheckpointError
from flowopd.formats.base import Format, Trained, changed, plain, replace_weight
from flowopd.models import Source
from flowopd.models.source import INDEX

TRANSFORMER = "transformer"


@dataclass(frozen=True)
class Merged(Format):
    """`transformer/`, in shards of at most `shard_size`; with a base from a folder, all the other parts beside it.

    The addition is done in fp32 and rounded once, to the dtype that is asked for.
    """

    shard_size: str = "5GB"

    def write(self, folder: Path, trained: Trained) -> None:
        """See `Format`. Only what differs from the base's tensors exists twice in memory."""
        transformer: Any = plain(trained.model)
        for module, weight in _sums(trained):
            replace_weight(transformer, module, weight.to(trained.dtype))
        stored = {name: tensor.to(trained.dtype) for name, tensor in transformer.state_dict().items()}
        transformer.load_state_dict(stored, assign=True)
        transformer.register_to_config(_name_or_path=trained.base)
        transformer.save_pretrained(folder / TRANSFORMER, max_shard_size=self.shard_size)
        if Path(trained.model.source.path).is_dir():
            _copy_parts(trained.model.source, folder)

    def reloaded(self, folder: Path, trained: Trained) -> nn.Module:
        """By `from_pretrained`; then what is the base's, bit for bit, makes room for the base's own.

        Raises CheckpointError if a weight without a change is not the base's, rounded.
        """
        base = plain(trained.model)
        transformer: Any = Source(str(folder)).load(type(base), TRANSFORMER, dtype=trained.dtype)
        weights = {f"{module}.weight" for module in trained.lora.modules}
        read: dict[str, Tensor] = transformer.state_dict()
        for name, own in base.state_dict(keep_vars=True).items():
            widened = read[name].to(own)
            if name not in weights and not torch.equal(widened, own.to(trained.dtype).to(own)):
                raise CheckpointError(f"read back, the merged {name} is not the base's; export again")
            read[name] = own if torch.equal(widened, own) else widened
        transformer.load_state_dict(read, assign=True)
        return transformer.requires_grad_(False).eval()

    def unrounded(self, transformer: nn.Module, trained: Trained) -> nn.Module:
        """The same with the sums before they were rounded, beside the base's own weights.

        Raises CheckpointError if a stored weight is not the rounding of its sum, bit for bit.
        """
        exact, dtype = plain(trained.model), trained.dtype
        for module, weight in _sums(trained):
            off = float((weight.to(dtype).float() - transformer.get_submodule(module).weight).abs().max())
            if off != 0:
                raise CheckpointError(
                    f"read back, the merged {module} is off its sum, rounded to {dtype}, by {off:.1e}; export again"
                )
            replace_weight(exact, module, weight)
        return exact


def _sums(trained: Trained) -> Iterator[tuple[str, Tensor]]:
    """Each module that the adapter changes, with its whole weight (out, in) in fp32."""
    base = plain(trained.model)
    for module, factors in trained.lora.modules.items():
        yield module, changed(base, module, factors.delta())


def _copy_parts(source: Source, folder: Path) -> None:
    """The pipeline's index and the files of every other part that it names, nothing else that lies there."""
    base = Path(source.path)
    index = json.loads((base / INDEX).read_text(encoding="utf-8"))
    index.pop("_name_or_path", None)
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    parts = [base / name for name in source.parts if name != TRANSFORMER]
    for file in (path for part in parts for path in sorted(part.rglob("*")) if path.is_file()):
        copy = folder / file.relative_to(base)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
