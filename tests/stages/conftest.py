"""A tiny world to run stages in: a real pipeline of random weights, two random experts, a few prompts."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig, get_peft_model

from flowopd.adapters import Adapters
from flowopd.lora_file import Factors, LoraFile, write_lora
from flowopd.mini.autoencoder import CHANNELS, new_autoencoder
from flowopd.mini.encoders import WIDTH, new_text_side
from flowopd.mini.pretrain import assemble
from flowopd.models import located
from flowopd.pipeline import open_run
from flowopd.prompts import read_prompts, write_prompts
from flowopd.recipe import make_recipe

LABELS = ("composition", "quality")
SPLITS = ("train", "test")
HEADS = 2
TARGETS = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.2", "proj_out")


@dataclass(frozen=True)
class World:
    """Folders of a base, of its experts, and of prompts, `SPLIT/LABEL.jsonl`."""

    base: Path
    experts: Path
    prompts: Path

    def tree(self, **parts):
        """The plain values of a recipe with two experts and the parts given."""
        files = {label: {split: str(self.prompts / split / f"{label}.jsonl") for split in SPLITS} for label in LABELS}
        teachers = {label: {"adapter": str(self.experts / label)} for label in LABELS}
        return {"base": str(self.base), "prompts": files, "teachers": teachers, **parts}

    def session(self, out, **parts):
        """The session of a new or old run of such a recipe."""
        return open_run(make_recipe(self.tree(**parts)), out)


def tiny_transformer(heads=HEADS):
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=heads,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16 * heads,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    return transformer.eval()


def write_base(folder):
    """A pipeline whose pictures use many greys."""
    torch.manual_seed(1)
    vae, text = new_autoencoder(), new_text_side()
    with torch.no_grad():
        vae.decoder.layers[-1].weight.mul_(GAIN)
    assemble(vae, text, tiny_transformer()).save_pretrained(folder)


GAIN = 6.0
"""Of the last layer of the decoder."""


def write_plain_peft_expert(folder, seed, heads=HEADS):
    """An expert that this project did not make."""
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["to_q", "to_v", "net.2"], init_lora_weights=False)
    transformer = tiny_transformer(heads)
    torch.manual_seed(seed)
    get_peft_model(transformer, config).save_pretrained(folder)


def write_own_expert(folder, seed, rank=4, alpha=8.0):
    """An expert that this project wrote."""
    adapters = Adapters(tiny_transformer())
    adapters.create("expert", rank, alpha, TARGETS, seed)
    lora = adapters.lora("expert")
    draw = torch.Generator().manual_seed(seed)
    modules = {
        name: Factors(f.a, 0.2 * torch.randn(f.b.shape, generator=draw), f.scale) for name, f in lora.modules.items()
    }
    write_lora(folder, LoraFile(lora.config, modules))


def write_few_prompts(folder, count=6):
    """Evenly spaced ones of the shipped prompts."""
    for split in SPLITS:
        for label in LABELS:
            prompts = read_prompts(located(f"package:mini/prompts/{split}/{label}.jsonl"), label)
            write_prompts(folder / split / f"{label}.jsonl", prompts[:: len(prompts) // count][:count])


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The tiny world, made once a session, whoever asks; tests must leave it as it is."""
    folder = tmp_path_factory.getbasetemp() / "tiny-world"
    made = World(folder / "base", folder / "experts", folder / "prompts")
    if not folder.exists():
        write_base(made.base)
        write_plain_peft_expert(made.experts / "composition", seed=2)
        write_own_expert(made.experts / "quality", seed=3)
        write_few_prompts(made.prompts)
    return made
