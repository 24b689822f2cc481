"""open_clip's weights for transformers' `CLIPModel`: which tensor becomes which.

Both are the same network. Where they differ: open_clip keeps the query, key and value weights of a layer in one
tensor, and its two projections the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from flowopd.errors import CheckpointError

LAYERS = {
    r"transformer\.resblocks\.(\d+)\.": r"text_model.encoder.layers.\1.",
    r"visual\.transformer\.resblocks\.(\d+)\.": r"vision_model.encoder.layers.\1.",
}
PARTS = (
    (r"ln_([12])\.(\w+)", (r"layer_norm\2.\3",)),
    (r"attn\.in_proj_(\w+)", tuple(rf"self_attn.{part}_proj.\2" for part in "qkv")),
    (r"attn\.out_proj\.(\w+)", (r"self_attn.out_proj.\2",)),
    (r"mlp\.c_fc\.(\w+)", (r"mlp.fc1.\2",)),
    (r"mlp\.c_proj\.(\w+)", (r"mlp.fc2.\2",)),
)
NAMES = (
    (r"logit_scale", (r"logit_scale",)),
    (r"text_projection", (r"text_projection.weight",)),
    (r"token_embedding\.weight", (r"text_model.embeddings.token_embedding.weight",)),
    (r"positional_embedding", (r"text_model.embeddings.position_embedding.weight",)),
    (r"ln_final\.(\w+)", (r"text_model.final_layer_norm.\1",)),
    (r"visual\.proj", (r"visual_projection.weight",)),
    (r"visual\.class_embedding", (r"vision_model.embeddings.class_embedding",)),
    (r"visual\.positional_embedding", (r"vision_model.embeddings.position_embedding.weight",)),
    (r"visual\.conv1\.weight", (r"vision_model.embeddings.patch_embedding.weight",)),
    (r"visual\.ln_pre\.(\w+)", (r"vision_model.pre_layrnorm.\1",)),
    (r"visual\.ln_post\.(\w+)", (r"vision_model.post_layernorm.\1",)),
    (r"attn_mask", ()),
    *((old + part, tuple(new + name for name in names)) for old, new in LAYERS.items() for part, names in PARTS),
)
"""open_clip's names and what they become: three for equal parts one below the other; none for the causal mask, which
some files carry.
"""

TURNED = ("text_projection", "visual.proj")


def in_transformers(name: str) -> tuple[str, ...]:
    """Where a tensor of open_clip goes: one name, three for its equal parts, or none for what is no weight.

    For example `visual.ln_pre.bias` -> `vision_model.pre_layrnorm.bias`. Raises CheckpointError for a name that
    open_clip's CLIP does not have.
    """
    for published, names in NAMES:
        if found := re.fullmatch(published, name):
            return tuple(found.expand(each) for each in names)
    raise CheckpointError(f"{name} is no tensor of a CLIP of open_clip's; give a file of such a model")


def from_openclip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of open_clip's CLIP under transformers' names. Raises CheckpointError as `in_transformers` does."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        names = in_transformers(name)
        whole = tensor.T if name in TURNED else tensor
        parts = whole.chunk(len(names)) if len(names) > 1 else [whole] * len(names)
        renamed |= zip(names, parts, strict=True)
    return renamed
