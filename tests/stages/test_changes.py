"""What may change between two calls of a run, and what may not: it is named with the old value and the new."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowopd.checkpoint import Checkpoints
from flowopd.errors import CheckpointError, ConfigError, DataError
from flowopd.pipeline import open_run, run
from flowopd.recipe import make_recipe
from flowopd.session import Session
from flowopd.stages.distill import distill
from flowopd.train import Trainer

WEIGHTS = "adapter_model.safetensors"


class Stopped(Exception):
    """What stops a training."""


@pytest.fixture(scope="module")
def own(world, tmp_path_factory):
    """A world of this file's own, whose files a test may change in a copy."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("base", "experts", "prompts"):
        shutil.copytree(getattr(world, name), folder / name)
    return type(world)(*(folder / name for name in ("base", "experts", "prompts")))


@pytest.fixture(scope="module")
def stopped(own, distilling, tmp_path_factory):
    """The folder of a run that was stopped in the third update of its distillation."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    step = Trainer.step

    def stopping(self, i):
        if i == 2:
            raise Stopped
        return step(self, i)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Trainer, "step", stopping)
        run(make_recipe(tree(own, distilling)), out)
    return out


def tree(world, distilling):
    return world.tree(coldstart={"kind": "merge"}, distill=distilling(updates=3, checkpoint_every=1))


@pytest.fixture
def again(stopped, tmp_path):
    """A copy of the stopped run, to go on with."""
    return shutil.copytree(stopped, tmp_path / "again")


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


REFUSED = {
    "seed=1": r"seed \(0 -> 1\)",
    "t5=false": r"t5 \(True -> False\)",
    "dtype=bfloat16": r"dtype \('float32' -> 'bfloat16'\)",
    "resolution=32": r"resolution \(none -> 32\)",
    "distill.loss=log_ratio": r"distill.loss \('closed_form' -> 'log_ratio'\)",
    "distill.weighting=ode": r"distill.weighting \('velocity' -> 'ode'\)",
    "distill.anchor.weight=0.5": r"distill.anchor.weight \(0.02 -> 0.5\)",
    "distill.anchor.model=quality": r"distill.anchor.model \('base' -> 'quality'\)",
    "distill.sampling.steps=3": r"distill.sampling.steps \(2 -> 3\)",
    "distill.samples_per_label=3": r"distill.samples_per_label \(2 -> 3\)",
    "distill.labels_per_update=1": r"distill.labels_per_update \(none -> 1\)",
    "distill.query.kind=random": r"distill.query.kind \('all' -> 'random'\)",
    "distill.optim.learning_rate=0.1": r"distill.optim.learning_rate \(0.001 -> 0.1\)",
    "distill.optim.updates=9": r"distill.optim.updates \(3 -> 9\)",
    "distill.optim.ema=0.5": r"distill.optim.ema \(0.9 -> 0.5\)",
    "distill.adapter.rank=4": r"distill.adapter.rank \(8 -> 4\)",
    "teachers.quality.guidance=2": r"teachers.quality.guidance \(none -> 2.0\)",
    "routes={composition: quality, quality: quality}": r"routes.composition \(none -> 'quality'\)",
    "route_by=text": r"route_by \(none -> 'text'\)",
    "coldstart.rank=2": r"coldstart.rank \(none -> 2\)",
}

HARMLESS = (
    "distill.micro_batch=1",
    "distill.optim.checkpoint_every=2",
    "distill.optim.keep=1",
    "distill.optim.best={metric: gap}",
    "gradient_checkpointing=true",
    "samples.prompts_per_label=1",
    "evaluate={metrics: {look: {reward: mini_quality, prompts: quality}}, limit: 1, sampling: {steps: 1}}",
)


@pytest.mark.parametrize("change", REFUSED)
def test_what_changes_the_student_is_refused_with_both_values(own, distilling, again, change):
    before = content(again)
    with pytest.raises((ConfigError, CheckpointError), match=REFUSED[change]) as refused:
        run(make_recipe(tree(own, distilling), [change]), again)
    assert "\n" not in str(refused.value) and content(again) == before


@pytest.mark.parametrize("change", [change for change in REFUSED if change.startswith(("distill", "seed", "teachers"))])
def test_a_checkpoint_itself_refuses_what_changes_the_student(own, distilling, again, change):
    with pytest.raises(CheckpointError, match=r"step-2 belongs to a run with another .* -> "):
        distill(Session(make_recipe(tree(own, distilling), [change]), again))


@pytest.mark.parametrize("change", HARMLESS)
def test_what_changes_nothing_may_change(own, distilling, again, change):
    run(make_recipe(tree(own, distilling), [change]), again)
    assert (again / "student" / WEIGHTS).exists()
    lines = [json.loads(line) for line in (again / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["stage"] == "distill"] == [0, 1, 2]


@pytest.mark.parametrize("change", ["compile=true", "device=cpu", *HARMLESS])
def test_a_run_is_the_same_whatever_changes_nothing(own, distilling, change):
    names = ("teachers", "routes", "coldstart", "distill")
    here, there = (make_recipe(tree(own, distilling), changes).identity(*names) for changes in ([], [change]))
    assert here == there


def test_prompts_that_are_not_trained_on_may_change(own, distilling, again):
    before, prompts = content(again), own.prompts / "test" / "quality.jsonl"
    open_run(make_recipe(tree(own, distilling), [f"prompts.quality.unseen={prompts}"]), again)
    assert content(again) == before
    with pytest.raises(ConfigError, match=r"prompts.quality.train \("):
        open_run(make_recipe(tree(own, distilling), [f"prompts.quality.train={prompts}"]), again)


def changed_base(world):
    file = world.base / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


def changed_teacher(world):
    file = world.experts / "quality" / WEIGHTS
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})


def changed_prompts(world):
    file = world.prompts / "train" / "quality.jsonl"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))


FILES = {
    "file of base": changed_base,
    "file of quality": changed_teacher,
    "file of prompts.quality.train": changed_prompts,
}


@pytest.fixture
def moving(own, again, tmp_path):
    """The world of a stopped run, to be changed and put back."""
    kept = shutil.copytree(own.base.parent, tmp_path / "kept")
    yield own
    shutil.rmtree(own.base.parent)
    shutil.copytree(kept, own.base.parent)


@pytest.mark.parametrize("title", FILES)
def test_another_file_by_the_same_name_is_refused_with_both_hashes(moving, distilling, again, title):
    FILES[title](moving)
    before = content(again)
    with pytest.raises(ConfigError, match=rf"was trained with another {title} \(sha256 \w{{8}} -> sha256 \w{{8}}\)"):
        run(make_recipe(tree(moving, distilling)), again)
    with pytest.raises(CheckpointError, match=rf"another {title} \(sha256 \w{{8}} -> sha256 \w{{8}}\)"):
        distill(Session(make_recipe(tree(moving, distilling)), again))
    changed = {path for path, old in before.items() if content(again).get(path) != old}
    assert not changed


def test_an_expert_that_nothing_learns_from_may_change(moving, tmp_path):
    mix = {
        "tasks": {"quality": {"reward": "mini_quality", "prompts": "quality"}},
        "prompts_per_update": 1,
        "group": 2,
        "sampling": {"steps": 2, "sampler": "sde", "window": 1},
        "adapter": {"rank": 2},
        "optim": {"updates": 1},
    }
    recipe = make_recipe(moving.tree(grpo_mix=mix))
    run(recipe, tmp_path / "mix")
    weights = (tmp_path / "mix" / "grpo_mix" / WEIGHTS).read_bytes()
    changed_teacher(moving)
    run(recipe, tmp_path / "mix")
    assert (tmp_path / "mix" / "grpo_mix" / WEIGHTS).read_bytes() == weights


def test_a_file_that_only_the_evaluation_reads_may_change(moving, distilling, again):
    file = moving.prompts / "test" / "quality.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    run(make_recipe(tree(moving, distilling)), again)


@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS])
@pytest.mark.parametrize("adapter", ["coldstart", "student"])
def test_what_a_stage_made_and_someone_changed_is_refused(own, distilling, again, adapter, name):
    run(make_recipe(tree(own, distilling)), again)
    file = again / adapter / name
    file.write_bytes(file.read_bytes().replace(b"lora", b"LORA", 1))
    before = content(again)
    with pytest.raises(CheckpointError, match=f"{adapter} was changed .*: {name} is not what was written; restore it"):
        run(make_recipe(tree(own, distilling)), again)
    assert content(again) == before


def test_a_student_that_someone_changed_is_not_written_over_by_its_stage(own, distilling, again):
    run(make_recipe(tree(own, distilling)), again)
    file = again / "student" / WEIGHTS
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file)
    changed = file.read_bytes()
    with pytest.raises(CheckpointError, match=f"{file} is there and differs from what is made now; move or delete"):
        distill(open_run(make_recipe(tree(own, distilling)), again))
    assert file.read_bytes() == changed


def test_a_stage_that_is_called_again_leaves_what_it_made(own, distilling, again):
    run(make_recipe(tree(own, distilling)), again)
    before = content(again / "student")
    (again / "student" / "README.md").write_text("mine")
    distill(open_run(make_recipe(tree(own, distilling)), again))
    (again / "student" / "README.md").unlink()
    assert content(again / "student") == before


def test_a_stage_that_was_killed_while_it_wrote_its_adapter_is_not_taken_for_done(own, distilling, again, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr("flowopd.stages.distill.write_folder", lambda folder, files: stop())
        run(make_recipe(tree(own, distilling)), again)
    assert not (again / "student").exists()
    run(make_recipe(tree(own, distilling)), again)
    assert (again / "student" / WEIGHTS).exists()


def stop():
    raise Stopped


def test_the_same_adapter_is_the_same_bytes(own, distilling, again, tmp_path):
    other = shutil.copytree(again, tmp_path / "other")
    for out in (again, other):
        run(make_recipe(tree(own, distilling)), out)
    assert content(again / "student") == content(other / "student")


@pytest.mark.parametrize(("text", "said"), [("{", "is not JSON"), ("[]", "holds no recipe")])
def test_a_manifest_that_is_none_is_named(own, distilling, again, text, said):
    (again / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=f"manifest.json {said}.*restore it"):
        run(make_recipe(tree(own, distilling)), again)


def test_a_checkpoint_holds_what_the_run_depends_on(stopped):
    found = Checkpoints(stopped / "checkpoints" / "distill", {})
    facts = json.loads((found.folder / "step-2" / "state.json").read_text())
    assert facts["step"] == facts["rows"] == 2 and facts["metrics"]["gap"] > 0
    identity = facts["identity"]
    assert identity["sha256"].keys() == {"base", "composition", "quality"} and identity["sha256_coldstart"]
    assert identity["sha256_prompts"].keys() == {"composition.train", "quality.train"}
    assert identity["distill"]["loss"] == "closed_form" and "micro_batch" not in identity["distill"]
    tensors = load_file(found.folder / "step-2" / "state.safetensors")
    kinds = {name.split(".")[0] for name in tensors}
    assert kinds == {"weight", "ema", "adam", "ema_updates", "rate"}
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_the_hash_of_the_results_changes_with_what_they_depend_on_alone(moving, again):
    metrics = {"look": {"reward": "mini_quality", "prompts": "quality"}}
    evaluated = moving.tree(evaluate={"metrics": metrics, "limit": 1, "sampling": {"steps": 1}, "models": ["base"]})

    def hashed(*changes):
        out = again.with_name("judged")
        settings = run(make_recipe(evaluated, changes), out).settings
        shutil.rmtree(out)
        return settings["hash"]

    first = hashed()
    assert hashed() == hashed("samples.prompts_per_label=1") == first
    others = [hashed(change) for change in ("evaluate.seed=1", "evaluate.sampling.steps=2", "dtype=bfloat16")]
    file = moving.prompts / "test" / "quality.jsonl"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    assert len({first, *others, hashed()}) == 5
