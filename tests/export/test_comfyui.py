"""The file for ComfyUI, by a reader of its own: the documented names, its rules for a change, diffusers' converter.

ComfyUI's names of Stable Diffusion 3 are those of the original checkpoints, which diffusers' own converter reads. The
table and the reader here are written from the documented names, apart from those of the package.
"""

import re

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file

from flowopd.errors import CheckpointError, ConfigError
from flowopd.formats import Comfyui, Trained
from flowopd.formats.comfyui import BLOCK, FUSED, OUTER, fits_comfyui, patched, places
from flowopd.lora_file import LoraFile
from flowopd.stages.export import export

MINI = "package:mini/base"
THIRDS = {"q": 0, "k": 1, "v": 2}
STREAMS = {"": "x_block", "_context": "context_block"}


def original(module, layers):
    """(weight, rows from which third, halves in the other order) of a linear module, by its name in diffusers."""
    if found := re.fullmatch(r"time_text_embed\.(timestep|text)_embedder\.linear_([12])", module):
        return f"{'t' if found[1] == 'timestep' else 'y'}_embedder.mlp.{2 * int(found[2]) - 2}", None, False
    if module in ("proj_out", "norm_out.linear"):
        swapped = module == "norm_out.linear"
        return "final_layer." + ("adaLN_modulation.1" if swapped else "linear"), None, swapped
    if module == "context_embedder":
        return module, None, False
    _, number, inner = module.split(".", 2)
    here = f"joint_blocks.{number}."
    if found := re.fullmatch(r"(attn2?)\.to_([qkv])", inner):
        return f"{here}x_block.{found[1]}.qkv", THIRDS[found[2]], False
    if found := re.fullmatch(r"attn\.add_([qkv])_proj", inner):
        return f"{here}context_block.attn.qkv", THIRDS[found[1]], False
    if found := re.fullmatch(r"(attn2?)\.to_out\.0", inner):
        return f"{here}x_block.{found[1]}.proj", None, False
    if inner == "attn.to_add_out":
        return f"{here}context_block.attn.proj", None, False
    if found := re.fullmatch(r"ff(_context|)\.net\.(0\.proj|2)", inner):
        return f"{here}{STREAMS[found[1]]}.mlp.fc{1 if found[2] == '0.proj' else 2}", None, False
    found = re.fullmatch(r"norm1(_context|)\.linear", inner)
    last = found[1] == "_context" and int(number) == layers - 1
    return f"{here}{STREAMS[found[1]]}.adaLN_modulation.1", None, last


def linears(transformer):
    return [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]


def turned(rows):
    first, second = rows.chunk(2)
    return torch.cat([second, first])


def to_original(transformer):
    """The transformer's weights by their original names."""
    state, layers = transformer.state_dict(), transformer.config.num_layers
    made, fused = {}, {}
    for module in linears(transformer):
        weight, third, swapped = original(module, layers)
        for end in ("weight", "bias"):
            tensor = state[f"{module}.{end}"]
            if third is None:
                made[f"{weight}.{end}"] = turned(tensor) if swapped else tensor.clone()
            else:
                fused.setdefault(f"{weight}.{end}", {})[third] = tensor
    made |= {name: torch.cat([parts[i] for i in range(3)]) for name, parts in fused.items()}
    made["pos_embed"] = state["pos_embed.pos_embed"]
    made |= {f"x_embedder.proj.{end}": state[f"pos_embed.proj.{end}"] for end in ("weight", "bias")}
    norms = {
        "attn.norm_q": "x_block.attn.ln_q",
        "attn.norm_k": "x_block.attn.ln_k",
        "attn.norm_added_q": "context_block.attn.ln_q",
        "attn.norm_added_k": "context_block.attn.ln_k",
        "attn2.norm_q": "x_block.attn2.ln_q",
        "attn2.norm_k": "x_block.attn2.ln_k",
    }
    for ours, theirs in norms.items():
        for i in range(layers):
            if (name := f"transformer_blocks.{i}.{ours}.weight") in state:
                made[f"joint_blocks.{i}.{theirs}.weight"] = state[name]
    return made


def by_comfyui(file, transformer):
    """The transformer with what ComfyUI's loader adds to the original weights: alpha / rank * B @ A."""
    tensors, weights = load_file(file), to_original(transformer)
    for key in [key for key in tensors if key.endswith(".lora_B.weight")]:
        module = key.removeprefix("transformer.").removesuffix(".lora_B.weight")
        a, b = tensors.pop(f"transformer.{module}.lora_A.weight"), tensors.pop(key)
        change = tensors.pop(f"transformer.{module}.alpha").item() / a.shape[0] * b @ a
        weight, third, swapped = original(module, transformer.config.num_layers)
        start = 0 if third is None else third * len(change)
        weights[f"{weight}.weight"][start : start + len(change)] += turned(change) if swapped else change
    assert not tensors, "keys that ComfyUI would pass over"
    transformer.load_state_dict(convert_sd3_transformer_checkpoint_to_diffusers(weights))
    return transformer


def small(layers=2, heads=2, head=64):
    """A Stable Diffusion 3.5 with every kind of module there is, attention of its own in the first block included."""
    torch.manual_seed(3)
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=head,
        num_attention_heads=heads,
        joint_attention_dim=24,
        caption_projection_dim=head * heads,
        pooled_projection_dim=20,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    ).eval()


class OnlyTransformer:
    """As much of a model as writing asks for."""

    def __init__(self, transformer):
        self.transformer = transformer


def trained(lora, transformer, name="x"):
    return Trained(lora, OnlyTransformer(transformer), name, MINI, torch.float32)


def test_the_original_names_are_those_of_diffusers_own_converter():
    state = small().state_dict()
    converted = convert_sd3_transformer_checkpoint_to_diffusers(to_original(small()))
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in state.items())


def test_a_student_has_the_trained_velocity_in_comfyui(session, lora, measure):
    (folder,) = export(session, ["comfyui"])
    read = by_comfyui(folder / "run-student.safetensors", measure.base())
    assert measure.distance(measure.velocity(read), measure.trained(lora, measure.base())) < measure.limit


def test_changes_of_all_modules_reach_comfyui(tmp_path, measure):
    lora = measure.drawn(small(), seed=1, targets=linears(small()))
    assert lora.modules.keys() == set(linears(small()))
    Comfyui().write(tmp_path, trained(lora, small(), "all"))
    read = by_comfyui(tmp_path / "all.safetensors", small())
    assert measure.distance(measure.velocity(read), measure.trained(lora, small())) < measure.limit


def test_every_linear_module_has_its_place():
    known = places(2)
    found = {name: (place.weight, place.third, place.swapped) for name, place in known.items()}
    assert {name: found[name] for name in linears(small())} == {name: original(name, 2) for name in linears(small())}
    assert len({(place.weight, place.third) for place in known.values()}) == len(known)
    assert len(known) == len(OUTER) + 1 + 2 * (len(BLOCK) + sum(map(len, FUSED.values())))


def test_the_file_has_the_keys_that_comfyui_looks_up(session, lora):
    (folder,) = export(session, ["comfyui"])
    tensors = load_file(folder / "run-student.safetensors")
    ends = ("lora_A.weight", "lora_B.weight", "alpha")
    assert tensors.keys() == {f"transformer.{module}.{end}" for module in lora.modules for end in ends}
    ranks = {module: factors.rank for module, factors in lora.modules.items()}
    assert {module: float(tensors[f"transformer.{module}.alpha"]) for module in ranks} == ranks


def test_without_an_alpha_the_strength_is_one():
    a, b = torch.randn(2, 6), torch.randn(8, 2)
    tensors = {"transformer.proj_out.lora_A.weight": a, "transformer.proj_out.lora_B.weight": b}
    torch.testing.assert_close(patched(tensors, places(1))["final_layer.linear"], b @ a)
    tensors["transformer.proj_out.alpha"] = torch.tensor(6.0)
    torch.testing.assert_close(patched(tensors, places(1))["final_layer.linear"], 3 * b @ a)


def test_queries_keys_and_values_stand_one_after_another():
    tensors = {
        f"transformer.transformer_blocks.0.attn.{module}.lora_{side}.weight": value
        for module, strength in (("to_q", 1), ("to_v", 3))
        for side, value in (("A", torch.ones(1, 2)), ("B", strength * torch.ones(4, 1)))
    }
    (fused,) = patched(tensors, places(1)).values()
    assert fused[:, 0].tolist() == [1.0] * 4 + [0.0] * 4 + [3.0] * 4


def test_a_module_that_comfyui_does_not_know_is_refused(lora, tmp_path):
    modules = {"transformer_blocks.99.attn.to_q": next(iter(lora.modules.values()))}
    with pytest.raises(CheckpointError, match=r"no place for a change of transformer_blocks\.99"):
        Comfyui().write(tmp_path, trained(LoraFile({}, modules), small()))


def test_another_family_is_refused(lora, tmp_path):
    with pytest.raises(ConfigError, match="not a Linear"):
        Comfyui().write(tmp_path, trained(lora, torch.nn.Linear(2, 2)))


def test_a_base_that_comfyui_does_not_run_is_named_in_the_card(session):
    assert fits_comfyui(small()) and not fits_comfyui(small(heads=4, head=32))
    (folder,) = export(session, ["comfyui"])
    assert "ComfyUI runs no base of this one's shape" in (folder / "README.md").read_text()
