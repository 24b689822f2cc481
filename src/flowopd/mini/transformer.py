"""The mini base: a real `SD3Transformer2DModel`, and how it is trained from nothing together with its text side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from diffusers.training_utils import EMAModel
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from flowopd.mini.autoencoder import CHANNELS
from flowopd.mini.encoders import WIDTH, TextSide
from flowopd.mini.layout import CELLS, CLASSES, COLOUR_CLASSES
from flowopd.mini.muon import optimizers
from flowopd.models.sd3 import Sd3Field
from flowopd.objectives import FlowMatching
from flowopd.schedule import logit_normal


class BaseConfig(BaseModel):
    """How the base is trained; the rate falls over `horizon` steps, which may be more than there are.

    The text side learns by AdamW at `encoder_rate`, or by Muon like the rest where there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = 6000
    horizon: int | None = None
    batch: int = 32
    learning_rate: float = 3e-3
    encoder_rate: float | None = None
    warmup: int = 100
    weight_decay: float = 0.01
    muon_iterations: int = 4
    ema: float = 0.999
    dropped_captions: float = 0.1
    time_mean: float = 0.5
    layout_weight: float = 0.1
    layout_block: int = 3

    def rate(self, step: int) -> float:
        """Share of the learning rate: a warm-up, then a cosine to nothing."""
        rise = min(1.0, (step + 1) / self.warmup)
        return rise * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / (self.horizon or self.steps))))


@dataclass(frozen=True)
class Latents:
    """The corpus as the transformer sees it: latents (M, 6, 16, 16), token ids (M, 2, 16), layouts (M, 2, 8, 8)."""

    latents: Tensor
    ids: Tensor
    layouts: Tensor


def new_transformer() -> SD3Transformer2DModel:
    """An untrained transformer whose blocks start as the identity (adaLN and the output start at zero)."""
    transformer = SD3Transformer2DModel(
        sample_size=2 * CELLS,
        patch_size=2,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        caption_projection_dim=128,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=CELLS,
        qk_norm="rms_norm",
    )
    for block in transformer.transformer_blocks:
        _zero(block.norm1.linear, block.norm1_context.linear)
    _zero(transformer.norm_out.linear, transformer.proj_out)
    return transformer


def _zero(*layers: nn.Linear) -> None:
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


class LayoutHead(nn.Module):
    """Reads from the image tokens of one block what each cell shows; its loss speeds up learning who stands where."""

    def __init__(self, transformer: SD3Transformer2DModel, block: int) -> None:
        super().__init__()
        self.read = nn.Linear(transformer.inner_dim, CLASSES + COLOUR_CLASSES)
        transformer.transformer_blocks[block].register_forward_hook(self._keep)

    def _keep(self, _block: nn.Module, _inputs: object, outputs: tuple[Tensor, Tensor]) -> None:
        self.tokens = outputs[1]

    def forward(self, layouts: Tensor) -> Tensor:
        """Cross entropy (scalar) of the last forward's tokens against layouts (B, 2, 8, 8)."""
        logits = self.read(self.tokens).transpose(1, 2)
        things, colours = layouts.flatten(2).long().unbind(1)
        return F.cross_entropy(logits[:, :CLASSES], things) + F.cross_entropy(logits[:, CLASSES:], colours)


def train_base(
    transformer: SD3Transformer2DModel,
    text: TextSide,
    data: Latents,
    config: BaseConfig,
    *,
    seed: int,
    log: Callable[[dict[str, float]], None],
    keep: Callable[[int, EMAModel], None],
) -> None:
    """Flow matching on the corpus, text side and transformer together; leaves the averaged weights in both.

    `keep(step, average)` is called after every step, for those who want to look in between.
    """
    head = LayoutHead(transformer, config.layout_block)
    model = nn.ModuleList([transformer, text.encoders])
    trained = [*model.parameters(), *head.parameters()]
    average = EMAModel(model.parameters(), decay=config.ema, use_ema_warmup=True, power=0.75)
    learners = _learners(transformer, text, head, config)
    schedules = [torch.optim.lr_scheduler.LambdaLR(learner, config.rate) for learner in learners]
    empty = text.tokenize([""])[0]
    field, objective = Sd3Field(transformer), FlowMatching()
    generator = torch.Generator().manual_seed(seed)
    for step, rows in zip(range(config.steps), _batches(len(data.latents), config.batch, generator), strict=False):
        x0, ids = data.latents[rows], data.ids[rows].clone()
        ids[torch.rand(len(rows), generator=generator) < config.dropped_captions] = empty
        t = logit_normal(len(rows), generator, mean=config.time_mean)
        eps = torch.randn(x0.shape, generator=generator)
        loss, _ = objective(field, x0, text.encode(ids), t, eps)
        layout = head(data.layouts[rows])
        for learner in learners:
            learner.zero_grad()
        (loss.mean() + config.layout_weight * layout).backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for learner, schedule in zip(learners, schedules, strict=True):
            learner.step()
            schedule.step()
        average.step(model.parameters())
        log({"step": step, "loss": loss.mean().item(), "layout": layout.item(), "grad_norm": norm.item()})
        keep(step, average)
    average.copy_to(model.parameters())


def _learners(
    transformer: SD3Transformer2DModel, text: TextSide, head: LayoutHead, config: BaseConfig
) -> list[torch.optim.Optimizer]:
    apart = config.encoder_rate is not None
    learners = optimizers(
        nn.ModuleList([transformer, head] if apart else [transformer, text.encoders, head]),
        config.learning_rate,
        adam_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        iterations=config.muon_iterations,
    )
    if apart:
        rate, decay = config.encoder_rate, config.weight_decay
        learners.append(torch.optim.AdamW(text.encoders.parameters(), rate, betas=(0.9, 0.99), weight_decay=decay))
    return learners


def _batches(size: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of one shuffled epoch after another, without end."""
    while True:
        yield from torch.randperm(size, generator=generator)[: size // batch * batch].split(batch)
