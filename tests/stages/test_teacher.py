"""An expert trained by GRPO is an adapter like any other, and nothing but that adapter has moved."""

import json

import pytest
import torch

from flowopd.errors import ConfigError
from flowopd.lora_file import read_lora
from flowopd.stages.teacher import train_teacher

GRPO = {
    "reward": "mini_quality",
    "prompts": "quality",
    "prompts_per_update": 2,
    "group": 3,
    "micro_batch": 4,
    "sampling": {"steps": 3, "sampler": "sde", "window": 2},
    "adapter": {"rank": 4, "alpha": 8},
    "optim": {"updates": 2, "learning_rate": 1e-3},
}


@pytest.fixture
def session(world, tmp_path):
    return world.session(tmp_path / "out", teachers={"quality": {"train": GRPO}})


def test_two_updates_make_an_expert_that_is_not_the_base(session):
    modules = read_lora(train_teacher(session, "quality")).modules
    assert modules and any(factors.delta().any() for factors in modules.values())


def test_a_window_longer_than_the_path_is_the_whole_path(world, tmp_path):
    made = []
    for name, window in (("longer", 9), ("whole", None)):
        config = {**GRPO, "sampling": {"steps": 3, "sampler": "sde", "window": window}}
        session = world.session(tmp_path / name, teachers={"quality": {"train": config}})
        made.append(read_lora(train_teacher(session, "quality")).modules)
    assert all(torch.equal(made[0][name].delta(), factors.delta()) for name, factors in made[1].items())


def test_training_an_expert_leaves_the_base_as_it_was(session):
    before = {name: tensor.clone() for name, tensor in session.model.transformer.state_dict().items()}
    train_teacher(session, "quality")
    after = {name.replace(".base_layer", ""): t for name, t in session.model.transformer.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all("lora_" in name for name in after.keys() - before.keys())


def test_every_update_of_an_expert_says_what_it_was_rewarded(session):
    train_teacher(session, "quality")
    rows = [json.loads(line) for line in (session.out / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [("teacher:quality", 0), ("teacher:quality", 1)]
    assert all(0 <= row["reward"] <= 1 and row["grad_norm"] > 0 for row in rows)


def test_the_micro_batch_does_not_change_an_expert(world, tmp_path):
    experts = []
    for size in (1, 6):
        out = tmp_path / f"micro-{size}"
        session = world.session(out, teachers={"quality": {"train": {**GRPO, "micro_batch": size}}})
        experts.append(read_lora(train_teacher(session, "quality")).modules)
    for name, factors in experts[0].items():
        torch.testing.assert_close(factors.delta(), experts[1][name].delta(), atol=2e-5, rtol=1e-2)


def test_an_expert_that_exists_is_not_trained(world, tmp_path):
    with pytest.raises(ConfigError, match=r"teachers\.quality\.train"):
        train_teacher(world.session(tmp_path / "out"), "quality")
