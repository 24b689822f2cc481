"""Four adapters of other people become one model, from the command line alone, and that model is taken home."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file

from flowopd.adapters import Adapters
from flowopd.lora_file import read_lora
from flowopd.models.sd3 import TARGETS, Sd3Field
from flowopd.prompts import read_prompts
from flowopd.results import Results
from flowopd.types import Condition

FORMATS = ("diffusers", "peft", "comfyui", "merged")
ALL_TARGETS = [*TARGETS, "ff.net.2", "proj_out", "context_embedder"]


def transformer_of(base):
    return SD3Transformer2DModel.from_pretrained(base, subfolder="transformer").eval()


def with_peft(base, folder, **config):
    """A PEFT folder, by peft."""
    transformer = get_peft_model(transformer_of(base), LoraConfig(**config, init_lora_weights=False))
    transformer.save_pretrained(folder)
    return folder


def with_diffusers(base, file, **config):
    """A LoRA file, by diffusers, whose alpha stands nowhere and so is the rank."""
    transformer = transformer_of(base)
    transformer.add_adapter(LoraConfig(**config, init_lora_weights=False))
    layers = get_peft_model_state_dict(transformer)
    StableDiffusion3Pipeline.save_lora_weights(file.parent, transformer_lora_layers=layers, weight_name=file.name)
    return file


def write_foreign(base, folder):
    """Four adapters of different rank, alpha and targets: folders and files by label."""
    torch.manual_seed(7)
    every_block = ["to_q", "to_v", "ff.net.2", "proj_out"]
    patterns = {"rank_pattern": {"to_k": 5}, "alpha_pattern": {"to_k": 1, "to_out.0": 12}}
    return {
        "folder": with_peft(base, folder / "folder", r=4, lora_alpha=4, target_modules=every_block),
        "file": with_diffusers(
            base, folder / "mine.safetensors", r=3, lora_alpha=3, target_modules=["add_k_proj", "context_embedder"]
        ),
        "patterns": with_peft(
            base, folder / "patterns", r=2, lora_alpha=7, target_modules=["to_k", "to_out.0"], **patterns
        ),
        "attention": with_peft(base, folder / "attention", r=1, lora_alpha=3, target_modules=list(TARGETS)),
    }


def write_texts(world, folder):
    """Plain text files of prompts, by split."""
    folder.mkdir()
    files = {split: folder / f"{split}.txt" for split in ("train", "test")}
    for split, file in files.items():
        prompts = read_prompts(world.prompts / split / "quality.jsonl", "quality")
        file.write_text("\n".join(prompt.text for prompt in prompts))
    return {split: str(file) for split, file in files.items()}


def recipe(world, foreign, texts):
    """The plain values of a recipe from these adapters to an evaluation."""
    return {
        "base": str(world.base),
        "prompts": dict.fromkeys(foreign, texts),
        "teachers": {label: {"adapter": str(path)} for label, path in foreign.items()},
        "coldstart": {"kind": "merge"},
        "distill": {
            "samples_per_label": 1,
            "sampling": {"steps": 2},
            "adapter": {"rank": 6, "alpha": 9, "targets": ALL_TARGETS},
            "optim": {"updates": 2, "learning_rate": 1e-3},
        },
        "evaluate": {
            "metrics": {label: {"reward": "mini_quality", "prompts": label, "owner": label} for label in foreign},
            "limit": 1,
            "sampling": {"steps": 2},
        },
    }


@torch.no_grad()
def velocity(transformer):
    draw = torch.Generator().manual_seed(9)
    x = torch.randn(2, transformer.config.in_channels, 8, 8, generator=draw)
    prompt = torch.randn(2, 12, transformer.config.joint_attention_dim, generator=draw)
    pooled = torch.randn(2, transformer.config.pooled_projection_dim, generator=draw)
    cond = Condition({"prompt_embeds": prompt, "pooled_prompt_embeds": pooled})
    return Sd3Field(transformer)(x, torch.tensor([0.3, 0.8]), cond)


def by_pipeline(base, weights):
    pipe = StableDiffusion3Pipeline.from_pretrained(base)
    pipe.load_lora_weights(weights)
    return pipe.transformer


def without_alphas(folder):
    (file,) = folder.glob("*.safetensors")
    return {key: tensor for key, tensor in load_file(file).items() if not key.endswith(".alpha")}


def reloaded(base, exports):
    """The transformer of every format, by plain diffusers and plain peft."""
    return {
        "diffusers": by_pipeline(base, str(exports / "diffusers")),
        "peft": PeftModel.from_pretrained(transformer_of(base), str(exports / "peft")),
        "comfyui": by_pipeline(base, without_alphas(exports / "comfyui")),
        "merged": StableDiffusion3Pipeline.from_pretrained(exports / "merged").transformer,
    }


def trained_velocity(base, student):
    transformer = transformer_of(base)
    adapters = Adapters(transformer)
    adapters.load("student", student)
    with adapters.using("student"):
        return velocity(transformer)


@pytest.fixture
def foreign(world, tmp_path):
    return write_foreign(world.base, tmp_path / "foreign")


def test_four_foreign_adapters_go_through_merge_distill_eval_and_export(flowopd, world, foreign, tmp_path):
    index = json.loads((world.base / "model_index.json").read_text())
    assert [index[f"text_encoder{i}"][1] for i in ("", "_2")] == ["CLIPTextModelWithProjection"] * 2
    assert index["text_encoder_3"][1] == "T5EncoderModel"

    out, config = tmp_path / "out", tmp_path / "recipe.yaml"
    config.write_text(json.dumps(recipe(world, foreign, write_texts(world, tmp_path / "prompts"))))
    to = [part for form in FORMATS for part in ("--to", form)]
    for words in (
        ["merge", "--config", config, "--out", out],
        ["distill", "--config", config, "--out", out],
        ["eval", "--out", out],
        ["export", "--out", out, *to],
    ):
        made = flowopd(*words)
        assert made.code == 0, (words[0], made.err)
    assert made.out.split() == [str(out / "export" / form) for form in FORMATS]

    rows = Results.load(out / "results.json").models
    assert rows.keys() == {"base", *(f"teacher:{label}" for label in foreign), "merge", "student"}

    base, start = velocity(transformer_of(world.base)), trained_velocity(world.base, out / "coldstart")
    wanted = trained_velocity(world.base, out / "student")
    scale = wanted.abs().max()
    assert (wanted - base).abs().max() > 1e-2 * scale and (wanted - start).abs().max() > 1e-4 * scale
    for form, transformer in reloaded(world.base, out / "export").items():
        assert (velocity(transformer) - wanted).abs().max() < 1e-5 * scale, form
        assert "| student |" in (out / "export" / form / "README.md").read_text()


def fused(base, path):
    """The weights of the base with a foreign adapter, by the program that wrote it."""
    if path.is_dir():
        return PeftModel.from_pretrained(transformer_of(base), str(path)).merge_and_unload().state_dict()
    pipe = StableDiffusion3Pipeline.from_pretrained(base)
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return pipe.transformer.state_dict()


def test_the_cold_start_is_the_mean_of_what_each_adapter_does_in_its_own_program(flowopd, world, foreign, tmp_path):
    teachers = [part for label, path in foreign.items() for part in ("--teacher", f"{label}={path}")]
    made = flowopd("merge", "--base", world.base, *teachers, "--out", tmp_path / "out")
    assert made.code == 0, made.err
    merged, own = read_lora(Path(made.out.strip())).modules, transformer_of(world.base).state_dict()
    theirs = [fused(world.base, path) for path in foreign.values()]
    moved = {name for name in own if any(not torch.equal(weights[name], own[name]) for weights in theirs)}
    assert moved == {f"{module}.weight" for module in merged}
    for module, factors in merged.items():
        changes = [weights[f"{module}.weight"] - own[f"{module}.weight"] for weights in theirs]
        torch.testing.assert_close(factors.delta(), sum(changes) / len(changes), atol=1e-5, rtol=0)
