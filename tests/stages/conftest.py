"""A tiny world to run stages in: a real pipeline of random weights, two random experts, a few prompts."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig, get_peft_model

from flowopd.adapters import Adapters
from flowopd.hub import located
from flowopd.lora_file import Factors, LoraFile, write_lora
from flowopd.mini.autoencoder import CHANNELS, new_autoencoder
from flowopd.mini.encoders import WIDTH, new_text_side
from flowopd.mini.pretrain import assemble
from flowopd.pipeline import open_run, run
from flowopd.prompts import read_prompts, write_prompts
from flowopd.recipe import make_recipe
from flowopd.stages.coldstart import cold_start
from flowopd.stages.distill import distill

LABELS = ("composition", "quality")
SPLITS = ("train", "test")
HEADS = 2
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "proj_out")


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

    def whole(self):
        """The plain values of a recipe with every stage that experts at hand leave to do."""
        metrics = {
            "composition": {"reward": "mini_geneval", "prompts": "composition", "owner": "composition"},
            "quality": {"reward": "mini_quality", "prompts": "quality", "owner": "quality"},
            "unlearnt": {"reward": "mini_holdout", "prompts": "quality", "held_out": True},
        }
        return self.tree(
            coldstart={"kind": "merge"},
            distill=quick(updates=2),
            evaluate={"metrics": metrics, "limit": 3, "sampling": {"steps": 2}},
            samples={"prompts_per_label": 1},
        )


def quick(updates=3, learning_rate=1e-3, ema=0.9, checkpoint_every=50, **parts):
    """A distillation of a moment."""
    optim = {"updates": updates, "learning_rate": learning_rate, "ema": ema, "checkpoint_every": checkpoint_every}
    defaults = {
        "samples_per_label": 2,
        "query": {"kind": "all"},
        "sampling": {"steps": 2},
        "adapter": {"rank": 8, "alpha": 16, "targets": TARGETS},
    }
    return {**defaults, "optim": optim, **parts}


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
    with torch.no_grad():
        transformer.time_text_embed.text_embedder.linear_1.weight.mul_(4)
    return transformer.eval()


@torch.no_grad()
def write_base(folder):
    """A pipeline whose pictures use many greys and whose prompts are far apart."""
    torch.manual_seed(1)
    vae, text = new_autoencoder(), new_text_side()
    vae.decoder.layers[-1].weight.mul_(6)
    vae.decoder.layers[-1].bias.fill_(0.5)
    for clip in text.encoders[:2]:
        clip.get_input_embeddings().weight.mul_(30)
    assemble(vae, text, tiny_transformer()).save_pretrained(folder)


def write_plain_peft_expert(folder, seed, heads=HEADS):
    """An expert that this project did not make."""
    config = LoraConfig(
        r=3, lora_alpha=6, target_modules=["to_q", "to_v", "ff.net.2", "proj_out"], init_lora_weights=False
    )
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


@pytest.fixture(scope="session")
def finished(world, tmp_path_factory):
    """The folder of a whole run; tests must leave it as it is."""
    out = tmp_path_factory.getbasetemp() / "finished-run"
    if not out.exists():
        run(make_recipe(world.whole()), out)
    return out


@pytest.fixture(scope="session")
def kept(world, tmp_path_factory):
    """The session of a run whose every update is kept as a checkpoint; tests must leave what it trained as it is."""
    settings = quick(updates=3, checkpoint_every=1, learning_rate=3e-2)
    settings["optim"]["keep"] = None
    metrics = {"quality": {"reward": "mini_quality", "prompts": "quality", "owner": "quality"}}
    evaluation = {"metrics": metrics, "limit": 3, "sampling": {"steps": 2}}
    out = tmp_path_factory.mktemp("kept") / "out"
    session = world.session(out, coldstart={"kind": "merge"}, distill=settings, evaluate=evaluation)
    cold_start(session)
    distill(session)
    return session


@pytest.fixture(scope="session")
def distilling():
    """The settings of a short distillation, with changes."""
    return quick
