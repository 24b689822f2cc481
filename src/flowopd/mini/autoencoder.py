"""The mini world's autoencoder: a diffusers `AutoencoderTiny` from 64 x 64 pictures to 6 x 16 x 16 latents.

`AutoencoderTiny` is the class of the tiny autoencoders that are used in place of SD3's own; it has no normalisation
layers, which makes absolute colours easy to learn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from flowopd.mini.captions import PAINTED
from flowopd.mini.corpus import CorpusConfig, Manner, example
from flowopd.mini.muon import optimizers

CHANNELS = 6
CARRIED = ("blur", "fade", "blotches")
"""Degradations that the latents can carry; noise of single pixels is not for the autoencoder to learn."""

ROBUSTNESS = 0.1
"""Standard deviation of the noise that the decoder must bear on its latents."""


def new_autoencoder() -> AutoencoderTiny:
    """An untrained autoencoder: two halvings, most of its layers where the picture is small."""
    return AutoencoderTiny(
        encoder_block_out_channels=(16, 16, 16),
        decoder_block_out_channels=(16, 16, 16),
        num_encoder_blocks=(0, 1, 3),
        num_decoder_blocks=(3, 1, 0),
        latent_channels=CHANNELS,
    )


def to_tensor(pictures: np.ndarray) -> Tensor:
    """(B, 64, 64, 3) uint8 -> (B, 3, 64, 64) in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_autoencoder(
    vae: AutoencoderTiny,
    *,
    steps: int,
    seed: int,
    batch: int = 8,
    learning_rate: float = 8e-3,
    pictures: int = 6000,
    log: Callable[[dict[str, float]], None] = lambda row: None,
) -> None:
    """Squared error first; absolute error of the picture and of its gradients join after a third of the steps."""
    rng = np.random.default_rng(seed)
    corpus = CorpusConfig(manners=dict.fromkeys(PAINTED, Manner(degraded=0.3)), degradations=CARRIED)
    pool = np.stack([example(corpus, rng).picture for _ in range(pictures)])
    generator = torch.Generator().manual_seed(seed)
    vae.to(memory_format=torch.channels_last)
    learners = optimizers(vae, learning_rate, adam_rate=learning_rate / 8)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda i: _rate(i / steps)) for o in learners]
    for step in range(steps):
        x = to_tensor(pool[rng.integers(0, pictures, batch)]).to(memory_format=torch.channels_last)
        z = vae.encoder(x)
        y = vae.decoder(z + ROBUSTNESS * torch.randn(z.shape, generator=generator))
        square, absolute, edges = (x - y).square().mean(), (x - y).abs().mean(), _edges(x - y)
        sharp = min(1.0, max(0.0, 3 * step / steps - 1))
        loss = 4 * square + sharp * (absolute + edges) + 1e-3 * z.square().mean()
        for learner in learners:
            learner.zero_grad()
        loss.backward()
        for learner, schedule in zip(learners, schedules, strict=True):
            learner.step()
            schedule.step()
        log({"step": step, "square": square.item(), "absolute": absolute.item(), "edges": edges.item()})


def _rate(progress: float) -> float:
    """Share of the learning rate: a short warm-up, full until .4, then straight down to nothing."""
    return min(1.0, progress / 0.01 + 0.01, (1 - progress) / 0.6)


def _edges(error: Tensor) -> Tensor:
    rows, columns = (error.diff(dim=dim).abs().mean() for dim in (2, 3))
    return (rows + columns) / 2


@torch.no_grad()
def measure_scale(vae: AutoencoderTiny, *, seed: int, pictures: int = 512) -> tuple[float, float]:
    """Mean of all latents and one over their standard deviation: `shift_factor` and `scaling_factor`."""
    rng = np.random.default_rng(seed)
    x = to_tensor(np.stack([example(CorpusConfig(), rng).picture for _ in range(pictures)]))
    latents = torch.cat([vae.encoder(part) for part in x.split(64)])
    return latents.mean().item(), 1.0 / latents.std().item()
