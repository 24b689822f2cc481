"""Each command does its stage, says on standard output where the result is, and leaves it there."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from flowopd import durable
from flowopd.hub import located
from flowopd.lora_file import read_lora
from flowopd.manifest import newest_run
from flowopd.results import Results
from flowopd.stages.curve import Curve

LABELS = ("composition", "quality")
SHORT = (
    "distill.optim.updates=1",
    "distill.samples_per_label=1",
    "distill.sampling.steps=2",
    "distill.adapter.rank=4",
)


@pytest.fixture
def flags(world):
    """The tiny world as flags."""
    flags = ["--base", world.base]
    for label in LABELS:
        flags += ["--teacher", f"{label}={world.experts / label}"]
    return flags


@pytest.fixture
def prompts(world):
    return [part for label in LABELS for part in ("--prompts", f"{label}={world.prompts}/train/{label}.jsonl")]


def sets(*changes):
    return [part for change in changes for part in ("--set", change)]


def test_merge_by_flags_writes_an_adapter(flowopd, flags, tmp_path):
    made = flowopd("merge", *flags, "--rank", 3, "--out", tmp_path / "out")
    assert made.code == 0 and made.out.strip() == str(tmp_path / "out" / "coldstart")
    assert {factors.rank for factors in read_lora(tmp_path / "out" / "coldstart").modules.values()} == {3}


def test_sft_by_flags_writes_an_adapter(flowopd, flags, prompts, tmp_path):
    few = sets("coldstart.images=2", "coldstart.batch=2", "coldstart.optim.updates=1", "coldstart.sampling.steps=1")
    made = flowopd("sft", *flags, *prompts, *few, "--out", tmp_path / "out")
    assert made.code == 0 and made.out.strip() == str(tmp_path / "out" / "coldstart")
    assert read_lora(tmp_path / "out" / "coldstart").modules


def test_distill_by_flags_writes_a_student(flowopd, flags, prompts, tmp_path):
    made = flowopd("distill", *flags, *prompts, *sets(*SHORT), "--out", tmp_path / "out")
    assert made.code == 0 and made.out.strip() == str(tmp_path / "out" / "student")
    assert read_lora(tmp_path / "out" / "student").modules


def test_teacher_by_flags_writes_an_expert(flowopd, world, tmp_path):
    train = "teachers.look.train."
    few = sets(
        f"{train}group=2",
        f"{train}prompts_per_update=1",
        f"{train}optim.updates=1",
        f"{train}sampling={{steps: 2, sampler: sde, window: 1}}",
    )
    prompts = f"quality={world.prompts}/train/quality.jsonl"
    made = flowopd(
        *("teacher", "--name", "look", "--reward", "mini_quality", "--base", world.base, "--prompts", prompts),
        *few,
        *("--out", tmp_path / "out"),
    )
    assert made.code == 0 and made.out.strip() == str(tmp_path / "out" / "teachers" / "look")
    assert read_lora(tmp_path / "out" / "teachers" / "look").modules


@pytest.mark.parametrize("command", ["teacher", "merge", "sft", "distill"])
def test_without_t5_is_a_flag_of_every_command_that_takes_a_base(flowopd, command, world, tmp_path):
    words = [command, "--base", world.base, *(["--reward", "mini_quality"] if command == "teacher" else [])]
    shown = [flowopd(*words, *flags, "--out", tmp_path, "--dry-run").out for flags in ([], ["--no-t5"])]
    assert [yaml.safe_load(text)["t5"] for text in shown] == [True, False]
    assert "--no-t5" in flowopd(command, "--help").out


def test_a_student_without_t5_is_trained_sampled_and_exported_without_it(flowopd, flags, prompts, tmp_path):
    out = tmp_path / "out"
    made = flowopd("distill", *flags, "--no-t5", *prompts, *sets(*SHORT), "--out", out)
    assert made.code == 0, made.err
    assert json.loads((out / "manifest.json").read_text())["recipe"]["t5"] is False
    assert flowopd("sample", "--out", out, "-p", "a ring", "--to", tmp_path / "to").code == 0
    assert flowopd("export", "--out", out).code == 0
    assert "text_encoder_3=None" in (out / "export" / "diffusers" / "README.md").read_text()


def test_run_goes_on_with_what_is_left(flowopd, world, done, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(world.whole()))
    student = (done / "student" / "adapter_model.safetensors").read_bytes()
    (done / "results.json").unlink()
    made = flowopd("run", recipe, "--out", done)
    assert made.code == 0 and made.out.splitlines()[-1] == str(done / "report.html")
    assert Results.load(done / "results.json").models.keys() >= {"base", "student"}
    assert (done / "student" / "adapter_model.safetensors").read_bytes() == student


def test_eval_takes_the_recipe_of_the_run(flowopd, done):
    assert flowopd("eval", "--out", done, "--limit", 2).code == 0
    assert Results.load(done / "results.json").estimate("student", "quality").n == 2


def test_eval_without_a_limit_takes_every_prompt(flowopd, done, world):
    assert flowopd("eval", "--out", done, "--limit", 0).code == 0
    lines = (world.prompts / "test" / "quality.jsonl").read_text().splitlines()
    assert Results.load(done / "results.json").estimate("student", "quality").n == len(lines)


def test_eval_takes_rows_by_name_checkpoints_among_them(flowopd, done):
    assert flowopd("eval", "--out", done, "--models", "base,checkpoint:distill/2").code == 0
    assert list(Results.load(done / "results.json").models) == ["base", "checkpoint:distill/2"]
    wrong = flowopd("eval", "--out", done, "--models", "base,checkpoint:distill/20")
    assert wrong.code == 2 and "did you mean 'checkpoint:distill/2'?" in wrong.err


def test_eval_of_checkpoints_writes_a_curve(flowopd, done):
    assert flowopd("eval", "--out", done, "--models", "student", "--checkpoints").code == 0
    assert [point.update for point in Curve.load(done / "curve.json").points] == [0, 2]


def test_interference_prints_a_table_and_says_where_it_lies(flowopd, done):
    made = flowopd("interference", "--out", done, "--repeats", 1)
    assert made.code == 0 and made.out.splitlines()[-1] == str(done / "interference.json")
    assert "loss of distill, weights of student" in made.out and "composition" in made.out
    wrong = flowopd("interference", "--out", done, "--stage", "grpo_mix")
    assert wrong.code == 2 and "the recipe has no 'grpo_mix'" in wrong.err


@pytest.mark.parametrize("model", ["base", "teacher:quality", "merge", "student", "checkpoint:distill/2"])
def test_sample_draws_with_every_model_of_a_run(flowopd, done, tmp_path, model):
    made = flowopd("sample", "--out", done, "--model", model, "-p", "a red bolt", "-p", "a ring", "--to", tmp_path)
    files = made.out.split()
    assert made.code == 0 and len(files) == 2
    assert {Image.open(file).size for file in files} == {(64, 64)}


def test_other_prompts_and_seeds_may_be_drawn_into_the_same_folder(flowopd, done, tmp_path):
    folder = tmp_path / "pictures"
    assert flowopd("sample", "--out", done, "-p", "A ring, red!", "-p", "a ring red", "--to", folder).code == 0
    assert flowopd("sample", "--out", done, "-p", "a ring red", "--seed", "1", "--to", folder).code == 0
    assert flowopd("sample", "--out", done, "-p", "¿?", "--to", folder).code == 0
    names = [
        "a-ring-red-0-student-2.png",
        "a-ring-red-0-student.png",
        "a-ring-red-1-student.png",
        "prompt-0-student.png",
    ]
    assert sorted(file.name for file in folder.iterdir()) == names
    again = flowopd("sample", "--out", done, "-p", "a ring red", "--to", folder)
    assert again.code == 2 and "another --seed" in again.err


def test_pictures_lie_in_the_run_that_drew_them(flowopd, done, tmp_path):
    run = shutil.copytree(done, tmp_path / "run")
    made = flowopd("sample", "--out", run, "-p", "a ring")
    assert made.code == 0 and made.out.split() == [str(run / "pictures" / "a-ring-0-student.png")]


def test_sample_draws_a_picture_of_each_prompt_of_a_file(flowopd, done, tmp_path):
    file, to = tmp_path / "mine.txt", tmp_path / "to"
    file.write_text("a ring\na red ring\n")
    made = flowopd("sample", "--out", done, "--prompts-file", file, "--to", to)
    assert made.code == 0, made.err
    assert made.out.split() == [str(to / "a-ring-0-student.png"), str(to / "a-red-ring-0-student.png")]


@pytest.mark.parametrize(
    ("layout", "first"), [("geneval", "00000/samples/0000.png"), ("compbench", "samples/*_000000.png")]
)
def test_sample_draws_a_file_into_the_folders_of_a_benchmark(flowopd, done, world, tmp_path, layout, first):
    file, to = world.prompts / "test" / "composition.jsonl", tmp_path / "to"
    flags = ("--prompts-file", file, "--layout", layout, "--images-per-prompt", 2, "--to", to)
    made = flowopd("sample", "--out", done, *flags)
    assert made.code == 0 and made.out.strip() == str(to), made.err
    assert len(list(to.rglob("*.png"))) == 2 * len(file.read_text().splitlines())
    assert [Image.open(picture).size for picture in to.glob(first)] == [(64, 64)]
    assert flowopd("sample", "--out", done, *flags).code == 0


def test_export_writes_a_folder_a_format_and_says_where(flowopd, done):
    made = flowopd("export", "--out", done, "--to", "peft", "--to", "comfyui", "--model", "teacher:quality")
    assert made.code == 0, made.err
    assert made.out.split() == [str(done / "export" / "peft"), str(done / "export" / "comfyui")]
    assert {path.name for path in (done / "export" / "comfyui").iterdir()} == {
        "README.md",
        "done-teacher-quality.safetensors",
    }
    assert "README.md" in made.err


def test_export_without_a_format_is_for_diffusers(flowopd, done, tmp_path):
    made = flowopd("export", "--out", done, "--dest", tmp_path / "mine")
    assert made.code == 0 and made.out.strip() == str(tmp_path / "mine")
    assert read_lora(tmp_path / "mine").modules.keys() == read_lora(done / "student").modules.keys()


def test_an_export_can_be_run_again_elsewhere_and_leaves_the_run_as_it_was(flowopd, done, tmp_path):
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    for form in ("merged", "diffusers"):
        assert flowopd("export", "--out", done, "--to", form, "--dest", tmp_path / form).code == 0
    assert {path: path.read_bytes() for path in done.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("form", ["peft", "comfyui"])
def test_an_export_on_a_full_disk_is_one_line_and_leaves_nothing(flowopd, done, monkeypatch, form):
    def full(stream, content):
        stream.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    monkeypatch.setattr(durable, "_all", full)
    ended = flowopd("export", "--out", done, "--to", form)
    assert ended.code == 2 and not ended.out
    assert ended.err.splitlines() == [
        f"error: {done}/export/{form} cannot be written (No space left on device); make room there, or choose --dest"
    ]
    assert {path: path.read_bytes() for path in done.rglob("*") if path.is_file()} == before
    assert not (done / "export").exists()


def test_a_merged_model_is_written_in_the_dtype_that_is_asked_for(flowopd, done):
    made = flowopd("export", "--out", done, "--to", "merged", "--dtype", "bfloat16")
    assert made.code == 0, made.err
    (file,) = (done / "export" / "merged" / "transformer").glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.bfloat16}


def test_report_writes_the_page(flowopd, done):
    (done / "report.html").unlink()
    made = flowopd("report", "--out", done)
    assert made.code == 0 and made.out.strip() == str(done / "report.html")
    assert "student" in (done / "report.html").read_text()


def test_looking_at_a_run_does_not_change_its_recipe(flowopd, done, finished, tmp_path):
    flowopd("sample", "--out", done, "-p", "a ring", "--to", tmp_path, "--set", "evaluate.sampling.steps=1")
    manifests = [json.loads((run / "manifest.json").read_text())["recipe"] for run in (done, finished)]
    assert manifests[0]["distill"] == manifests[1]["distill"]


def test_mini_prompts_writes_the_shipped_files_again(flowopd, tmp_path):
    assert flowopd("mini", "prompts", "--out", tmp_path / "prompts").code == 0
    shipped = located("package:mini/prompts")
    for file in shipped.rglob("*.jsonl"):
        assert (tmp_path / "prompts" / file.relative_to(shipped)).read_bytes() == file.read_bytes()


def test_doctor_says_what_it_looked_at_and_makes_no_folder(flowopd, world, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(world.whole()))
    made = flowopd("doctor", recipe, "--out", tmp_path / "out")
    assert made.code == 0 and made.err.startswith("next: flowopd run") and not (tmp_path / "out").exists()
    assert {line[:8].strip() for line in made.out.splitlines()} <= {"ok", "warning"}
    assert "judge mini_quality: scores 4 golden pictures" in made.out


def test_doctor_goes_on_with_the_changes_that_it_was_given(flowopd, world, tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps(world.tree(distill={})))
    made = flowopd(
        "doctor", tmp_path / "recipe.yaml", "--set", "distill.anchor={model: base}", "--out", tmp_path / "out"
    )
    said = f"flowopd run {tmp_path / 'recipe.yaml'} --set 'distill.anchor={{model: base}}' --out {tmp_path / 'out'}"
    assert made.code == 0 and said in made.err


def test_doctor_without_a_recipe_looks_at_the_machine(flowopd):
    row = json.loads(flowopd("doctor", "--json").out)
    assert row["ok"] and [check["name"] for check in row["checks"]] == ["versions", "device", "threads", "hub", "disk"]


def test_doctor_ends_with_1_and_a_list_of_what_failed(flowopd, world, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(world.whole()))
    wrong = sets("routes={}", "prompts.quality.test=no.txt", "evaluate.metrics.quality.reward=mini_qualty")
    made = flowopd("doctor", recipe, *wrong, "--json")
    row = json.loads(made.out)
    assert made.code == 1 and made.out.count("\n") == 1 and not row["ok"]
    assert all(set(check) == {"name", "state", "fact", "mend"} for check in row["checks"])
    named = [check["name"] for check in row["checks"] if check["state"] == "failed"]
    assert {"prompts quality.test", "judge mini_qualty"} <= set(named)
    plain = flowopd("doctor", recipe, *wrong)
    assert plain.code == 1 and plain.err == f"failed: {', '.join(named)}\n"
    assert (
        f"failed   prompts quality.test: prompt file no.txt does not exist in {os.getcwd()}; check the path"
        in plain.out
    )


def test_doctor_draws_a_table_on_a_terminal(flowopd, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    shown = flowopd("doctor")
    assert shown.code == 0 and "versions" in shown.out and "┃" in shown.out


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder to be in, whose runs are made up."""
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("third", "first", "second")):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        for file in ("manifest.json", "metrics.jsonl"):
            (run / file).write_text("")
            os.utime(run / file, (0, 0))
        os.utime(run / "metrics.jsonl", (1000 - age, 1000 - age))
    return tmp_path


def test_the_run_that_was_last_worked_on_is_meant_and_named(flowopd, elsewhere, done):
    shutil.copytree(done, elsewhere / "runs" / "new")
    os.utime(elsewhere / "runs" / "new" / "manifest.json")
    made = flowopd("report")
    assert made.code == 0 and made.out.strip() == "runs/new/report.html"
    assert made.err.startswith("run: runs/new, the last one worked on; --out names another\n")


def test_what_a_run_wrote_last_decides_which_is_the_last(elsewhere):
    assert newest_run(Path("runs")) == Path("runs/third")


def test_without_any_run_the_mend_is_named(flowopd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in (("eval",), ("report",), ("export",), ("sample", "-p", "a ring"), ("interference",)):
        refused = flowopd(*command)
        assert refused.code == 2 and "there is no run in runs; give its folder with --out" in refused.err, refused.err
        assert refused.err.count("\n") == 1


def test_help_looks_for_no_run(flowopd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = flowopd("eval", "--help")
    assert shown.code == 0 and "the last one in runs" in " ".join(shown.out.split())


def test_a_recipe_runs_where_its_name_says(flowopd, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(json.dumps(world.whole()))
    shown = flowopd("doctor", "mine.yaml")
    assert "--out runs/mine" in shown.err, shown.err
    assert "--- # runs/mine\n" in flowopd("run", "mine.yaml", "--dry-run").out


def test_a_recipe_that_is_named_means_its_own_run_and_leaves_the_last_one_alone(flowopd, world, elsewhere):
    (elsewhere / "mine.yaml").write_text(json.dumps(world.whole()))
    drawn = flowopd("sample", "--config", "mine.yaml", "--model", "base", "-p", "a ring", "--to", "pictures")
    assert drawn.code == 0, drawn.err
    assert (elsewhere / "runs" / "mine" / "manifest.json").exists()
    assert not (elsewhere / "runs" / "third" / "manifest.json").read_text()


def test_several_processes_have_to_be_told_which_run(flowopd, elsewhere, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = flowopd("report")
    assert refused.code == 2 and refused.err == "error: which run? several processes need its folder: --out FOLDER\n"


def test_a_run_that_has_made_nothing_is_not_the_last_one(elsewhere):
    begun = elsewhere / "runs" / "begun"
    begun.mkdir()
    for file in ("manifest.json", ".lock"):
        (begun / file).write_text("")
    assert newest_run(Path("runs")) == Path("runs/third")
    shutil.rmtree(elsewhere / "runs")
    begun.mkdir(parents=True)
    (begun / "manifest.json").write_text("")
    assert newest_run(Path("runs")) == Path("runs/begun")


def test_a_run_that_is_refused_leaves_no_folder(flowopd, world, tmp_path):
    tree = world.whole()
    tree["evaluate"]["metrics"]["quality"]["reward"] = "mini_qualty"
    (tmp_path / "mine.yaml").write_text(json.dumps(tree))
    refused = flowopd("run", tmp_path / "mine.yaml", "--out", tmp_path / "out")
    assert refused.code == 2 and "mini_qualty" in refused.err
    assert not (tmp_path / "out").exists()


def test_a_run_says_what_it_will_do_and_what_was_done(flowopd, world, tmp_path):
    (tmp_path / "mine.yaml").write_text(json.dumps(world.tree(coldstart={"kind": "merge"})))
    for fate in ("to do", "done, skipped"):
        shown = flowopd("run", tmp_path / "mine.yaml", "--out", tmp_path / "out")
        assert shown.code == 0 and f"{tmp_path / 'out'}: coldstart ({fate})\n" in shown.err


def test_a_run_of_a_suite_may_be_the_last_one(elsewhere):
    run = elsewhere / "runs" / "all" / "student" / "seed-0"
    run.mkdir(parents=True)
    for file in ("manifest.json", "metrics.jsonl"):
        (run / file).write_text("")
    assert newest_run(Path("runs")) == Path("runs/all/student/seed-0")
