"""One file that ComfyUI's LoRA loader takes for Stable Diffusion 3 and 3.5, and what that loader makes of it.

ComfyUI knows the model by its original names. Its loader (comfy/lora.py, comfy/utils.py) looks up
`transformer.<module>` with diffusers' module names: `.lora_A.weight` and `.lora_B.weight` are the factors, and the
change is `alpha / rank * B @ A`, with the scalar of `.alpha` and the rank of A; without `.alpha` it is
`B @ A`. Queries, keys and values are one fused weight (3 width, in) in ComfyUI, so their changes go to the rows from 0,
`width` and `2 width` on. The last modulations hold shift and scale in the other order, so the halves of their changes
are swapped. A key that the loader does not know is passed over with a line in its log: here it is refused.

The file is written in fp32 with alpha = rank and the scale inside B, so that readers without an alpha get the same
strength.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from flowopd.durable import packed, write_files
from flowopd.errors import CheckpointError, ConfigError
from flowopd.formats.base import Format, Trained, changed, plain, replace_weight
from flowopd.lora_file import DIFFUSERS_PREFIX

HEAD = 64
"""Channels of a head in every model that ComfyUI knows as Stable Diffusion 3; it has as many heads as blocks."""

OUTER = {
    "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "proj_out": "final_layer.linear",
}
"""Linear modules outside of the blocks: diffusers' name, the original one."""

BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
"""Within a block."""

FUSED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
}
"""The fused weights of a block, with the modules whose rows they hold in this order."""


@dataclass(frozen=True)
class Place:
    """Where a module's change goes: a weight by its original name, which third of its rows, whether halves swap."""

    weight: str
    third: int | None = None
    swapped: bool = False


class Comfyui(Format):
    """`NAME.safetensors`, for `ComfyUI/models/loras`."""

    def write(self, folder: Path, trained: Trained) -> None:
        """See `Format`. Raises ConfigError if the base is no Stable Diffusion 3."""
        known = places(_layers(trained.model.transformer))
        tensors = {}
        for module, factors in trained.lora.modules.items():
            if module not in known:
                raise CheckpointError(f"ComfyUI has no place for a change of {module}; export to another format")
            tensors[f"{DIFFUSERS_PREFIX}{module}.lora_A.weight"] = factors.a.contiguous()
            tensors[f"{DIFFUSERS_PREFIX}{module}.lora_B.weight"] = (factors.scale * factors.b).contiguous()
            tensors[f"{DIFFUSERS_PREFIX}{module}.alpha"] = torch.tensor(float(factors.rank))
        write_files(folder, {self.file(folder, trained).name: packed(tensors, {"format": "pt"})})

    def reloaded(self, folder: Path, trained: Trained) -> nn.Module:
        """By the rules at the head of this module: patches of the original weights, each as diffusers splits it up."""
        transformer: Any = plain(trained.model)
        known = places(_layers(transformer))
        patches = patched(load_file(self.file(folder, trained)), known)
        for module, delta in unfused(patches, known):
            replace_weight(transformer, module, changed(transformer, module, delta))
        return transformer.eval()

    def file(self, folder: Path, trained: Trained) -> Path:
        """The one file of an export."""
        return folder / f"{trained.name}.safetensors"


def fits_comfyui(transformer: Any) -> bool:
    """Whether ComfyUI can run the base itself: heads of 64 channels, as many as blocks, as all published ones have."""
    config = transformer.config
    return config.attention_head_dim == HEAD and config.num_attention_heads == config.num_layers


def places(layers: int) -> dict[str, Place]:
    """Where ComfyUI puts the change of each of diffusers' modules, for a transformer of so many blocks."""
    known = {module: Place(weight) for module, weight in OUTER.items()}
    known["norm_out.linear"] = Place("final_layer.adaLN_modulation.1", swapped=True)
    for i in range(layers):
        here, there = f"transformer_blocks.{i}.", f"joint_blocks.{i}."
        known |= {here + module: Place(there + weight) for module, weight in BLOCK.items()}
        for weight, modules in FUSED.items():
            known |= {here + module: Place(there + weight, third) for third, module in enumerate(modules)}
    last = f"transformer_blocks.{layers - 1}.norm1_context.linear"
    return known | {last: Place(known[last].weight, swapped=True)}


def patched(tensors: Mapping[str, Tensor], known: Mapping[str, Place]) -> dict[str, Tensor]:
    """The changes (out, in) of the original weights, by their names, that ComfyUI finds in a file's tensors."""
    patches: dict[str, Tensor] = {}
    for module, place in known.items():
        key = DIFFUSERS_PREFIX + module
        if f"{key}.lora_B.weight" not in tensors:
            continue
        a, b = tensors[f"{key}.lora_A.weight"].float(), tensors[f"{key}.lora_B.weight"].float()
        alpha = tensors.get(f"{key}.alpha")
        delta = (1.0 if alpha is None else alpha.item() / a.shape[0]) * (b @ a)
        if place.third is None:
            patches[place.weight] = _halves_swapped(delta) if place.swapped else delta
        else:
            width = len(delta)
            fused = patches.setdefault(place.weight, torch.zeros(3 * width, delta.shape[1]))
            fused.narrow(0, place.third * width, width).add_(delta)
    return patches


def unfused(patches: Mapping[str, Tensor], known: Mapping[str, Place]) -> Iterator[tuple[str, Tensor]]:
    """Changes of original weights as changes (out, in) of diffusers' modules."""
    for module, place in known.items():
        if place.weight in patches:
            delta = patches[place.weight]
            own = delta if place.third is None else delta.chunk(3)[place.third]
            yield module, _halves_swapped(own) if place.swapped else own


def _halves_swapped(rows: Tensor) -> Tensor:
    first, second = rows.chunk(2)
    return torch.cat([second, first])


def _layers(transformer: nn.Module) -> int:
    if not isinstance(transformer, SD3Transformer2DModel):
        kind = type(transformer).__name__
        raise ConfigError(f"the comfyui format knows Stable Diffusion 3, not a {kind}; take diffusers, peft or merged")
    return int(transformer.config.num_layers)
