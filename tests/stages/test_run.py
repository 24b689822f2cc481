"""A whole recipe: every file of the contract is there, says what it should, and is not made twice."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from flowopd import load_recipe, make_recipe, run
from flowopd.errors import ConfigError
from flowopd.lora_file import read_lora
from flowopd.merge import merge
from flowopd.pipeline import judge, open_run
from flowopd.results import Results
from flowopd.stages.judging import Judging

MODELS = ["base", "teacher:composition", "teacher:quality", "merge", "student"]
METRICS = {"composition", "quality", "unlearnt", "average"}


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def bytes_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def again(finished, tmp_path):
    """A copy of the finished run, to go on with."""
    return shutil.copytree(finished, tmp_path / "again")


@pytest.mark.parametrize("name", ["manifest.json", "metrics.jsonl", "results.json", "report.html", "checkpoints"])
def test_a_run_leaves_the_files_of_its_contract(finished, name):
    assert (finished / name).exists()


@pytest.mark.parametrize("adapter", ["coldstart", "student"])
def test_adapters_of_a_run_are_peft_folders(finished, world, adapter):
    config = json.loads((finished / adapter / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["base_model_name_or_path"] == str(world.base)
    assert all(
        tensor.isfinite().all() for tensor in load_file(finished / adapter / "adapter_model.safetensors").values()
    )


def test_the_cold_start_is_the_mean_of_the_experts(finished, world):
    experts = {name: read_lora(world.experts / name) for name in ("composition", "quality")}
    mean = merge(experts).lora.modules
    merged = read_lora(finished / "coldstart").modules
    assert merged.keys() == mean.keys()
    for name, factors in merged.items():
        torch.testing.assert_close(factors.delta(), mean[name].delta())


def test_the_results_hold_every_model_on_every_metric(finished):
    record = json.loads((finished / "results.json").read_text())
    assert record["schema"] == 1 and list(record["models"]) == MODELS
    for row in record["models"].values():
        assert row.keys() == METRICS
        assert all(e["ci95"][0] <= e["mean"] <= e["ci95"][1] for e in row.values())
        assert row["quality"]["n"] == 3
    assert record["gap_closed"].keys() == {"composition", "quality"}


def test_a_judge_held_out_is_left_out_of_the_average(finished):
    for row in Results.load(finished / "results.json").models.values():
        assert row["average"].mean == pytest.approx((row["composition"].mean + row["quality"].mean) / 2)


def test_every_update_and_every_model_has_its_row(finished):
    stages = [(row["stage"], row["step"]) for row in rows(finished)]
    assert stages == [("distill", 0), ("distill", 1), *(("eval", i) for i in range(len(MODELS)))]
    assert all("seconds" in row for row in rows(finished))


def test_the_manifest_holds_the_recipe_and_what_it_ran_on(finished, world):
    manifest = json.loads((finished / "manifest.json").read_text())
    assert make_recipe(manifest["recipe"]) == make_recipe(world.whole())
    assert {"torch", "diffusers", "flowopd"} <= manifest["versions"].keys()
    assert manifest["seed"] == 0 and manifest["hardware"]


@pytest.mark.parametrize("label", ["composition", "quality"])
@pytest.mark.parametrize("folder, file", [("experts", "adapter_model.safetensors"), ("prompts", "train")])
def test_the_manifest_hashes_every_file_that_was_read(finished, world, folder, file, label):
    path = world.experts / label / file if folder == "experts" else world.prompts / file / f"{label}.jsonl"
    assert hashlib.sha256(path.read_bytes()).hexdigest() in (finished / "manifest.json").read_text()


def test_the_report_fetches_nothing(finished):
    page = (finished / "report.html").read_text()
    assert "<script" not in page and 'src="http' not in page and "student" in page


def test_a_finished_run_is_not_made_again(again, finished, world):
    made = run(make_recipe(world.whole()), again)
    assert made == Results.load(finished / "results.json")
    for adapter in ("coldstart", "student", "checkpoints"):
        assert bytes_of(again / adapter) == bytes_of(finished / adapter)
    assert [row["stage"] for row in rows(again)] == [row["stage"] for row in rows(finished)]


@pytest.fixture
def judged(monkeypatch):
    """The models that are judged from now on."""
    models, scores = [], Judging.scores
    monkeypatch.setattr(Judging, "scores", lambda judging, model: models.append(model) or scores(judging, model))
    return models


def test_a_finished_run_is_not_judged_again(again, finished, world, judged):
    assert run(make_recipe(world.whole()), again) == Results.load(finished / "results.json")
    assert not judged


def test_a_table_of_other_weights_or_settings_is_made_again(again, world, judged):
    results = Results.load(again / "results.json")
    for key in ("hash", "weights", "judges"):
        judged.clear()
        other = results.settings | {key: "other"}
        results.model_copy(update={"settings": other}).save(again / "results.json")
        assert run(make_recipe(world.whole()), again) == results
        assert judged == list(results.models)


def test_a_table_by_code_or_a_server_is_made_again(again, world, judged, monkeypatch):
    monkeypatch.setattr("flowopd.stages.judging.is_path", lambda name: name == "mini_quality")
    run(make_recipe(world.whole()), again)
    assert "student" in judged


def test_what_is_asked_for_is_judged_though_it_was_before(again, world, judged):
    judge(open_run(make_recipe(world.whole()), again))
    assert "student" in judged


def test_a_run_whose_manifest_lacks_defaults_goes_on(again, world):
    """As one that was made before a key was added."""
    manifest = json.loads((again / "manifest.json").read_text())
    for teacher in manifest["recipe"]["teachers"].values():
        teacher.pop("offload")
    for key in ("grpo_mix", "judges", "t5"):
        manifest["recipe"].pop(key)
    (again / "manifest.json").write_text(json.dumps(manifest))
    assert open_run(make_recipe(world.whole()), again).recipe.t5


def test_a_run_of_another_recipe_is_refused_and_kept(again, finished, world):
    with pytest.raises(ConfigError, match="another seed"):
        run(make_recipe(world.whole(), ["seed=1"]), again)
    assert bytes_of(again) == bytes_of(finished)


def test_a_recipe_can_be_run_from_its_file(finished, again, world, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(world.whole()))
    assert run(load_recipe(file), again) == Results.load(finished / "results.json")


def test_a_stage_that_the_recipe_lacks_is_left_out(world, tmp_path):
    assert run(make_recipe(world.tree(coldstart={"kind": "merge"})), tmp_path / "out") is None
    assert (tmp_path / "out" / "coldstart").exists() and not (tmp_path / "out" / "student").exists()
