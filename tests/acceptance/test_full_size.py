"""Stable Diffusion 3.5 Medium in its real size, random weights, on a CPU: an update fits, and takes what was planned.

The transformer has its published config; encoders and autoencoder are small ones that give conditions and latents of
the real shapes. Large blocks of memory go back to the system when they are freed, so that the peak is what was in use.
"""

import json
import os
import subprocess
import sys

import psutil
import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from flowopd.lora_file import Factors, LoraFile, write_lora
from flowopd.mini.encoders import clip_tokenizer, t5_tokenizer
from flowopd.models.published import TRANSFORMERS
from flowopd.models.sd3 import TARGETS
from flowopd.prompts import Prompt, write_prompts

pytestmark = pytest.mark.slow

NAME = "stabilityai/stable-diffusion-3.5-medium"
MEMORY_GIB = 24
RELATIVE = 0.1
LABELS = ("composition", "text", "quality")
SMALL = {"intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4}


def random_transformer():
    with torch.device("meta"):
        transformer = SD3Transformer2DModel.from_config(TRANSFORMERS[NAME])
    transformer = transformer.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.uniform_(-0.02, 0.02)
        for buffer in transformer.buffers():
            buffer.zero_()
    return transformer


def clip(width, tokenizer):
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=width, projection_dim=width, **SMALL, **ends)
    return CLIPTextModelWithProjection(config)


def write_base(folder):
    tokenizer, pieces = clip_tokenizer(), t5_tokenizer()
    tokenizer.model_max_length, pieces.model_max_length = 77, 256
    t5 = T5Config(vocab_size=len(pieces), d_model=4096, d_kv=8, d_ff=8, num_layers=1, num_heads=1)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        norm_num_groups=4,
    )
    StableDiffusion3Pipeline(
        transformer=random_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=clip(768, tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=clip(1280, tokenizer),
        tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(t5),
        tokenizer_3=pieces,
    ).save_pretrained(folder)


def write_teacher(folder, seed):
    """A random adapter of rank 32 on the layers that published ones change."""
    draw = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        transformer = SD3Transformer2DModel.from_config(TRANSFORMERS[NAME])
    linears = {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and f".{name}".endswith(tuple(f".{target}" for target in TARGETS))
    }
    modules = {
        name: Factors(
            0.02 * torch.randn(32, linear.in_features, generator=draw),
            0.02 * torch.randn(linear.out_features, 32, generator=draw),
            2.0,
        )
        for name, linear in linears.items()
    }
    write_lora(folder, LoraFile({"peft_type": "LORA"}, modules))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full-size")
    write_base(folder / "base")
    tree = {"base": str(folder / "base"), "resolution": 128, "prompts": {}, "teachers": {}, "device": "cpu"}
    for seed, label in enumerate(LABELS):
        write_teacher(folder / "experts" / label, seed)
        write_prompts(folder / f"{label}.jsonl", [Prompt("a red heart", label), Prompt("two stars", label)])
        tree["teachers"][label] = {"adapter": str(folder / "experts" / label)}
        tree["prompts"][label] = {"train": str(folder / f"{label}.jsonl")}
    tree["distill"] = {
        "samples_per_label": 1,
        "micro_batch": 1,
        "sampling": {"steps": 2},
        "anchor": {"model": "base", "weight": 0.02},
        "optim": {"updates": 1},
    }
    file = folder / "recipe.json"
    file.write_text(json.dumps(tree))
    return file


def flowopd(*words):
    """One call of the program: what it printed, and the most memory it held, in GiB."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "flowopd", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        watched, peak = psutil.Process(process.pid), 0
        while process.poll() is None:
            peak = max(peak, watched.memory_info().rss)
            try:
                process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
        printed = process.stdout.read()
    assert process.returncode == 0, printed
    return printed, peak / 2**30


def test_an_update_of_the_real_size_takes_what_was_planned(recipe, tmp_path):
    planned = json.loads(flowopd("plan", recipe, "--json", "--flops", "1e11")[0])
    _, peak = flowopd("distill", "--config", recipe, "--out", tmp_path / "run")
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    print(json.dumps({"peak_gib": round(peak, 2), "planned_gib": planned["memory_gib"], "update": row}))
    assert planned["base_parameters"] > 2.2e9
    assert peak < MEMORY_GIB
    assert abs(peak / planned["memory_gib"]["total"] - 1) < RELATIVE
    assert all(row[f"gap/{label}"] > 0 for label in LABELS) and row["anchor_gap"] >= 0 and row["grad_norm"] > 0
