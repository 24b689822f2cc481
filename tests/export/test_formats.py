"""In every format, what is taken home has the trained velocity in the program that it is for."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import PeftModel
from safetensors.torch import load_file

from flowopd.formats import FORMATS, Merged
from flowopd.formats.base import full_precision, plain
from flowopd.hub import located
from flowopd.lora_file import DIFFUSERS_WEIGHTS, Factors, LoraFile, read_lora
from flowopd.stages.export import export

MINI = "package:mini/base"
DTYPES = ("float32", "bfloat16", "float16")


def without_encoders(transformer):
    nothing = dict.fromkeys(f"{part}{i}" for part in ("text_encoder", "tokenizer") for i in ("", "_2", "_3"))
    return StableDiffusion3Pipeline(transformer=transformer, scheduler=None, vae=None, **nothing)


def by_load_lora_weights(folder, transformer):
    pipe = without_encoders(transformer)
    pipe.load_lora_weights(str(folder))
    return pipe.transformer


def by_peft(folder, transformer):
    return PeftModel.from_pretrained(transformer, str(folder))


def without_alphas(folder, transformer):
    """A file for ComfyUI by diffusers, which knows no `.alpha`."""
    (file,) = folder.glob("*.safetensors")
    pipe = without_encoders(transformer)
    pipe.load_lora_weights({key: t for key, t in load_file(file).items() if not key.endswith(".alpha")})
    return pipe.transformer


def by_from_pretrained(folder, transformer):
    return SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer").eval()


READERS = {
    "diffusers": by_load_lora_weights,
    "peft": by_peft,
    "comfyui": without_alphas,
    "merged": by_from_pretrained,
}


def uneven(lora):
    """The same modules with ranks of 1 to 3, and scales that no alpha / rank explains at once."""
    modules = {
        name: Factors(f.a[: 1 + i % 3], f.b[:, : 1 + i % 3], f.scale * (1 + i % 2))
        for i, (name, f) in enumerate(lora.modules.items())
    }
    return LoraFile({}, modules)


@pytest.mark.parametrize("shape", ["alpha other than rank", "a rank and an alpha for each module"])
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_has_the_trained_velocity_in_the_program_it_is_for(opened, lora, measure, form, shape):
    student = lora if shape.startswith("alpha") else uneven(lora)
    session = opened(student=student)
    (folder,) = export(session, [form])
    assert folder == session.out / "export" / form
    wanted = measure.trained(student, measure.base())
    assert measure.distance(measure.velocity(READERS[form](folder, measure.base())), wanted) < measure.limit
    assert measure.distance(measure.velocity(measure.base()), wanted) > 1e-2


def test_every_part_of_a_pipeline_goes_along_and_nothing_else(tmp_path, opened, lora, measure, files):
    base = tmp_path / "base"
    StableDiffusion3Pipeline.from_pretrained(located(MINI)).save_pretrained(base)
    (base / "single_file.safetensors").write_bytes(b"the same once more")
    (base / ".cache").mkdir()
    (base / "notes").mkdir()
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps({**index, "_name_or_path": str(tmp_path)}))
    (folder,) = export(opened(base=str(base)), ["merged"], dest=tmp_path / "merged")
    ours, theirs = files(folder), files(base)
    assert ours.keys() - theirs.keys() == {Path("README.md")}
    assert theirs.keys() - ours.keys() == {Path("single_file.safetensors")}
    changed = {path.parts[0] for path in ours.keys() & theirs.keys() if ours[path] != theirs[path]}
    assert changed == {"transformer", "model_index.json"}
    pipe = StableDiffusion3Pipeline.from_pretrained(folder)
    assert measure.distance(measure.velocity(pipe.transformer), measure.trained(lora, measure.base())) < measure.limit


def test_a_base_from_the_hub_goes_without_its_other_parts(session, as_from_hub, lora, measure):
    (folder,) = export(as_from_hub(session), ["merged"])
    assert {path.name for path in folder.iterdir()} == {"README.md", "transformer"}
    ours = measure.velocity(by_from_pretrained(folder, None))
    assert measure.distance(ours, measure.trained(lora, measure.base())) < measure.limit


def test_a_large_transformer_goes_in_shards(session, lora, measure, monkeypatch):
    monkeypatch.setitem(FORMATS, "merged", Merged(shard_size="4MB"))
    (folder,) = export(session, ["merged"])
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 2
    ours = measure.velocity(by_from_pretrained(folder, None))
    assert measure.distance(ours, measure.trained(lora, measure.base())) < measure.limit


@pytest.mark.parametrize("stored", [None, *DTYPES])
@pytest.mark.parametrize("run_in", DTYPES)
def test_a_merged_model_is_in_the_dtype_that_is_asked_for(opened, lora, measure, run_in, stored):
    (folder,) = export(opened(dtype=run_in), ["merged"], dtype=stored)
    kept, dtype = load_file(next((folder / "transformer").glob("*.safetensors"))), getattr(torch, stored or run_in)
    assert {tensor.dtype for tensor in kept.values()} == {dtype}
    for name, tensor in measure.base().state_dict().items():
        factors = lora.modules.get(name.removesuffix(".weight"))
        sums = tensor.to(getattr(torch, run_in)).float() + (0 if factors is None else factors.delta())
        assert torch.equal(kept[name], sums.to(dtype)), name
    text = (folder / "README.md").read_text()
    assert (f"rounding of its weights to {stored or run_in}" in text) is (dtype != torch.float32)


def test_an_adapter_beside_a_bf16_base_is_compared_in_full_precision(opened):
    session = opened(dtype="bfloat16")
    before = {name: tensor.clone() for name, tensor in session.model.transformer.state_dict().items()}
    folder, _ = export(session, ["diffusers", "peft"])
    assert {tensor.dtype for tensor in load_file(folder / DIFFUSERS_WEIGHTS).values()} == {torch.float32}
    after = {name.replace(".base_layer.", "."): t for name, t in session.model.transformer.state_dict().items()}
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype


def test_exports_share_the_tensors_of_the_one_base(session, measure):
    session.adapters.load("other", session.out / "student")
    twin = plain(session.model)
    own = {name.replace(".base_layer.", "."): t for name, t in session.model.transformer.named_parameters()}
    assert all(parameter is own[name] for name, parameter in twin.named_parameters())
    assert not any(tensor.is_meta for tensor in twin.state_dict().values())
    assert measure.distance(measure.velocity(twin), measure.velocity(measure.base())) == 0


def test_full_precision_is_left_whatever_happens(session):
    transformer = session.model.transformer.to(torch.bfloat16)
    before = {name: parameter.clone() for name, parameter in transformer.named_parameters()}
    with pytest.raises(KeyError), full_precision(transformer):
        assert {parameter.dtype for parameter in transformer.parameters()} == {torch.float32}
        raise KeyError
    assert all(torch.equal(parameter, before[name]) for name, parameter in transformer.named_parameters())


def test_adapters_that_others_use_are_left_as_they_are(session, lora):
    session.adapters.load("other", session.out / "student")
    export(session, list(FORMATS))
    assert session.adapters.names == ("other",) and session.adapters.active is None
    (again,) = export(session, ["peft"], "teacher:look", dest=session.out / "look")
    assert torch.equal(read_lora(again).modules["proj_out"].a, lora.modules["proj_out"].a)
