"""GRPO-Mix: every task has its share of each update, one task is the expert's training, and it starts where told."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flowopd.errors import ConfigError, NumericsError
from flowopd.lora_file import read_lora
from flowopd.recipe import make_recipe
from flowopd.rewards import REWARDS, Scores
from flowopd.stages import grpo
from flowopd.stages.coldstart import cold_start
from flowopd.stages.grpo import apportioned
from flowopd.stages.mix import train_mix
from flowopd.stages.sample import available_models
from flowopd.stages.teacher import train_teacher

QUALITY = {"reward": "mini_quality", "prompts": "quality"}
COMPOSITION = {"reward": "mini_geneval", "detail": "continuous", "prompts": "composition"}
POLICY = {
    "prompts_per_update": 2,
    "group": 3,
    "micro_batch": 4,
    "sampling": {"steps": 3, "sampler": "sde", "window": 2},
    "adapter": {"rank": 4, "alpha": 8},
    "optim": {"updates": 2, "learning_rate": 1e-3},
}
MIX = {**POLICY, "tasks": {"composition": COMPOSITION, "quality": QUALITY}}


def deltas(folder):
    return {name: factors.delta() for name, factors in read_lora(folder).modules.items()}


def test_a_mix_says_what_each_task_was_rewarded(world, tmp_path):
    session = world.session(tmp_path / "out", grpo_mix=MIX)
    assert any(delta.any() for delta in deltas(train_mix(session)).values())
    rows = [json.loads(line) for line in (session.out / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["stage"] == "grpo_mix"
        assert row["reward"] == pytest.approx((row["reward/composition"] + row["reward/quality"]) / 2, abs=1e-6)


def test_a_mix_of_one_task_is_the_expert_of_that_task(world, tmp_path):
    mixed = deltas(train_mix(world.session(tmp_path / "mix", grpo_mix={**POLICY, "tasks": {"quality": QUALITY}})))
    expert = world.session(tmp_path / "expert", teachers={"quality": {"train": {**POLICY, **QUALITY}}})
    alone = deltas(train_teacher(expert, "quality"))
    assert all(torch.equal(mixed[name], delta) for name, delta in alone.items())


def test_a_mix_starts_from_the_cold_start_where_it_is_told_to(world, tmp_path):
    still = {**MIX, "start": "coldstart", "optim": {"updates": 1, "learning_rate": 1e-12}}
    targets = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "proj_out"]
    still["adapter"] = {"rank": 16, "alpha": 16, "targets": targets}
    session = world.session(tmp_path / "out", coldstart={"kind": "merge"}, grpo_mix=still)
    start = deltas(cold_start(session))
    mixed = deltas(train_mix(session))
    for name, delta in mixed.items():
        torch.testing.assert_close(delta, start[name], atol=1e-5, rtol=1e-4)


def test_a_mix_is_a_row_of_the_table(world, tmp_path):
    session = world.session(tmp_path / "out", grpo_mix=MIX)
    assert "grpo_mix" not in available_models(session)
    train_mix(session)
    assert available_models(session)[-1] == "grpo_mix"


def scoring(monkeypatch, value):
    """Makes one of the two rewards of the mix give all pictures the same."""
    build = lambda *_: lambda pictures, prompts: Scores(np.full(len(prompts), value))  # noqa: E731
    monkeypatch.setitem(REWARDS, "mini_quality", SimpleNamespace(check=lambda *_: None, build=build))


def test_each_task_of_a_mix_is_watched_on_its_own(world, tmp_path, monkeypatch):
    scoring(monkeypatch, 1.0)
    tasks = {"composition": {**COMPOSITION, "reward": "mini_holdout", "detail": None}, "quality": QUALITY}
    mix = {**MIX, "tasks": tasks, "optim": {**MIX["optim"], "updates": 4}}
    session = world.session(tmp_path / "out", grpo_mix=mix, watch={"patience": 1})
    with pytest.raises(
        NumericsError, match=r"'mini_quality' .* gave 1 to all 3 pictures .* 0 to 3, its best: the task is solved"
    ):
        train_mix(session)


@pytest.mark.parametrize("here", [True, False], ids=["drawn here", "drawn by another process"])
def test_a_reward_that_is_not_finite_stops_every_process(world, tmp_path, monkeypatch, here):
    def gathered(own, rows, n):
        rewards = own.clone()
        rewards[4] = float("nan")
        return rewards

    scoring(monkeypatch, float("nan") if here else 0.5)
    if not here:
        monkeypatch.setattr(grpo, "whole", gathered)
    with pytest.raises(NumericsError, match=r"'mini_quality' .* in update 0 gave nan to picture [01] of 3, prompt '"):
        train_mix(world.session(tmp_path / "out", grpo_mix=MIX))


def test_a_recipe_without_a_mix_says_so(world, tmp_path):
    with pytest.raises(ConfigError, match="no `grpo_mix`"):
        train_mix(world.session(tmp_path / "out"))


def test_more_tasks_than_prompts_are_refused(world):
    with pytest.raises(ConfigError, match="1 prompts_per_update cannot serve 2 tasks"):
        make_recipe(world.tree(grpo_mix={**MIX, "prompts_per_update": 1}))


@pytest.mark.parametrize(
    ("total", "shares", "counts"),
    [
        (8, [1, 1, 1], [3, 3, 2]),
        (8, [2, 1, 1], [4, 2, 2]),
        (3, [9, 1, 1], [1, 1, 1]),
        (5, [1], [5]),
        (9, [3, 1], [6, 3]),
    ],
)
def test_prompts_are_given_out_in_proportion_and_none_goes_without(total, shares, counts):
    assert apportioned(total, shares) == counts
    assert sum(counts) == total


def test_a_cold_start_goes_by_its_kind_in_the_table(world, tmp_path):
    sft = {"kind": "sft", "images": 2, "batch": 2, "sampling": {"steps": 2}, "optim": {"updates": 1}}
    session = world.session(tmp_path / "out", coldstart=sft)
    cold_start(session)
    assert "sft" in available_models(session) and "merge" not in available_models(session)
