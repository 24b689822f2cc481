"""The whole method as one Python object, and what a caller may bring to it."""

import json

import pytest
import torch
from PIL import Image

from flowopd import ConfigError, Distiller, Prompt
from flowopd.lora_file import read_lora
from flowopd.prompts import read_prompts
from flowopd.step import closed_form


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def made(world, distilling, tmp_path):
    """A distiller of the tiny world, with changes."""

    def make(**changes):
        tree = {**world.tree(distill=distilling(updates=2)), "out": tmp_path / "out", **changes}
        return Distiller(**tree)

    return make


def test_it_trains_judges_draws_and_exports(made, tmp_path):
    metrics = {"quality": {"reward": "mini_quality", "prompts": "quality", "owner": "quality"}}
    distiller = made(evaluate={"metrics": metrics, "sampling": {"steps": 2}})
    assert read_lora(distiller.train()).modules
    results = distiller.evaluate(limit=2)
    assert set(results.models) == {"base", "teacher:composition", "teacher:quality", "merge", "student"}
    assert results.estimate("student", "quality").n == 2
    assert (tmp_path / "out" / "report.html").exists()
    (file,) = distiller.sample(["a ring"], tmp_path / "pictures", model="merge")
    assert Image.open(file).size == (64, 64)
    assert [folder.name for folder in distiller.export("peft", "comfyui")] == ["peft", "comfyui"]
    assert read_lora(tmp_path / "out" / "export" / "peft").modules


def test_short_forms_mean_what_a_recipe_says_at_length(world, tmp_path):
    teachers = {label: world.experts / label for label in ("composition", "quality")}
    prompts = {label: world.prompts / "train" / f"{label}.jsonl" for label in teachers}
    recipe = Distiller(world.base, teachers, prompts, tmp_path, coldstart=None).recipe
    assert recipe.base == str(world.base) and recipe.coldstart is None
    assert recipe.teachers["quality"].adapter == str(teachers["quality"])
    assert recipe.prompts["quality"].train == str(prompts["quality"])


def test_the_student_starts_from_the_mean_unless_told_otherwise(world, tmp_path):
    assert Distiller(world.base, {}, {}, tmp_path).recipe.coldstart.kind == "merge"


def test_prompts_may_be_texts(made, tmp_path):
    texts = {"composition": ["a red ring"], "quality": ["a blue star", "a star"]}
    made(prompts=texts).train()
    files = sorted((tmp_path / "out" / "prompts").iterdir())
    said = [json.loads(line)["prompt"] for file in files for line in file.read_text().splitlines()]
    assert said == ["a red ring", "a blue star", "a star"]
    with pytest.raises(ConfigError, match="another prompts"):
        made(prompts={**texts, "quality": ["a moon"]}).train()


def test_prompts_may_be_objects_with_other_wordings_and_have_a_split(made, tmp_path):
    ring = Prompt("a red ring", "composition", {"wordings": ["a ring that is red"]})
    prompts = {"composition": {"train": [ring], "test": ["a ring"]}, "quality": ["a star"]}
    distiller = made(prompts=prompts)
    distiller.train()
    files = distiller.recipe.prompts["composition"]
    assert read_prompts(files.train, "x")[0].wordings == ("a ring that is red",)
    assert [prompt.text for prompt in read_prompts(files.test, "x")] == ["a ring"]
    with pytest.raises(ConfigError, match=r"prompts of 'quality' are texts or flowopd\.Prompt, got 7"):
        made(prompts={"quality": [7]})


def test_an_update_is_heard_of_and_may_be_the_last(made, tmp_path):
    heard = []
    folder = made().train(on_update=lambda update, metrics: heard.append((update, metrics["gap"])) or True)
    assert [update for update, _ in heard] == [0] and heard[0][1] == rows(tmp_path / "out")[0]["gap"]
    assert read_lora(folder).modules


def test_only_true_ends_a_stage(made, tmp_path):
    made().train(on_update=lambda update, metrics: "go on")
    assert [row["step"] for row in rows(tmp_path / "out")] == [0, 1]


def test_an_own_router_and_objective_change_what_is_learnt(made, tmp_path):
    seen = []

    def router(prompts):
        seen.extend(prompts)
        return torch.tensor([[0.0, 1.0]] * len(prompts))

    students = [
        read_lora(made(out=tmp_path / name, **own).train()).modules
        for name, own in {
            "plain": {},
            "routed": {"router": router},
            "weighed": {"objective": lambda step, dynamics, target, w: closed_form(step, dynamics, target + 1, w)},
        }.items()
    ]
    first = next(iter(students[0]))
    assert len({float(modules[first].delta().sum()) for modules in students}) == 3
    assert {prompt.label for prompt in seen} == {"composition", "quality"} and all(prompt.text for prompt in seen)


def test_a_checkpoint_of_another_objective_is_refused(made, tmp_path):
    made().train()
    (tmp_path / "out" / "student").rename(tmp_path / "student")
    with pytest.raises(Exception, match="another objective"):
        made(objective=lambda step, dynamics, target, w: closed_form(step, dynamics, target, w)).train()


def test_an_unknown_part_is_refused_with_the_nearest(made):
    with pytest.raises(ConfigError, match="'distil'; did you mean 'distill'"):
        made(distil={})


def test_evaluation_needs_metrics(made):
    with pytest.raises(ConfigError, match="add its metrics"):
        made().evaluate()
