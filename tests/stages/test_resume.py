"""A stage that was stopped and goes on ends where one ends that was never stopped, bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file

from flowopd.checkpoint import Checkpoints
from flowopd.errors import CheckpointError
from flowopd.recipe import make_recipe
from flowopd.session import Session
from flowopd.stages.coldstart import cold_start
from flowopd.stages.distill import distill
from flowopd.stages.teacher import train_teacher
from flowopd.train import Trainer

OPTIM = {"updates": 4, "learning_rate": 1e-3, "warmup": 2, "decay": True, "ema": 0.9, "checkpoint_every": 1}
GRPO = {
    "reward": "mini_quality",
    "prompts": "quality",
    "prompts_per_update": 1,
    "group": 3,
    "sampling": {"steps": 3, "sampler": "sde", "window": 1},
    "adapter": {"rank": 4, "alpha": 8},
    "optim": OPTIM,
}
DISTILL = {
    "samples_per_label": 2,
    "sampling": {"steps": 3, "sampler": "sde"},
    "query": {"kind": "random", "k": 2},
    "adapter": {"rank": 8, "targets": ["to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "proj_out"]},
    "optim": OPTIM,
}
SFT = {"kind": "sft", "images": 4, "batch": 3, "sampling": {"steps": 2}, "optim": OPTIM}

STAGES = {
    "distill": (distill, {"coldstart": {"kind": "merge"}, "distill": DISTILL}),
    "teacher": (lambda session: train_teacher(session, "quality"), {"teachers": {"quality": {"train": GRPO}}}),
    "sft": (cold_start, {"coldstart": SFT}),
}


class Stopped(Exception):
    """What stops a stage, once."""


def stop_before_the_third_step(patch):
    step = Trainer.step

    def stopping(self, i):
        if i == 2:
            raise Stopped
        return step(self, i)

    patch.setattr(Trainer, "step", stopping)


def stop_before_the_third_checkpoint(patch):
    save = Checkpoints.save

    def stopping(self, i, *state):
        if i == 3:
            raise Stopped
        save(self, i, *state)

    patch.setattr(Checkpoints, "save", stopping)


def rows(out):
    """The rows of a run without their times."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def start(world, name, out):
    """One call of a stage, in a session of its own."""
    stage, parts = STAGES[name]
    session = world.session(out, **parts)
    if name == "distill" and not (out / "coldstart").exists():
        cold_start(session)
    return load_file(stage(session) / "adapter_model.safetensors")


@pytest.mark.parametrize("stop", [stop_before_the_third_step, stop_before_the_third_checkpoint])
@pytest.mark.parametrize("name", STAGES)
def test_stopped_and_resumed_is_uninterrupted(world, tmp_path, name, stop):
    whole = start(world, name, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        stop(patch)
        start(world, name, tmp_path / "stopped")
    resumed = start(world, name, tmp_path / "stopped")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")


def test_a_stage_that_ended_is_the_same_when_it_is_called_again(world, tmp_path):
    once = start(world, "sft", tmp_path / "out")
    again = start(world, "sft", tmp_path / "out")
    assert all(torch.equal(tensor, again[key]) for key, tensor in once.items())


def test_going_on_warns_of_nothing(world, tmp_path, recwarn):
    start(world, "sft", tmp_path / "out")
    recwarn.clear()
    start(world, "sft", tmp_path / "out")
    assert [str(warning.message) for warning in recwarn if warning.category is UserWarning] == []


def test_a_damaged_checkpoint_costs_the_updates_since_the_one_before(world, tmp_path, capsys):
    whole = start(world, "sft", tmp_path / "out")
    file = tmp_path / "out" / "checkpoints" / "sft" / "step-4" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    again = start(world, "sft", tmp_path / "out")
    assert (
        "step-4 is damaged (state.safetensors is not what was written); going on from step-3" in capsys.readouterr().err
    )
    assert all(torch.equal(tensor, again[key]) for key, tensor in whole.items())


@pytest.mark.parametrize(("key", "value"), [("t5", False), ("dtype", "bfloat16"), ("resolution", 32)])
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_does_not_go_on_with_a_base_that_is_run_otherwise(world, tmp_path, name, key, value):
    start(world, name, tmp_path / "out")
    stage, parts = STAGES[name]
    session = Session(make_recipe(world.tree(**parts, **{key: value})), tmp_path / "out")
    with pytest.raises(CheckpointError, match=f"another {key}"):
        stage(session)
