"""Adapter files: what is written is read back, and what is not a plain, whole adapter is refused."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowopd.errors import CheckpointError
from flowopd.lora_file import (
    CONFIG,
    DIFFUSERS_WEIGHTS,
    WEIGHTS,
    Factors,
    LoraFile,
    peft_config,
    read_lora,
    sha256_of,
    write_diffusers_lora,
    write_lora,
)

Q, OUT, DEEP = "blocks.0.attn.to_q", "proj_out", "blocks.1.proj_out"


def factors(rank, scale, seed=0, size=(12, 10)):
    draw = torch.Generator().manual_seed(seed)
    return Factors(torch.randn(rank, size[1], generator=draw), torch.randn(size[0], rank, generator=draw), scale)


@pytest.fixture
def lora():
    """Ranks and scales that differ by module, and a module whose name ends another's."""
    return LoraFile(
        {"base_model_name_or_path": "a/base"},
        {Q: factors(4, 2.0), OUT: factors(2, 0.5, 1), DEEP: factors(4, 1.3, 2)},
    )


@pytest.fixture
def folder(lora, tmp_path):
    write_lora(tmp_path, lora)
    return tmp_path


def edit_config(folder, **fields):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | fields))


def edit_weights(folder, change, name=WEIGHTS):
    with safe_open(folder / name, "pt") as opened:
        header = opened.metadata()
    save_file(change(load_file(folder / name)), folder / name, metadata=header)


def assert_same_changes(ours, theirs):
    assert set(ours.modules) == set(theirs.modules)
    for name, change in ours.modules.items():
        torch.testing.assert_close(change.delta(), theirs.modules[name].delta(), atol=0, rtol=1e-6)


def test_a_peft_folder_reads_back(lora, folder):
    again = read_lora(folder)
    assert_same_changes(again, lora)
    assert {name: f.rank for name, f in again.modules.items()} == {Q: 4, OUT: 2, DEEP: 4}
    assert again.config["base_model_name_or_path"] == "a/base"
    assert again.config["peft_type"] == "LORA"
    torch.testing.assert_close(again.modules[Q].a, lora.modules[Q].a, atol=0, rtol=0)


def test_a_weights_file_reads_as_its_folder(lora, folder):
    assert_same_changes(read_lora(folder / WEIGHTS), lora)


def test_the_base_can_be_named(lora, tmp_path):
    write_lora(tmp_path, lora, base_model_name="another/base")
    assert read_lora(tmp_path).config["base_model_name_or_path"] == "another/base"


def test_a_diffusers_file_reads_back_with_the_scale_in_b(lora, tmp_path):
    write_diffusers_lora(tmp_path, lora)
    again = read_lora(tmp_path)
    assert_same_changes(again, lora)
    assert {f.scale for f in again.modules.values()} == {1.0}
    assert_same_changes(read_lora(tmp_path / DIFFUSERS_WEIGHTS), lora)


def test_alpha_keys_of_a_diffusers_file_are_honoured(tmp_path):
    change = factors(4, 1.0)
    keys = {f"transformer.{Q}.lora_A.weight": change.a, f"transformer.{Q}.lora_B.weight": change.b}
    save_file({**keys, f"transformer.{Q}.alpha": torch.tensor(8.0)}, tmp_path / DIFFUSERS_WEIGHTS)
    assert read_lora(tmp_path).modules[Q].scale == 2
    save_file(keys, tmp_path / DIFFUSERS_WEIGHTS)
    assert read_lora(tmp_path).modules[Q].scale == 1


def test_alpha_in_the_header_of_a_diffusers_file_is_honoured(lora, tmp_path):
    write_lora(tmp_path, lora)
    with safe_open(tmp_path / WEIGHTS, "pt") as opened:
        header = {key: text.replace("base_model.model.", "transformer.") for key, text in opened.metadata().items()}
    tensors = load_file(tmp_path / WEIGHTS)
    renamed = {key.replace("base_model.model.", "transformer."): tensor for key, tensor in tensors.items()}
    save_file(renamed, tmp_path / DIFFUSERS_WEIGHTS, metadata=header)
    again = read_lora(tmp_path / DIFFUSERS_WEIGHTS)
    assert again.modules[Q].scale == 2
    assert_same_changes(again, lora)


def test_rslora_divides_alpha_by_the_root_of_the_rank(folder):
    edit_config(folder, use_rslora=True, lora_alpha=8, alpha_pattern={})
    assert read_lora(folder).modules[Q].scale == 4


def test_patterns_match_the_way_peft_matches(folder):
    edit_config(folder, r=9, lora_alpha=12, rank_pattern={"to_q": 4, "proj_out": 4, f"^{OUT}": 2}, alpha_pattern={})
    with pytest.raises(CheckpointError, match="has rank 2 but its config says 4"):
        read_lora(folder)
    edit_config(folder, rank_pattern={f"^{OUT}": 2, "to_q": 4, "proj_out": 4}, alpha_pattern={"to_q": 2})
    assert {name: f.scale for name, f in read_lora(folder).modules.items()} == {Q: 0.5, OUT: 6, DEEP: 3}


def test_the_config_says_only_what_differs():
    config = peft_config({"a": factors(4, 2.0), "b": factors(4, 2.0), "c": factors(2, 2.0)})
    assert config == {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"^c": 2},
        "alpha_pattern": {"^c": 4},
        "target_modules": ["a", "b", "c"],
    }


def test_the_hash_follows_the_weights(lora, folder):
    before = sha256_of(folder)
    edit_config(folder, lora_alpha=8)
    assert sha256_of(folder) == before
    write_lora(folder, LoraFile({}, {**lora.modules, Q: factors(4, 2.0, seed=7)}))
    assert sha256_of(folder) != before


def test_no_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no LoRA adapter at"):
        read_lora(tmp_path / "absent")


def test_a_pickle_is_not_opened(tmp_path):
    (tmp_path / CONFIG).write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"anything")
    with pytest.raises(CheckpointError, match=r"convert it to adapter_model\.safetensors"):
        read_lora(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 200, -1])
def test_a_truncated_file_is_refused(folder, kept):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:kept])
    with pytest.raises(CheckpointError, match="damaged"):
        read_lora(folder)


def test_a_missing_or_broken_config_is_refused(folder):
    (folder / CONFIG).write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_lora(folder)
    (folder / CONFIG).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_lora(folder)
    (folder / CONFIG).write_text('{"r": 4}')
    with pytest.raises(CheckpointError, match="lora_alpha"):
        read_lora(folder)


def test_half_a_pair_is_refused(folder):
    gone = f"base_model.model.{Q}.lora_B.weight"
    edit_weights(folder, lambda tensors: {key: t for key, t in tensors.items() if key != gone})
    with pytest.raises(CheckpointError, match=f"only one of lora_A and lora_B for {Q}"):
        read_lora(folder)


@pytest.mark.parametrize(
    ("key", "tensor", "message"),
    [
        (f"{Q}.lora_B.weight", torch.ones(12, 3), "ranks of .* differ"),
        (f"{Q}.lora_A.weight", torch.ones(4, 10, 1, 1), "only LoRA on linear modules"),
        (f"{Q}.lora_A.weight", torch.full((4, 10), torch.nan), "not finite"),
        (f"{Q}.lora_magnitude_vector", torch.ones(12), "not a LoRA weight of a linear module"),
        (f"{Q}.lora_B.bias", torch.ones(12), "not a LoRA weight of a linear module"),
        ("norm.weight", torch.ones(12), "not a LoRA weight of a linear module"),
        ("absent.alpha", torch.tensor(4.0), "alpha without weights for absent"),
    ],
)
def test_anything_but_plain_lora_is_refused(folder, key, tensor, message):
    edit_weights(folder, lambda tensors: tensors | {f"base_model.model.{key}": tensor})
    with pytest.raises(CheckpointError, match=message):
        read_lora(folder)


def test_an_adapter_that_reaches_beyond_the_transformer_is_refused(lora, tmp_path):
    write_diffusers_lora(tmp_path, lora)
    extra = {
        "text_encoder.q.lora_A.weight": torch.ones(2, 3),
        "text_encoder.q.lora_B.weight": torch.ones(3, 2),
    }
    edit_weights(tmp_path, lambda tensors: tensors | extra, DIFFUSERS_WEIGHTS)
    with pytest.raises(CheckpointError, match="more than a transformer: text_encoder"):
        read_lora(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"lora_bias": True},
        {"modules_to_save": ["proj_out"]},
        {"init_lora_weights": "pissa"},
        {"peft_type": "LOHA"},
    ],
)
def test_a_config_of_another_method_is_refused(folder, fields):
    edit_config(folder, **fields)
    with pytest.raises(CheckpointError, match=str(next(iter(fields.values()))).strip("[]'")):
        read_lora(folder)


def test_an_empty_file_is_refused(folder):
    edit_weights(folder, lambda _: {})
    with pytest.raises(CheckpointError, match="holds no LoRA weights"):
        read_lora(folder)
