"""Before anything changes: the ratio is 1, the student alone trains; and in the end every frozen model is as it was."""

import json

import pytest
import torch

from flowopd.adapters import Adapters
from flowopd.errors import CheckpointError, ConfigError, NumericsError
from flowopd.stages import learners
from flowopd.stages.coldstart import cold_start
from flowopd.stages.distill import distill
from flowopd.stages.guard import Guard, digest
from flowopd.stages.learners import Transitions
from flowopd.stages.teacher import train_teacher
from flowopd.train import Trainer

GRPO = {
    "reward": "mini_quality",
    "prompts": "quality",
    "prompts_per_update": 1,
    "group": 3,
    "micro_batch": 2,
    "sampling": {"steps": 3, "sampler": "sde", "window": 2},
    "adapter": {"rank": 4, "alpha": 8},
    "optim": {"updates": 2, "learning_rate": 1e-3},
}


def teaching(world, out, **changes):
    return world.session(out, teachers={"quality": {"train": {**GRPO, **changes}}})


@pytest.fixture
def floors(monkeypatch):
    """Every noise floor that a policy measures."""
    seen, floor = [], Transitions.noise_floor
    monkeypatch.setattr(Transitions, "noise_floor", lambda self, drawn: seen.append(floor(self, drawn)) or seen[-1])
    return seen


@pytest.mark.parametrize("sampler", ["sde", "cps"])
def test_the_ratio_of_a_policy_that_has_not_moved_is_1_to_rounding_and_looked_at_once(world, tmp_path, floors, sampler):
    sampling = {"steps": 3, "sampler": sampler, "window": 2}
    train_teacher(teaching(world, tmp_path / "out", sampling=sampling), "quality")
    assert len(floors) == 1 and 0 <= floors[0] < 1e-6


def test_a_resumed_run_looks_again(world, tmp_path, floors):
    train_teacher(teaching(world, tmp_path / "out"), "quality")
    (tmp_path / "out" / "checkpoints" / "teachers" / "quality" / "step-2").rename(
        tmp_path / "out" / "checkpoints" / "teachers" / "quality" / "aside"
    )
    train_teacher(teaching(world, tmp_path / "out"), "quality")
    assert len(floors) == 2


def test_a_clip_range_within_the_noise_is_refused_with_both_numbers(world, tmp_path, floors):
    session = teaching(world, tmp_path / "out", clip=1e-9)
    with pytest.raises(ConfigError, match=r"off 1 by .*, too much for clip 1e-09; raise clip to .* or more") as caught:
        train_teacher(session, "quality")
    assert f"{floors[0]:.2g}" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "metrics.jsonl").exists() or (tmp_path / "out" / "metrics.jsonl").read_text() == ""


def test_times_that_are_not_those_of_the_rollout_are_noticed(world, tmp_path, monkeypatch):
    replay = learners.replay

    def elsewhere(field, dynamics, walked, i, cond):
        times = walked.sigmas * 0.99
        return replay(field, dynamics, type(walked)(sigmas=times, states=walked.states), i, cond)

    monkeypatch.setattr(learners, "replay", elsewhere)
    with pytest.raises(ConfigError, match="a policy that has not moved"):
        train_teacher(teaching(world, tmp_path / "out"), "quality")


def test_a_loss_without_a_ratio_has_no_noise_floor(world, tmp_path, floors):
    session = teaching(world, tmp_path / "out", loss="matching", sampling={"steps": 3, "sampler": "ode"}, clip=1e-9)
    train_teacher(session, "quality")
    assert floors == []


def test_an_optimiser_of_other_parameters_is_refused(world, tmp_path, distilling, monkeypatch):
    begin = Guard.begin

    def losing(self, trainer, checkpoints):
        trainer.optimizer.param_groups[0]["params"].pop()
        begin(self, trainer, checkpoints)

    monkeypatch.setattr(Guard, "begin", losing)
    with pytest.raises(CheckpointError, match="the optimizer holds"):
        distill(world.session(tmp_path / "out", distill=distilling()))


@pytest.mark.parametrize("model", ["base", "quality"])
def test_a_frozen_model_that_would_train_is_refused(world, tmp_path, distilling, monkeypatch, model):
    begin = Guard.begin

    def loosening(self, trainer, checkpoints):
        next(iter(self._session.weights()[model].values())).requires_grad_(True)
        begin(self, trainer, checkpoints)

    monkeypatch.setattr(Guard, "begin", loosening)
    with pytest.raises(ConfigError, match=f"{model} is to stay as it is, and its .* requires a gradient"):
        distill(world.session(tmp_path / "out", distill=distilling()))


@pytest.mark.parametrize("model", ["base", "quality"])
def test_a_frozen_model_that_changed_is_named_and_no_student_is_written(
    world, tmp_path, distilling, monkeypatch, model
):
    step = Trainer.step
    session = world.session(tmp_path / "out", distill=distilling(updates=3))

    def changing(self, i):
        done = step(self, i)
        if i == 1:
            list(session.weights()[model].values())[-1].data.flatten()[0] += 1e-3
        return done

    monkeypatch.setattr(Trainer, "step", changing)
    with pytest.raises(
        CheckpointError, match=rf"^{model} changed while student was trained, .*1 tensors.*delete .*distill"
    ):
        distill(session)
    assert not (tmp_path / "out" / "student").exists()
    assert list((tmp_path / "out" / "checkpoints" / "distill").glob("step-*")) == []


def test_every_weight_in_memory_belongs_to_one_model(world, tmp_path, distilling):
    session = world.session(tmp_path / "out", distill=distilling())
    session.load_teachers()
    weights = session.weights()
    assert sorted(weights) == ["base", "composition", "quality"]
    ids = [id(tensor) for model in weights.values() for tensor in model.values()]
    network = session.adapters.transformer
    assert sorted(ids) == sorted(map(id, [*network.parameters(), *network.buffers()]))


def test_a_digest_sees_one_bit_in_any_dtype():
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool):
        tensor = torch.zeros(3, 2, dtype=dtype)
        other = tensor.clone()
        other[2, 1] = 1
        assert digest(tensor) == digest(tensor.clone()) == digest(tensor.t().contiguous().t()) != digest(other)
    assert digest(torch.tensor(1.0)) != digest(torch.tensor(-1.0))


def test_what_was_trained_leaves_memory_and_comes_back_frozen(world, tmp_path):
    session = teaching(world, tmp_path / "out")
    train_teacher(session, "quality")
    assert session.adapters.names == ()
    session.load_teachers()
    assert not any(p.requires_grad for p in session.adapters.parameters("quality").values())


def test_layers_that_a_model_does_not_use_are_named(world, tmp_path, distilling, monkeypatch):
    parameters = Adapters.parameters
    extra = torch.nn.Parameter(torch.ones(2))
    more = {"student": {"unused.lora_A": extra}}
    monkeypatch.setattr(Adapters, "parameters", lambda self, name: {**parameters(self, name), **more.get(name, {})})
    with pytest.raises(NumericsError, match=r"no gradient reached unused.lora_A, nor 0 more"):
        distill(world.session(tmp_path / "out", distill=distilling()))


def test_a_fresh_adapter_whose_a_has_no_gradient_yet_is_accepted(world, tmp_path, distilling):
    distill(world.session(tmp_path / "out", distill=distilling(updates=2)))
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and lines[0]["grad_norm"] > 0


def test_a_merge_start_is_checked_like_any_other(world, tmp_path, distilling):
    session = world.session(tmp_path / "out", coldstart={"kind": "merge"}, distill=distilling(updates=1))
    cold_start(session)
    assert (distill(session) / "adapter_config.json").exists()
