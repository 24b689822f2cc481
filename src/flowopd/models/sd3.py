"""Stable Diffusion 3 and 3.5: a diffusers pipeline folder or hub id -> velocity field, conditioning, pictures.

Each part is loaded when it is first asked for: distillation needs the transformer alone, and the text encoders only
until every prompt has been encoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor
from torch._dynamo import config as dynamo
from transformers import AutoTokenizer

from flowopd.errors import CheckpointError, ConfigError
from flowopd.models.published import ENCODERS as ENCODER_SIZES
from flowopd.models.published import PIXELS, SHIFT, TEXT_TOKENS, TRANSFORMERS
from flowopd.models.source import Source
from flowopd.schedule import sigma_grid
from flowopd.shapes import Grid
from flowopd.types import Condition

T5 = ("text_encoder_3", "tokenizer_3")
ENCODERS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", *T5)
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""The layers that published SD3.5 adapters change: the attention of both streams."""

ALIKE = ("in_channels", "out_channels", "joint_attention_dim", "pooled_projection_dim")
"""What two transformers must share to be asked at the same states and conditions."""

PROGRAMS = 256
"""Forms of the one code of all blocks that are kept compiled: by kind of block, adapter, gradient or none, and size of
the batch. Beyond its limit, 8 by default, torch runs a block as it is, and says so once."""

LONGEST_T5 = 256
"""Largest block of T5 tokens, as in the pipeline's default; a tokenizer with a shorter limit keeps its own."""


@dataclass(frozen=True)
class Sd3Field:
    """The transformer as a `VelocityField`; `cond` has `prompt_embeds` (B, L, E), `pooled_prompt_embeds` (B, P)."""

    transformer: SD3Transformer2DModel

    def __call__(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The velocity (B, C, H, W) at states x (B, C, H, W) and times t in [0, 1], a scalar or (B,)."""
        return self.transformer(
            hidden_states=x.to(self.transformer.dtype),
            timestep=1000 * t.expand(len(x)),
            encoder_hidden_states=cond["prompt_embeds"],
            pooled_projections=cond["pooled_prompt_embeds"],
            return_dict=False,
        )[0]


class Sd3:
    """One pipeline, its parts loaded when they are needed."""

    targets = TARGETS
    make_field = Sd3Field

    def __init__(
        self,
        source: Source,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        t5: bool = True,
        gradient_checkpointing: bool = False,
        compiled: bool = False,
    ) -> None:
        self.source, self.device, self.dtype = source, torch.device(device), dtype
        self.t5, self.gradient_checkpointing, self.compiled = t5, gradient_checkpointing, compiled

    @property
    def encoding(self) -> tuple[str, ...]:
        """What an encoded prompt depends on besides the files."""
        return (str(self.dtype), *(() if self.t5 else ("without t5",)))

    @cached_property
    def transformer(self) -> SD3Transformer2DModel:
        """The frozen base, on the device, in evaluation mode."""
        return self._made_ready(self.source.load(SD3Transformer2DModel, "transformer", dtype=self.dtype))

    def _made_ready(self, transformer: SD3Transformer2DModel) -> SD3Transformer2DModel:
        if self.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        if self.compiled:
            dynamo.cache_size_limit = max(dynamo.cache_size_limit, PROGRAMS)
            for block in transformer.transformer_blocks:
                block.compile()
        return transformer.requires_grad_(False).eval().to(self.device)

    def check_whole(self, source: Source) -> str | None:
        """The subfolder of a source that its transformer lies in, if any, from configs alone.

        Raises CheckpointError if it has none, or it takes other latents or texts than the base.
        """
        folder = "transformer" if source.is_pipeline else None
        theirs, ours = source.load_config(SD3Transformer2DModel, folder), self.config
        other = [key for key in ALIKE if theirs.get(key) != ours.get(key)]
        if other:
            key, said = other[0], "; it is no teacher for it"
            raise CheckpointError(f"{source.name} has {key} {theirs.get(key)}, the base {ours.get(key)}{said}")
        return folder

    def whole(self, source: Source, offload: bool) -> Sd3Field:
        """The velocity of another transformer: a transformer's folder, or a pipeline's with one in it.

        With `offload` its blocks wait on the CPU and come to the device when they are run. Raises CheckpointError if it
        cannot be loaded, or does not fit.
        """
        folder = self.check_whole(source)
        transformer = source.load(SD3Transformer2DModel, folder, dtype=self.dtype).requires_grad_(False).eval()
        if not offload:
            return Sd3Field(transformer.to(self.device))
        transformer.enable_group_offload(self.device, offload_type="block_level", num_blocks_per_group=1)
        return Sd3Field(transformer)

    @cached_property
    def vae(self) -> Any:
        """The autoencoder, on the device, in fp32."""
        without = dict.fromkeys(("transformer", *ENCODERS))
        return self.source.load(StableDiffusion3Pipeline, **without).vae.eval().to(self.device)

    @cached_property
    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """The pipeline's own scheduler; only its settings are used."""
        return self.source.load(FlowMatchEulerDiscreteScheduler, "scheduler")

    def grid(self, steps: int) -> Grid:
        """The times (steps + 1,) at which the pipeline samples with so many steps."""
        return sigma_grid(steps, SHIFT if self._is_published else self.scheduler.config.shift)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The transformer's config, without its weights."""
        if self._is_published:
            return TRANSFORMERS[self.source.name]
        return self.source.load_config(SD3Transformer2DModel, "transformer")

    def skeleton(self) -> SD3Transformer2DModel:
        """The transformer without weights, on the meta device."""
        with torch.device("meta"):
            transformer = SD3Transformer2DModel.from_config(self.config).requires_grad_(False).eval()
        if self.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        return transformer

    def encoder_bytes(self) -> int:
        """What the text encoders take while they are in memory, by the sizes of their files where there are any."""
        if self._is_published:
            used = [size for name, size in ENCODER_SIZES.items() if self.t5 or name != "t5_xxl"]
            return sum(used) * self.dtype.itemsize
        parts = ("text_encoder", "text_encoder_2", *(("text_encoder_3",) if self.t5 else ()))
        files = [file for part in parts for file in Path(self.source.path, part).glob("*.safetensors")]
        return sum(file.stat().st_size for file in files)

    def blank(self, rows: int) -> Condition:
        """A condition of so many rows on the meta device, shaped as `encode` makes it."""
        tokens = TEXT_TOKENS if self._is_published else self._clip_tokens + self._t5_tokens
        embeds = torch.empty(rows, tokens, self.config["joint_attention_dim"], device="meta")
        pooled = torch.empty(rows, self.config["pooled_projection_dim"], device="meta")
        return Condition({"prompt_embeds": embeds, "pooled_prompt_embeds": pooled})

    @property
    def load_options(self) -> dict[str, None]:
        """What loading the plain pipeline needs for it to condition as `encode` does."""
        return {} if self.t5 else dict.fromkeys(T5)

    @property
    def call_options(self) -> dict[str, int]:
        """What a call of the plain pipeline needs for it to condition as `encode` does."""
        return {} if self._t5_tokens == LONGEST_T5 else {"max_sequence_length": self._t5_tokens}

    @property
    def _clip_tokens(self) -> int:
        return int(self.source.load(AutoTokenizer, "tokenizer").model_max_length)

    @cached_property
    def _t5_tokens(self) -> int:
        """The length of T5's block; without a T5 the pipeline puts as many zeros there."""
        if self._is_published or not self.t5:
            return LONGEST_T5
        return min(LONGEST_T5, self.source.load(AutoTokenizer, "tokenizer_3").model_max_length)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """(C, H, W) of the latents of a picture; None is the size that the transformer was made for.

        Raises ConfigError for a size that is no whole number of patches.
        """
        unit, own = self._pixels * self.config["patch_size"], self.config["sample_size"]
        odd = [size for size in (height, width) if size and size % unit]
        if odd:
            raise ConfigError(f"pictures of {odd[0]} pixels have no whole patches; take a multiple of {unit}")
        rows, columns = (size // self._pixels if size else own for size in (height, width))
        return self.config["in_channels"], rows, columns

    @cached_property
    def _pixels(self) -> int:
        """Pixels along one side of a latent."""
        if self._is_published:
            return PIXELS
        return 2 ** (len(self.source.load_config(AutoencoderKL, "vae")["block_out_channels"]) - 1)

    @property
    def _is_published(self) -> bool:
        return self.source.name in TRANSFORMERS

    def cut(self, texts: Sequence[str]) -> list[str]:
        """Those of the prompts that have more tokens than T5 reads, or CLIP where there is no T5."""
        limit = self._t5_tokens if self.t5 else self._clip_tokens
        tokens = self._reader(list(texts), truncation=False, verbose=False)["input_ids"]
        return [text for text, own in zip(texts, tokens, strict=True) if len(own) > limit]

    @cached_property
    def _reader(self) -> Any:
        """The tokenizer of the text encoder that reads most."""
        return self.source.load(AutoTokenizer, "tokenizer_3" if self.t5 else "tokenizer")

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Condition:
        """The conditioning of B prompts, on the CPU. The encoders are loaded for it: see `free_encoders`."""
        embeds, _, pooled, _ = self._encoders.encode_prompt(
            list(texts),
            None,
            None,
            do_classifier_free_guidance=False,
            max_sequence_length=self._t5_tokens,
            device=self.device,
        )
        return Condition({"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}).to("cpu", self.dtype)

    @cached_property
    def _encoders(self) -> StableDiffusion3Pipeline:
        """The pipeline without what draws; of the transformer it only reads the config, for the size of no T5."""
        drawn = {"transformer": self.skeleton(), "vae": None}
        pipe = self.source.load(StableDiffusion3Pipeline, **drawn, **self.load_options, dtype=self.dtype)
        for encoder in (pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3):
            if encoder is not None:
                encoder.to(self.device)
        return pipe

    def free_encoders(self) -> None:
        """Let the text encoders go."""
        self.__dict__.pop("_encoders", None)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Pictures (B, H, W, 3) uint8 of latents (B, C, h, w)."""
        config = self.vae.config
        latents = latents.to(self.vae.dtype) / config.scaling_factor + (config.shift_factor or 0.0)
        pictures = self.vae.decode(latents, return_dict=False)[0].float()
        pictures = (pictures / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        return (pictures * 255).round().astype(np.uint8)
