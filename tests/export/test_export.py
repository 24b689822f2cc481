"""An export is right and whole, or not there at all; what was there stays as it was."""

import errno
import re
import resource
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowopd import make_recipe
from flowopd.errors import CheckpointError, ConfigError
from flowopd.formats import FORMATS
from flowopd.lora_file import Factors, LoraFile, read_lora, write_lora
from flowopd.stages.export import export

MINI = "package:mini/base"


def places_of(folder):
    return sorted(folder.rglob("*"))


class Faulty:
    """A format whose writer makes a mistake."""

    def __init__(self, form, fault):
        self.form, self.fault = form, fault
        self.reloaded, self.unrounded = form.reloaded, form.unrounded

    def write(self, folder, trained):
        self.fault(folder, trained, self.form)


def with_modules(trained, modules):
    return replace(trained, lora=LoraFile({}, modules))


def twice_as_strong(folder, trained, form):
    modules = {name: Factors(f.a, f.b, 2 * f.scale) for name, f in trained.lora.modules.items()}
    form.write(folder, with_modules(trained, modules))


def without_a_module(folder, trained, form):
    form.write(folder, with_modules(trained, dict(list(trained.lora.modules.items())[1:])))


def slightly_off(folder, trained, form):
    first, f = next(iter(trained.lora.modules.items()))
    form.write(folder, with_modules(trained, {**trained.lora.modules, first: Factors(f.a, 1.01 * f.b, f.scale)}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", [twice_as_strong, without_a_module, slightly_off])
@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_is_not_the_trained_adapter_is_not_kept(opened, tmp_path, monkeypatch, form, fault, dtype):
    session = opened(dtype=dtype)
    monkeypatch.setitem(FORMATS, form, Faulty(FORMATS[form], fault))
    before = places_of(tmp_path)
    with pytest.raises(CheckpointError, match=r"read back, the .* \d\.\de[-+]\d\d") as caught:
        export(session, [form])
    assert "\n" not in str(caught.value) and places_of(tmp_path) == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_weight_that_should_be_the_base_s_is(session, monkeypatch, dtype):
    def another(folder, trained, form):
        form.write(folder, trained)
        (file,) = (folder / "transformer").glob("*.safetensors")
        tensors = load_file(file)
        save_file({**tensors, "proj_out.bias": tensors["proj_out.bias"] * 1.01}, file, {"format": "pt"})

    monkeypatch.setitem(FORMATS, "merged", Faulty(FORMATS["merged"], another))
    with pytest.raises(CheckpointError, match=r"proj_out\.bias is not the base's"):
        export(session, ["merged"], dtype=dtype)


def test_an_alpha_in_the_file_of_comfyui_counts(session, monkeypatch):
    def halved(folder, trained, form):
        form.write(folder, trained)
        file = form.file(folder, trained)
        tensors = load_file(file)
        save_file({key: t / 2 if key.endswith(".alpha") else t for key, t in tensors.items()}, file)

    monkeypatch.setitem(FORMATS, "comfyui", Faulty(FORMATS["comfyui"], halved))
    with pytest.raises(CheckpointError, match="comfyui export"):
        export(session, ["comfyui"])


@contextmanager
def largest_file(size):
    """Writing more into a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("form", FORMATS)
def test_a_full_disk_is_one_line_and_leaves_nothing(session, tmp_path, form):
    before = places_of(tmp_path)
    said = f"export/{form} cannot be written .*too large.*--dest"
    with pytest.raises(CheckpointError, match=said) as caught, largest_file(20_000):
        export(session, [form])
    assert "\n" not in str(caught.value) and places_of(tmp_path) == before


def test_of_several_formats_those_before_a_full_disk_stay(session, monkeypatch):
    def full(folder, trained, form):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(FORMATS, "merged", Faulty(FORMATS["merged"], full))
    said = r"export/merged cannot be written \(No space left on device\); make room"
    with pytest.raises(CheckpointError, match=said):
        export(session, ["peft", "merged"])
    assert [path.name for path in (session.out / "export").iterdir()] == ["peft"]
    assert read_lora(session.out / "export" / "peft").modules


def test_a_folder_that_cannot_be_made_is_one_line(session, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="file/there cannot be written"):
        export(session, dest=tmp_path / "file" / "there")


def test_a_failure_after_the_files_are_written_leaves_nothing(session, tmp_path, monkeypatch):
    def full(self, *args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = places_of(tmp_path)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CheckpointError, match=r"No space left on device\); make room"):
        export(session, ["diffusers"])
    assert places_of(tmp_path) == before


def test_an_interruption_leaves_nothing(session, tmp_path, monkeypatch):
    def interrupted(folder, trained, form):
        form.write(folder, trained)
        raise KeyboardInterrupt

    before = places_of(tmp_path)
    monkeypatch.setitem(FORMATS, "peft", Faulty(FORMATS["peft"], interrupted))
    with pytest.raises(KeyboardInterrupt):
        export(session, ["peft"])
    assert places_of(tmp_path) == before and not session.adapters.names


def test_what_is_there_is_refused_before_anything_is_written(session, tmp_path, files):
    taken = session.out / "export" / "peft"
    taken.mkdir(parents=True)
    (taken / "mine.txt").write_text("mine")
    before = files(tmp_path)
    with pytest.raises(ConfigError, match="export/peft is not empty; choose another --dest"):
        export(session, ["diffusers", "peft"])
    assert files(tmp_path) == before


def test_an_empty_folder_is_taken_and_a_file_is_not(session, tmp_path):
    (tmp_path / "empty").mkdir()
    assert export(session, dest=tmp_path / "empty") == [tmp_path / "empty"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="file is no folder"):
        export(session, dest=tmp_path / "file")


@pytest.mark.parametrize(
    "options, said",
    [
        ({"to": ["difusers"]}, "unknown format 'difusers'; did you mean 'diffusers'"),
        ({"to": []}, "needs a format"),
        ({"to": ["peft", "merged"], "dest": Path("x")}, "one format, got peft, merged"),
        ({"to": ["peft", "merged"], "push": "a/b"}, "one format, got peft, merged"),
        ({"to": ["merged"], "dtype": "int8"}, "unknown dtype 'int8'; take one of float32, bfloat16"),
        ({"to": ["peft"], "dtype": "bfloat16"}, "dtype is for merged weights"),
        ({"private": True}, "give push OWNER/NAME"),
        ({"push": "name"}, "'name' cannot be a hub repository; give OWNER/NAME"),
        ({"push": "a/b c"}, "'a/b c' cannot be a hub repository"),
    ],
)
def test_settings_that_cannot_work_are_refused(session, tmp_path, options, said):
    before = places_of(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(said)):
        export(session, **options)
    assert places_of(tmp_path) == before


@pytest.mark.parametrize(
    "model, said", [("base", "no adapter to export.*student"), ("nobody", "no model 'nobody'.*student")]
)
def test_a_model_without_an_adapter_is_refused(session, model, said):
    with pytest.raises(ConfigError, match=said):
        export(session, model=model)


def test_a_whole_teacher_has_nothing_to_export_and_its_student_has(opened, tree):
    session = opened(teachers={**tree["teachers"], "large": {"transformer": MINI}})
    with pytest.raises(ConfigError, match="teacher:large has no adapter to export"):
        export(session, model="teacher:large")
    (folder,) = export(session)
    assert read_lora(folder).modules
    assert "`package:mini/base`, a whole transformer" in (folder / "README.md").read_text()


@pytest.mark.parametrize("model", ["teacher:look", "merge"])
def test_experts_and_the_merge_go_out_too(opened, lora, tmp_path, model):
    session = opened(student=LoraFile({}, dict(list(lora.modules.items())[:1])))
    write_lora(session.out / "coldstart", lora, MINI)
    for form in FORMATS:
        assert export(session, [form], model, dest=tmp_path / form) == [tmp_path / form]
    ours = read_lora(tmp_path / "peft").modules
    assert ours.keys() == lora.modules.keys()
    assert all(torch.equal(ours[name].delta(), factors.delta()) for name, factors in lora.modules.items())
    assert f"--model {model}" in (tmp_path / "peft" / "README.md").read_text()


def test_a_student_goes_out_where_its_teachers_are_out_of_reach(session, tree, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    session.recipe = make_recipe({**tree, "teachers": {"look": {"adapter": "owner/name"}}})
    (folder,) = export(session)
    assert "| teacher `look` | `owner/name`, sha256 `" in (folder / "README.md").read_text()


def test_a_format_given_twice_is_written_once(session):
    assert export(session, ["peft", "peft"]) == [session.out / "export" / "peft"]
