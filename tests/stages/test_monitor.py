"""A monitor in a stage: when it looks, what it writes, and what it does when something leaves its band."""

import json

import pytest
import torch
from safetensors.torch import load_file

from flowopd.errors import NumericsError
from flowopd.lora_file import read_lora
from flowopd.models.sd3 import Sd3
from flowopd.monitors.limits import Limits
from flowopd.stages import monitor as room
from flowopd.stages.coldstart import cold_start
from flowopd.stages.distill import distill
from flowopd.stages.teacher import train_teacher

WIDE = {name: [-1e9, 1e9] for name in Limits.model_fields}
GRPO = {
    "reward": "mini_quality",
    "prompts": "quality",
    "prompts_per_update": 1,
    "group": 3,
    "sampling": {"steps": 3, "sampler": "sde", "window": 1},
    "adapter": {"rank": 4, "alpha": 8},
    "optim": {"updates": 3, "learning_rate": 1e-3},
}
SFT = {"kind": "sft", "images": 4, "batch": 3, "sampling": {"steps": 2}, "optim": {"updates": 3}}
STAGES = {
    "distill": lambda session: distill(session),
    "teacher": lambda session: train_teacher(session, "trained"),
    "sft": lambda session: cold_start(session),
}


def watching(**parts):
    return {"every": 2, "prompts": 2, "images": 2, "limits": WIDE, **parts}


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def kept(out, folder="distill"):
    return sorted(path.name for path in (out / "checkpoints" / folder).iterdir())


@pytest.fixture
def troubled(monkeypatch):
    """`troubled(1, 3)`: the looks of these numbers, counted after the start, find a grid."""

    def arrange(*numbers):
        count, measures = [], room.measures

        def measuring(pictures, group):
            count.append(1)
            return measures(pictures, group) | {"grid": 1e12 if len(count) - 2 in numbers else 1.0}

        monkeypatch.setattr(room, "measures", measuring)

    return arrange


@pytest.mark.parametrize("stage", STAGES)
def test_every_trained_stage_is_looked_at_when_it_is_due(world, tmp_path, distilling, stage):
    teachers = world.tree()["teachers"] | {"trained": {"train": GRPO}}
    prompts = world.tree()["prompts"]
    routes = {label: label for label in prompts}
    parts = {
        "distill": {"distill": distilling()},
        "teacher": {"teachers": teachers, "routes": routes},
        "sft": {"coldstart": SFT},
    }
    STAGES[stage](world.session(tmp_path / "out", monitor=watching(), **parts[stage]))
    found = [{name for name in row if name.startswith("monitor/")} for row in rows(tmp_path / "out")]
    names = {f"monitor/{name}{end}" for name in Limits.model_fields for end in ("", "/change")} | {"monitor/drift"}
    assert found == [set(), names, set()]


def test_without_a_monitor_nothing_is_drawn(world, tmp_path, distilling, monkeypatch):
    monkeypatch.setattr(Sd3, "decode", None)
    distill(world.session(tmp_path / "out", distill=distilling()))


def test_a_student_that_has_not_moved_has_changed_nothing_and_is_the_base(world, tmp_path, distilling):
    parts = distilling(updates=2, learning_rate=1e-30)
    distill(world.session(tmp_path / "out", monitor=watching(), distill=parts))
    row = rows(tmp_path / "out")[1]
    assert row["monitor/drift"] == 0 and row["monitor/velocity"] == pytest.approx(1)
    assert [row[f"monitor/{name}/change"] for name in ("noise", "clipped")] == [0, 0]
    assert row["monitor/sharpness/change"] == pytest.approx(1)


def test_looking_does_not_change_what_is_learnt(world, tmp_path, distilling):
    plain, looked = (
        load_file(distill(world.session(tmp_path / name, distill=distilling(), **parts)) / "adapter_model.safetensors")
        for name, parts in (("plain", {}), ("looked", {"monitor": watching(every=1)}))
    )
    assert all(torch.equal(tensor, looked[name]) for name, tensor in plain.items())


def test_the_micro_batch_does_not_change_what_is_seen(world, tmp_path, distilling):
    seen = []
    for size in (1, 3):
        out = tmp_path / str(size)
        distill(world.session(out, monitor=watching(), distill=distilling(updates=2, micro_batch=size)))
        seen.append({name: value for name, value in rows(out)[1].items() if name.startswith("monitor/")})
    assert seen[0] == pytest.approx(seen[1], rel=0.02, abs=0.01)


def test_a_warning_comes_once_a_measure(world, tmp_path, distilling, troubled, capsys):
    troubled(0, 1, 2)
    limits = {**WIDE, "grid": [0, 5]}
    monitor = watching(every=1, limits=limits)
    distill(world.session(tmp_path / "out", monitor=monitor, distill=distilling()))
    said = [line for line in capsys.readouterr().err.splitlines() if "monitor" in line]
    assert said == ["warning: monitor, update 0: grid 1e+12 (allowed 0 to 5); look at what the model draws"]
    assert (tmp_path / "out" / "student").exists()


def test_a_stop_names_the_measure_and_writes_no_student(world, tmp_path, distilling, troubled):
    troubled(1)
    monitor = watching(every=1, action="stop", limits={**WIDE, "grid": [0, 5]})
    with pytest.raises(NumericsError, match=r"^monitor, update 1: grid 1e\+12 \(allowed 0 to 5\); lower the learning"):
        distill(world.session(tmp_path / "out", monitor=monitor, distill=distilling(checkpoint_every=1)))
    assert kept(tmp_path / "out") == ["step-1"] and not (tmp_path / "out" / "student").exists()


def test_weights_that_were_ruined_are_seen_in_the_velocity(world, tmp_path, distilling):
    monitor = {"every": 2, "prompts": 2, "images": 2, "action": "stop", "limits": {**WIDE, "velocity": [0.67, 1.5]}}
    with pytest.raises(NumericsError, match="velocity"):
        distill(world.session(tmp_path / "out", monitor=monitor, distill=distilling(updates=9, learning_rate=3.0)))


def rolling(world, out, distilling, **parts):
    monitor = watching(every=1, action="roll_back", limits={**WIDE, "grid": [0, 5]}, **parts)
    return distill(world.session(out, monitor=monitor, distill=distilling(updates=4, checkpoint_every=1)))


def weights(out, step, folder="distill"):
    return load_file(out / "checkpoints" / folder / f"step-{step}" / "state.safetensors")


def test_a_roll_back_takes_the_last_state_that_passed_and_halves_the_rate(
    world, tmp_path, distilling, troubled, capsys
):
    troubled(2)
    rolling(world, tmp_path / "out", distilling)
    before, after = (weights(tmp_path / "out", 3), weights(tmp_path / "out", 4))
    assert float(before["rate"]) == float(after["rate"]) == 0.5
    assert "update 2: grid 1e+12 (allowed 0 to 5); rolled back, learning rate now x 0.5" in capsys.readouterr().err
    assert kept(tmp_path / "out", "distill-passed") == ["step-4"]


def test_a_roll_back_is_the_state_of_the_look_before(world, tmp_path, distilling, troubled):
    rolling(world, tmp_path / "well", distilling)
    troubled(3)
    rolling(world, tmp_path / "out", distilling)
    last, passed = weights(tmp_path / "out", 4), weights(tmp_path / "out", 3, "distill-passed")
    assert all(torch.equal(tensor, last[name]) for name, tensor in passed.items() if name != "rate")
    assert any(not torch.equal(tensor, weights(tmp_path / "well", 4)[name]) for name, tensor in last.items())


def test_a_run_that_fails_at_once_rolls_back_to_its_start(world, tmp_path, distilling, troubled):
    troubled(0, 1, 2, 3)
    folder = rolling(world, tmp_path / "out", distilling, roll_backs=4)
    assert float(weights(tmp_path / "out", 4)["rate"]) == 0.5**4
    assert kept(tmp_path / "out", "distill-passed") == ["step-0"]
    assert not any(factors.b.any() for factors in read_lora(folder).modules.values())


def test_roll_backs_are_bounded(world, tmp_path, distilling, troubled):
    troubled(0, 1, 2, 3)
    with pytest.raises(NumericsError, match="monitor, update 2: grid"):
        rolling(world, tmp_path / "out", distilling, roll_backs=2)
    assert not (tmp_path / "out" / "student").exists()


def test_a_run_that_rolled_back_and_was_stopped_resumes_bit_for_bit(world, tmp_path, distilling, troubled, monkeypatch):
    troubled(1)
    rolling(world, tmp_path / "whole", distilling)
    monkeypatch.undo()
    troubled(1)
    rolling(world, tmp_path / "parts", distilling)
    (tmp_path / "parts" / "checkpoints" / "distill" / "step-4").rename(tmp_path / "aside")
    monkeypatch.undo()
    troubled()
    rolling(world, tmp_path / "parts", distilling)
    here, there = (weights(tmp_path / name, 4) for name in ("whole", "parts"))
    assert all(torch.equal(tensor, there[name]) for name, tensor in here.items())
