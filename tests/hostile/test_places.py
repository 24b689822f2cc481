"""No name in a recipe, a pipeline or an adapter reaches out of its folder, and nothing that could run is opened."""

import json
import pickle
import zipfile

import pytest
import torch
from torch import nn

from flowopd.adapters import Adapters
from flowopd.errors import CheckpointError, ConfigError, FlowOpdError
from flowopd.hub import fetched_tensors, is_local
from flowopd.lora_file import WEIGHTS, Factors, LoraFile, read_lora, write_lora
from flowopd.models import Source
from flowopd.recipe import make_recipe

METRIC = {"reward": "ocr", "prompts": "a"}
OUTSIDE = ["../x", "a/b", "/etc/x", "..", ".", "a.b", "a\\b", "", " a", "a ", "x" * 61, "a\nb", "\x1b[2J", "-a"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize(
    "tree",
    [
        lambda name: {"teachers": {name: {"adapter": "a/b"}}},
        lambda name: {"evaluate": {"metrics": {name: METRIC}}},
        lambda name: {"grpo_mix": {"tasks": {name: METRIC}}},
    ],
    ids=["teacher", "metric", "task"],
)
def test_what_names_folders_names_no_other_place(tree, name):
    with pytest.raises(ConfigError):
        make_recipe({"base": "x", **tree(name)})


@pytest.mark.parametrize("name", ["ocr", "GenEval 2", "text_v1", "opd+mar", "größe", "2d-spatial"])
def test_plain_names_are_names(name):
    assert list(make_recipe({"base": "x", "teachers": {name: {"adapter": "a/b"}}}).teachers) == [name]


@pytest.mark.parametrize("name", ["base", "student", "coldstart", "grpo_mix"])
def test_a_teacher_has_no_name_of_the_runs_own_models(name):
    with pytest.raises(ConfigError, match="are names of a run's own models; choose another"):
        make_recipe({"base": "x", "teachers": {name: {"adapter": "a/b"}}})


@pytest.mark.parametrize("folder", ["..", "../x", "a/../../x", "/etc", "a\\..\\x", ""])
def test_a_subfolder_lies_in_its_adapters_folder(folder):
    with pytest.raises(ConfigError, match=r"teachers\.a\.subfolder"):
        make_recipe({"base": "x", "teachers": {"a": {"adapter": "a/b", "subfolder": folder}}})


def test_a_label_is_letters_that_print():
    with pytest.raises(ConfigError, match="a label is 1 to 100 letters that print"):
        make_recipe({"base": "x", "prompts": {"a\nb": {"train": "x.txt"}}})


@pytest.mark.parametrize("name", ["../../evil", "/evil", "a/b", "..", "a.b"])
def test_a_part_of_a_pipeline_lies_in_its_folder(tmp_path, name):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "X", name: ["diffusers", "Y"]}))
    with pytest.raises(CheckpointError, match=r"names a part .* no folder beside it; restore it"):
        _ = Source(str(tmp_path)).parts


@pytest.mark.parametrize(
    "content", [b"[]", b"3", b"[" * 100_000, b"\xff", b'{"a": 1, "a": 2}', b"{" + b" " * (2 << 20)]
)
def test_an_index_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "model_index.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="restore it"):
        _ = Source(str(tmp_path)).parts


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "a/" + "x" * 300, "\0"])
def test_names_that_no_file_system_takes_are_no_crash(name):
    is_local(name)
    with pytest.raises(FlowOpdError):
        read_lora(name)


@pytest.mark.parametrize("module", ["../../etc/passwd", "/etc/x", "a\0b", "\x1b[2J", "..", "__class__", "weight"])
def test_an_adapter_of_strange_modules_is_for_another_base(tmp_path, module):
    write_lora(tmp_path, LoraFile({}, {module: Factors(torch.ones(1, 2), torch.ones(2, 1), 1.0)}))
    with pytest.raises(CheckpointError) as refused:
        Adapters(nn.ModuleDict({"proj": nn.Linear(2, 2)})).load("a", tmp_path)
    assert str(refused.value).isprintable()


class Bomb:
    """What leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def pickles(folder, mark):
    """Files that would run code where they are unpickled."""
    plain, archive = folder / "adapter_model.bin", folder / "weights.pt"
    plain.write_bytes(pickle.dumps(Bomb(mark)))
    torch.save({"x": Bomb(mark)}, archive)
    for name in (WEIGHTS, "model.safetensors"):
        (folder / name).write_bytes(plain.read_bytes())
    with zipfile.ZipFile(folder / "pytorch_lora_weights.safetensors", "w") as zipped:
        zipped.writestr("data.pkl", plain.read_bytes())
    return [plain, archive, *folder.glob("*.safetensors")]


def test_no_pickle_is_run_whatever_it_is_called(tmp_path):
    mark = tmp_path / "ran"
    for file in pickles(tmp_path, mark):
        for read in (read_lora, lambda path: fetched_tensors(str(path))):
            with pytest.raises(CheckpointError):
                read(file)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["adapter_model.bin", "a.pt", "a.ckpt"])
def test_a_pickle_is_named_with_its_mend(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(1))
    file = tmp_path / name
    with pytest.raises(CheckpointError, match="is a pickle and is not opened; convert it"):
        read_lora(file.parent if name.startswith("adapter") else file)
