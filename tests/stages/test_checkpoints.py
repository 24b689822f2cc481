"""A checkpoint is a model as any other: it is judged, drawn and exported by its name."""

import json

import numpy as np
import pytest
import torch

from flowopd.errors import CheckpointError, ConfigError
from flowopd.lora_file import read_lora
from flowopd.pipeline import open_run
from flowopd.recipe import make_recipe
from flowopd.stages import layouts
from flowopd.stages.checkpoints import checkpoint_hash, known_checkpoints, nearest
from flowopd.stages.evaluate import evaluate
from flowopd.stages.export import export
from flowopd.stages.sample import available_models, draw_pictures, draw_to, draw_wall, model_field, model_lora

NAMES = [f"checkpoint:distill/{step}" for step in (1, 2, 3)]


def judged(session, *models):
    tree = session.recipe.model_dump(exclude_unset=True)
    tree["evaluate"]["models"] = models
    return evaluate(open_run(make_recipe(tree), session.out))


def test_every_update_is_kept_where_keep_is_none(kept):
    assert known_checkpoints(kept.recipe, kept.out) == NAMES


def test_a_checkpoint_is_judged_as_any_other_row(kept):
    results = judged(kept, "student", *NAMES)
    assert list(results.models) == ["student", *NAMES]
    assert results.models[NAMES[-1]] == results.models["student"]
    scores = json.loads((kept.out / "scores.json").read_text())
    assert len({tuple(scores[model]["quality"]) for model in NAMES}) == 3


def test_of_checkpoints_one_is_loaded_at_a_time(kept):
    conditioning = kept.encode([])
    for model in NAMES:
        model_field(kept, model, 1.0, conditioning)
    assert [name for name in kept.adapters.names if name.startswith("checkpoint:")] == [f"{NAMES[-1]} of the run"]


def test_a_checkpoint_is_drawn_by_its_name(kept, tmp_path):
    files = draw_to(kept, NAMES[1], ["a ring"], 0, tmp_path)
    assert [file.name for file in files] == ["a-ring-0-checkpoint-distill-2.png"] and files[0].exists()


def test_a_folder_of_a_benchmark_says_which_checkpoint_drew_it(kept, tmp_path):
    prompts = kept.prompts("quality", "test")[:1]
    layouts.draw_layout(kept, NAMES[0], prompts, "compbench", 1, 0, tmp_path)
    weights = json.loads((tmp_path / layouts.RECORD).read_text())["weights"]
    assert weights[NAMES[0]] == checkpoint_hash(kept.out, NAMES[0])


def test_a_checkpoint_is_exported(kept, tmp_path):
    (folder,) = export(kept, ["peft"], NAMES[0], dest=tmp_path / "peft")
    lora = model_lora(kept, NAMES[0])
    for name, factors in read_lora(folder).modules.items():
        torch.testing.assert_close(factors.delta(), lora.modules[name].delta())
    assert "stage `distill` as it was after 1 updates" in (folder / "README.md").read_text()


def test_the_wall_leaves_checkpoints_out(kept):
    config = kept.recipe.evaluate.model_copy(update={"models": ("base", NAMES[0])})
    folder = draw_wall(kept, config)
    assert json.loads((folder / "index.json").read_text())["models"] == ["base"]


def test_what_a_stage_starts_from_is_not_its_checkpoint(kept):
    prompts = kept.prompts("quality", "test")[:1]
    config, conditioning = kept.recipe.evaluate, kept.encode(prompts)
    drawn = [draw_pictures(kept, model, prompts, config, conditioning) for model in ("merge", *NAMES)]
    assert all((drawn[0] != other).any() for other in drawn[1:])
    assert np.ptp(drawn[0])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("checkpoint:distill/9", "did you mean 'checkpoint:distill/3'"),
        ("distill/1", "did you mean 'checkpoint:distill/1'"),
        ("checkpoint:sft/1", "there are: base, .*checkpoint:distill/1, checkpoint:distill/2, checkpoint:distill/3$"),
        ("checkpoint:distill/x", "there is no model 'checkpoint:distill/x' here"),
    ],
)
def test_a_checkpoint_that_is_not_there_names_what_is(kept, name, words):
    with pytest.raises(ConfigError, match=words):
        available_models(kept, ["base", name])


def test_of_many_checkpoints_a_message_names_the_ends(kept, monkeypatch):
    monkeypatch.setattr("flowopd.stages.sample.SHOWN", 2)
    with pytest.raises(ConfigError, match=r"checkpoint:distill/1, \.\.\., checkpoint:distill/3$"):
        available_models(kept, ["nobody"])


def test_the_nearest_checkpoint_is_of_the_same_stage():
    there = ["checkpoint:distill/10", "checkpoint:distill/40", "checkpoint:teachers/a/26"]
    assert nearest("checkpoint:distill/26", there) == "checkpoint:distill/40"
    assert nearest("checkpoint:teachers/a/1", there) == "checkpoint:teachers/a/26"
    assert nearest("checkpoint:teachers/b/26", there) is nearest("nobody", there) is None


def test_a_checkpoint_of_a_stage_that_the_recipe_lacks_is_none_of_its_models(kept, world, tmp_path):
    bare = world.session(tmp_path / "out")
    assert known_checkpoints(bare.recipe, kept.out) == []


def test_a_damaged_checkpoint_has_no_hash(kept, tmp_path):
    folder = tmp_path / "checkpoints" / "distill" / "step-1"
    folder.mkdir(parents=True)
    for file in (kept.out / "checkpoints" / "distill" / "step-1").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    assert checkpoint_hash(tmp_path, NAMES[0]) == checkpoint_hash(kept.out, NAMES[0])
    (folder / "state.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"step-1 is damaged \(state.safetensors is not what was written\)"):
        checkpoint_hash(tmp_path, NAMES[0])
