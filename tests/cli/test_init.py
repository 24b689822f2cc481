"""`flowopd init`: a recipe that loads, fits its hardware by the plan, and runs; asked for what flags do not say."""

import sys
from types import SimpleNamespace

import pytest
import typer
import yaml

from flowopd.errors import Interrupted
from flowopd.gpus import GPUS
from flowopd.lora_file import read_lora
from flowopd.models.sd3 import Sd3
from flowopd.recipe import load_recipe
from flowopd.session import Session
from flowopd.stages import draft as drafting
from flowopd.stages.draft import ROOM, Wish, draft
from flowopd.stages.plan import hardware_here, plan

TINY = ("distill.optim.updates=1", "distill.samples_per_label=1", "distill.sampling.steps=2")


@pytest.fixture
def flags(world):
    """Flags that answer every question, for the tiny world on a CPU."""
    said = ["--base", world.base, "--gpu", "cpu", "--guidance", 1]
    for label in ("composition", "quality"):
        said += ["--teacher", f"{label}={world.experts / label}"]
        said += ["--prompts", f"{label}={world.prompts}/train/{label}.jsonl"]
    return said


def test_a_recipe_of_init_runs_from_start_to_end(flowopd, flags, tmp_path):
    file = tmp_path / "mine.yaml"
    made = flowopd("init", *flags, "--to", file)
    assert made.code == 0 and made.out.strip() == str(file) and "next: flowopd doctor" in made.err
    sets = [part for change in TINY for part in ("--set", change)]
    ran = flowopd("run", file, *sets, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert read_lora(tmp_path / "out" / "student").modules


def test_a_recipe_of_init_explains_itself_and_finds_the_test_prompts(flowopd, flags, world, tmp_path):
    flowopd("init", *flags, "--to", tmp_path / "mine.yaml")
    text = (tmp_path / "mine.yaml").read_text()
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert text.startswith("# composition, quality of ") and text.count("  # ") + text.count(" # ") >= 8
    assert recipe.prompts["quality"].test == f"{world.prompts}/test/quality.jsonl"
    assert recipe.coldstart.kind == "merge" and recipe.dtype == "float32" and recipe.evaluate is None


def wish(world, **changes):
    """For the tiny base, on a CPU."""
    label = "quality"
    known = {"base": str(world.base), "teachers": {label: str(world.experts / label)}, "hardware": "cpu", "guidance": 1}
    return Wish(**{**known, "prompts": {label: f"{world.prompts}/train/{label}.jsonl"}, **changes})


def test_a_published_base_is_made_to_fit_the_gpu():
    drafted = draft(Wish(base="sd35-medium", teachers={"ocr": "a/b"}, prompts={"ocr": "o.txt"}, hardware="rtx4090"))
    assert drafted.plan.memory_gib["total"] <= ROOM * GPUS["rtx4090"].memory
    assert not [warning for warning in drafted.plan.warnings if "fit" in warning]
    recipe = drafted.recipe
    assert recipe.base == "stabilityai/stable-diffusion-3.5-medium" and recipe.dtype == "bfloat16"
    assert recipe.distill.micro_batch >= 2 and recipe.resolution == 512


def test_the_plan_of_a_draft_is_that_of_its_recipe(world, tmp_path):
    drafted = draft(wish(world))
    (tmp_path / "mine.yaml").write_text(drafted.text)
    assert plan(Session(load_recipe(tmp_path / "mine.yaml"), tmp_path / "out"), flops=1e12) == drafted.plan


def test_activations_are_recomputed_only_where_memory_is_short(world, monkeypatch):
    monkeypatch.setattr(Sd3, "encoder_bytes", lambda self: 0)
    plenty = draft(wish(world))
    assert not plenty.recipe.gradient_checkpointing and plenty.recipe.distill.micro_batch == drafting.MOST
    parts = plenty.plan.memory_gib
    short = parts["total"] - parts["activations"] * (1 - 1.5 / drafting.MOST)
    monkeypatch.setattr(drafting, "_memory", lambda hardware: short / ROOM)
    drafted = draft(wish(world))
    assert drafted.recipe.gradient_checkpointing and drafted.plan.memory_gib["total"] <= short
    assert "gradient_checkpointing: true        # recompute" in drafted.text


def test_a_base_that_cannot_fit_is_refused_with_the_figures(flowopd, tmp_path, monkeypatch, flags):
    monkeypatch.setattr(drafting, "_memory", lambda hardware: 0.3)
    refused = flowopd("init", *flags, "--to", tmp_path / "mine.yaml")
    assert refused.code == 2 and "GiB at the least" in refused.err and refused.err.count("\n") == 1
    assert not (tmp_path / "mine.yaml").exists()


def test_an_evaluation_is_written_for_labels_that_are_rewards(world, tmp_path):
    (tmp_path / "train.txt").write_text('a sign that says "A"\n')
    (tmp_path / "test.txt").write_text('a sign that says "B"\n')
    teachers, prompts = {"ocr": str(world.experts / "quality")}, {"ocr": str(tmp_path / "train.txt")}
    drafted = draft(wish(world, teachers=teachers, prompts=prompts))
    assert drafted.recipe.evaluate.metrics["ocr"].owner == "ocr"
    assert drafted.recipe.prompts["ocr"].test == str(tmp_path / "test.txt")


def test_a_whole_transformer_is_a_teacher_without_a_merge(world):
    drafted = draft(wish(world, teachers={"quality": str(world.base)}))
    assert drafted.recipe.teachers["quality"].transformer == str(world.base) and drafted.recipe.coldstart is None


@pytest.mark.parametrize("value", ["it's: odd", "a, b", "yes", "#5", "", "häuser/ö.txt", "plain/file.txt", "1.5"])
def test_any_value_is_written_so_that_yaml_reads_it_back(value):
    assert yaml.safe_load(f"{{key: {drafting._plain(value)}}}") == {"key": value}


def test_what_flags_do_not_say_is_asked(flowopd, world, tmp_path, monkeypatch):
    asked, answers = [], {
        "Base model": str(world.base),
        "Name of an expert, such as ocr (empty": "",
        "Name of an expert": "quality",
        "Adapter of quality": str(world.experts / "quality"),
        "File of training prompts for quality": f"{world.prompts}/train/quality.jsonl",
        "Hardware": "CPU",
        "Guidance": "1",
    }  # fmt: skip

    def prompt(question, default=None, value_proc=str, err=False, show_default=True):
        assert err, "questions go to standard error"
        asked.append(question)
        return value_proc(next(answer for start, answer in answers.items() if question.startswith(start)))

    monkeypatch.setattr("typer.prompt", prompt)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    made = flowopd("init", "--to", tmp_path / "mine.yaml")
    assert made.code == 0, made.err
    assert len(asked) == 7 and list(load_recipe(tmp_path / "mine.yaml").teachers) == ["quality"]


def test_an_answer_that_cannot_be_is_asked_for_again_at_once(flowopd, world, tmp_path, monkeypatch):
    lines = [
        "nowhere",
        str(world.base),
        "quality",
        "./gone",
        "",
        f"{world.prompts}/train/quality.jsonl",
        "h1000",
        "cpu",
        "much",
        "",
    ]
    monkeypatch.setattr(sys.modules[typer.prompt.__module__], "visible_prompt_func", lambda _: lines.pop(0))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    made = flowopd("init", "--to", tmp_path / "mine.yaml")
    assert made.code == 0 and not lines
    places = [
        made.err.index(said)
        for said in (
            "Error: base nowhere",
            "note: ./gone is not here",
            "Error: there is no GPU 'h1000'",
            "Error: guidance 'much'",
        )
    ]
    assert places == sorted(places)
    assert load_recipe(tmp_path / "mine.yaml").distill.sampling.guidance == 4.5


def test_a_missing_file_of_prompts_in_a_folder_is_no_hub_id(flowopd, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ("--teacher", f"a={world.experts / 'quality'}", "--prompts", "a=prompts/sign.txt", "--gpu", "cpu")
    made = flowopd("init", "--base", world.base, *given, "--to", "mine.yaml")
    assert made.code == 0 and "note: prompts/sign.txt is not here" in made.err


def test_whoever_stops_the_questions_is_told_that_nothing_was_written(flowopd, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise Interrupted(2, "stopped")

    monkeypatch.setattr("typer.prompt", stop)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    made = flowopd("init", "--to", tmp_path / "mine.yaml")
    assert made.code == 130 and made.err.strip() == "stopped by SIGINT; nothing was written"
    assert not (tmp_path / "mine.yaml").exists()


def test_the_mini_base_is_drafted_without_guidance(flowopd, tmp_path):
    given = ["--teacher", "text=package:mini/teachers/text", "--prompts", "text=package:mini/prompts/train/text.jsonl"]
    made = flowopd("init", "--base", "package:mini/base", *given, "--gpu", "cpu", "--to", tmp_path / "mine.yaml")
    assert made.code == 0, made.err
    assert load_recipe(tmp_path / "mine.yaml").distill.sampling.guidance == 1


@pytest.mark.parametrize("flag", ["--teacher", "--prompts"])
def test_what_does_not_ship_is_no_source(flowopd, flags, tmp_path, flag):
    made = flowopd("init", *flags, flag, "other=package:mini/teachers/ocr", "--to", tmp_path / "mine.yaml")
    assert made.code == 2 and "package:mini/teachers/ocr does not ship with flowopd" in made.err


def test_a_prompt_file_that_is_not_here_is_noted_and_a_name_that_comes_twice_is_refused(flowopd, flags, tmp_path):
    made = flowopd("init", *flags, "--prompts", "quality=nowhere.txt", "--to", tmp_path / "mine.yaml")
    assert made.code == 2 and "--prompts gives 'quality' twice" in made.err and not (tmp_path / "mine.yaml").exists()
    made = flowopd("init", *flags[:-2], "--prompts", "quality=nowhere.txt", "--to", tmp_path / "mine.yaml")
    assert made.code == 0 and "note: nowhere.txt is not here; it has to be where the recipe runs" in made.err


@pytest.mark.parametrize(("flag", "value"), [("--gpu", "h1000"), ("--base", "nowhere"), ("--base", "cpu")])
def test_a_flag_that_cannot_be_is_refused_before_anything_is_asked(flowopd, tmp_path, monkeypatch, flag, value):
    monkeypatch.setattr("typer.prompt", lambda *_, **__: pytest.fail("asked"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    also = ("--gpu", "cpu") if flag == "--base" else ()
    made = flowopd("init", flag, value, *also, "--to", tmp_path / "mine.yaml")
    assert made.code == 2 and value in made.err


@pytest.mark.parametrize(
    ("name", "gib", "gpu"),
    [
        ("NVIDIA L40", 44.4, ("rtx6000-ada", "a6000", "l40s")),
        ("NVIDIA L40S", 44.4, ("l40s",)),
        ("NVIDIA L4", 22.0, ("l4",)),
        ("NVIDIA A100-SXM4-80GB", 79.3, ("a100-80gb",)),
        ("NVIDIA A100-PCIE-40GB", 39.4, ("a100-40gb",)),
        ("NVIDIA H100 80GB HBM3", 79.1, ("h100",)),
        ("NVIDIA GeForce RTX 4090", 23.6, ("rtx4090",)),
        ("NVIDIA RTX 6000 Ada Generation", 47.5, ("rtx6000-ada",)),
    ],
)
def test_the_gpu_here_is_known_by_its_memory_and_then_its_name(monkeypatch, name, gib, gpu):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: name)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(total_memory=gib * 2**30))
    assert hardware_here() in gpu
