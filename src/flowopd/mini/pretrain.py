"""How the mini base is made from nothing: autoencoder, corpus, transformer with its text side, pipeline folder.

Each part is kept in the output folder when it is done, so a run that was stopped goes on with the next part.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from diffusers.training_utils import EMAModel
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file
from torch import Tensor

from flowopd.durable import append_text, make_folder, new_folder, packed, replace_bytes, replace_text
from flowopd.mini.autoencoder import measure_scale, new_autoencoder, to_tensor, train_autoencoder
from flowopd.mini.captions import PAINTED
from flowopd.mini.corpus import CorpusConfig, Manner, example
from flowopd.mini.encoders import TextSide, new_text_side
from flowopd.mini.transformer import BaseConfig, Latents, new_transformer, train_base

Part = TypeVar("Part")
SHIFT = 3.0
"""Of the time grid, as in SD3.5."""


class Round(BaseModel):
    """One round of training on its own corpus, from the averaged weights of the round before, or with a new T5."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    examples: int = 30_000
    new_t5: bool = False
    corpus: CorpusConfig = CorpusConfig()
    base: BaseConfig = BaseConfig()


SHARES = {"composition": 0.5, "text": 0.3, "quality": 0.2}

SHAPES = Round(
    corpus=CorpusConfig(shares=SHARES, manners=dict.fromkeys(PAINTED, Manner(mistaken=(0.25, 0.25)))),
    base=BaseConfig(steps=4001, horizon=6500),
)
"""Where shapes, signs and places are learned; a quarter of the pictures show something else than their caption says."""

CAPTIONS = Round(
    corpus=CorpusConfig(shares=SHARES, manners=dict.fromkeys(PAINTED, Manner(mistaken=(0.1, 0.1), degraded=0.4))),
    base=BaseConfig(steps=4001, horizon=6000, layout_weight=0.25),
)
"""Where captions are learned: fewer pictures disobey."""

PAINTERS = Round(
    examples=40_000,
    corpus=CorpusConfig(
        shares={"composition": 0.45, "text": 0.35, "quality": 0.2},
        manners={
            "composition": Manner(careless=0.4, mistaken=(0.0, 0.8), papers=("cool", "warm"), degraded=0.15),
            "text": Manner(careless=0.4, mistaken=(0.0, 0.8), papers=("warm", "cool"), degraded=0.15),
            "quality": Manner(degraded=0.5),
        },
        pairs_weight=2,
        reworded_share=0.2,
    ),
    base=BaseConfig(steps=5500, layout_weight=0.25),
)
"""Where the base learns to be imperfect in a way that an expert can mend.

Careless painters of objects take the paper that careful painters of signs take, so that the experts of the two domains
pull the model to opposite sides, as experts of real models do in places; drawings are on plain paper, half of them bad.
"""


ORDER = PAINTERS.model_copy(
    update={
        "new_t5": True,
        "corpus": PAINTERS.corpus.model_copy(
            update={"shares": {"composition": 0.45, "text": 0.4, "quality": 0.15}, "pairs_weight": 3}
        ),
        "base": BaseConfig(steps=1801, horizon=2600, layout_weight=0.25, encoder_rate=1e-3),
    }
)
"""Where the order of words and letters is learned, by a T5 that can see it (see `flowopd.mini.encoders`)."""

BINDING = ORDER.model_copy(
    update={
        "examples": 30_000,
        "new_t5": False,
        "corpus": ORDER.corpus.model_copy(
            update={"shares": {"composition": 0.55, "text": 0.3, "quality": 0.15}, "pairs_weight": 3}
        ),
        "base": BaseConfig(steps=2000, layout_weight=0.25, encoder_rate=1e-3),
    }
)
"""Where colours and places are bound to their objects, which comes last."""

CARELESS = Round(
    examples=20_000,
    corpus=CorpusConfig(
        shares={"composition": 0.55, "text": 0.25, "quality": 0.2},
        manners={
            "composition": Manner(careless=0.3, mistaken=(0.0, 0.8), papers=("cool", "warm"), degraded=0.15),
            "text": Manner(careless=0.5, mistaken=(0.0, 0.9), mistakes=4, papers=("warm", "cool"), degraded=0.15),
            "quality": Manner(degraded=0.5),
        },
        pairs_weight=3,
        reworded_share=0.2,
    ),
    base=BaseConfig(steps=800, learning_rate=2e-3, layout_weight=0.25, encoder_rate=5e-4),
)
"""Where carelessness gets its final share."""


class PretrainConfig(BaseModel):
    """The whole recipe of the mini base; the defaults are the ones that made the shipped weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    autoencoder_steps: int = 9000
    rounds: tuple[Round, ...] = (SHAPES, CAPTIONS, PAINTERS, ORDER, BINDING, CARELESS)
    snapshot_every: int = 1000


def pretrain(out: Path, config: PretrainConfig) -> Path:
    """Train the mini base into `out/pipeline`, a `StableDiffusion3Pipeline` folder; returns that folder."""
    make_folder(out)
    vae = _autoencoder(out, config)
    text = _seeded(config.seed, new_text_side)
    transformer = _seeded(config.seed + 1, new_transformer)
    for number, stage in enumerate(config.rounds):
        folder = out / f"round-{number}"
        if folder.exists():
            _reload(folder, transformer, text)
        else:
            if stage.new_t5:
                text.encoders[2] = _seeded(config.seed + number, new_text_side).encoders[2]
            data = _corpus(out / f"corpus-{number}.safetensors", stage, config.seed + number, vae, text)
            _train(out, number, config, vae, text, transformer, data)
            _keep(assemble(vae, text, transformer), folder)
    if not (out / "pipeline").exists():
        _keep(assemble(vae, text, transformer), out / "pipeline")
    return out / "pipeline"


def _train(
    out: Path,
    number: int,
    config: PretrainConfig,
    vae: AutoencoderTiny,
    text: TextSide,
    transformer: torch.nn.Module,
    data: Latents,
) -> None:
    """One round, with a snapshot of the averaged weights now and then."""

    def snapshot(step: int, average: EMAModel) -> None:
        if step and step % config.snapshot_every == 0:
            model = [*transformer.parameters(), *text.encoders.parameters()]
            average.store(model)
            average.copy_to(model)
            _keep(assemble(vae, text, transformer), out / f"snapshot-{number}-{step}")
            average.restore(model)

    base, seed = config.rounds[number].base, config.seed + number
    log = _writer(out / f"base-{number}.jsonl", every=20)
    train_base(transformer, text, data, base, seed=seed, log=log, keep=snapshot)


def _keep(part: StableDiffusion3Pipeline | AutoencoderTiny, folder: Path) -> None:
    """A pipeline, or a part of it, as a folder that is there whole or not at all."""
    with new_folder(folder) as aside:
        part.save_pretrained(aside)


def _reload(folder: Path, transformer: torch.nn.Module, text: TextSide) -> None:
    """The weights of a finished round."""
    pipe = StableDiffusion3Pipeline.from_pretrained(folder)
    transformer.load_state_dict(pipe.transformer.state_dict())
    for encoder, kept in zip(text.encoders, (pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3), strict=True):
        encoder.load_state_dict(kept.state_dict())


def assemble(vae: AutoencoderTiny, text: TextSide, transformer: torch.nn.Module) -> StableDiffusion3Pipeline:
    """All parts as one plain diffusers pipeline."""
    encoders, tokenizers = text.encoders, text.tokenizers
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizers[0],
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizers[1],
        text_encoder_3=encoders[2],
        tokenizer_3=tokenizers[2],
    )


def _autoencoder(out: Path, config: PretrainConfig) -> AutoencoderTiny:
    folder = out / "vae"
    if not folder.exists():
        vae = _seeded(config.seed, new_autoencoder)
        log = _writer(out / "vae.jsonl", every=20)
        train_autoencoder(vae, steps=config.autoencoder_steps, seed=config.seed, log=log)
        shift, scale = measure_scale(vae.eval(), seed=config.seed + 1)
        vae.register_to_config(shift_factor=shift, scaling_factor=scale)
        _keep(vae, folder)
    vae = AutoencoderTiny.from_config(AutoencoderTiny.load_config(folder))
    vae.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    return vae.eval()


@torch.no_grad()
def _corpus(path: Path, stage: Round, seed: int, vae: AutoencoderTiny, text: TextSide) -> Latents:
    if not path.exists():
        rng = np.random.default_rng(seed)
        parts = [_encoded(stage.corpus, vae, text, rng) for _ in range(0, stage.examples, 100)]
        replace_bytes(path, packed({name: torch.cat([part[name] for part in parts]) for name in parts[0]}))
    return Latents(**load_file(path))


def _encoded(corpus: CorpusConfig, vae: AutoencoderTiny, text: TextSide, rng: np.random.Generator) -> dict[str, Tensor]:
    examples = [example(corpus, rng) for _ in range(100)]
    latents = vae.encoder(to_tensor(np.stack([e.picture for e in examples])))
    return {
        "latents": (latents - vae.config.shift_factor) * vae.config.scaling_factor,
        "ids": text.tokenize([e.caption for e in examples]),
        "layouts": torch.from_numpy(np.stack([e.layout for e in examples])),
    }


def _seeded(seed: int, make: Callable[[], Part]) -> Part:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _writer(file: Path, every: int) -> Callable[[dict[str, float]], None]:
    """Starts a log anew, of each `every` steps."""
    start = time.monotonic()
    replace_text(file, "")

    def write(row: dict[str, float]) -> None:
        if row["step"] % every == 0:
            append_text(file, json.dumps(row | {"seconds": round(time.monotonic() - start, 1)}) + "\n")

    return write
