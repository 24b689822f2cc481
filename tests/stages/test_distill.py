"""Distillation: what it needs, what it leaves alone, that its two halves are independent, and that it works."""

import json
import re
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from flowopd.configs import DistillConfig
from flowopd.errors import ConfigError, NumericsError
from flowopd.lora_file import read_lora
from flowopd.models.sd3 import Sd3
from flowopd.pipeline import open_run, run
from flowopd.prompts import Prompt, read_prompts, write_prompts
from flowopd.recipe import make_recipe
from flowopd.rewards.registry import REWARDS
from flowopd.routing import LabelRouter
from flowopd.sampling import SamplingConfig
from flowopd.session import Session
from flowopd.stages.coldstart import cold_start
from flowopd.stages.distill import distill
from flowopd.stages.updates import counts_of, plans_of
from flowopd.train import Trainer

MERGED = {"kind": "merge"}


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def deltas(folder):
    return {name: factors.delta() for name, factors in read_lora(folder).modules.items()}


def bytes_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def gradients_of(session, patch):
    """The gradients of every update, before anything is made of them."""
    seen, step = [], Trainer.step

    def looking(self, i):
        seen.append([parameter.grad.clone() for parameter in self.parameters])
        return step(self, i)

    patch.setattr(Trainer, "step", looking)
    distill(session)
    patch.undo()
    return seen


# What it needs


def forbidden(*_args, **_kwargs):
    raise AssertionError("distillation touched what it should not need")


def test_distillation_needs_no_reward_and_no_autoencoder_and_once_encoded_no_encoder(
    world, tmp_path, distilling, monkeypatch
):
    session = world.session(tmp_path / "out", distill=distilling(updates=1))
    session.encode(prompt for label in session.recipe.prompts for prompt in session.prompts(label, "train"))
    for part in ("vae", "_encoders"):
        monkeypatch.setattr(Sd3, part, property(forbidden))
    for name in REWARDS:
        monkeypatch.setitem(REWARDS, name, forbidden)
    assert read_lora(distill(Session(session.recipe, session.out))).modules


def test_distillation_leaves_experts_and_base_as_they_were(world, tmp_path, distilling):
    session = world.session(tmp_path / "out", distill=distilling())
    session.load_teachers()
    files = bytes_of(world.experts), bytes_of(world.base)
    weights = {name: tensor.clone() for name, tensor in session.model.transformer.state_dict().items()}
    distill(session)
    assert (bytes_of(world.experts), bytes_of(world.base)) == files
    after = session.model.transformer.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())


def test_a_teacher_that_no_label_goes_to_is_told_of(world, tmp_path, distilling, capsys):
    routes = {"composition": "composition", "quality": "composition"}
    for name, anchor in (("idle", None), ("held", {"model": "quality", "weight": 0.1})):
        distill(world.session(tmp_path / name, distill=distilling(updates=1, anchor=anchor), routes=routes))
        told = "teacher quality has no route and teaches nothing" in capsys.readouterr().err
        assert told == (name == "idle")


# Student and expert may read different words


WORDS = ("painted", "under", "three", "letters", "moons", "brown", "shown", "with")


def of_one_expert(world, folder, distill, worded=True):
    """A session whose student starts as its only expert; a prompt's other wording is one of WORDS, said thrice."""
    prompts = [
        replace(p, metadata={"wordings": [f"{word} {word} {word}"] * worded})
        for p, word in zip(read_prompts(world.prompts / "train" / "quality.jsonl", "quality"), WORDS, strict=False)
    ]
    write_prompts(folder / "worded.jsonl", prompts)
    tree = world.tree(distill=distill, coldstart=MERGED)
    tree |= {
        "teachers": {"quality": tree["teachers"]["quality"]},
        "prompts": {"quality": {"train": str(folder / "worded.jsonl")}},
    }
    session = open_run(make_recipe(tree), folder / "out")
    cold_start(session)
    return session


def test_a_student_that_is_its_expert_lacks_nothing_until_it_reads_other_words(world, tmp_path, distilling):
    lacking = {}
    for share in (None, 0.0, 1.0):
        folder = tmp_path / str(share)
        folder.mkdir()
        parts = distilling(updates=30, learning_rate=0.01, ema=0.0, anchor=None, samples_per_label=4, reworded=share)
        distill(of_one_expert(world, folder, parts))
        lacking[share] = [row["gap"] for row in rows(folder / "out")]
    assert lacking[0.0][0] < 1e-9 < 1e-4 < lacking[1.0][0]
    assert lacking[0.0][0] < lacking[None][0] < lacking[1.0][0]
    assert np.mean(lacking[1.0][-3:]) < lacking[1.0][0] / 2


def test_wordings_that_are_never_read_change_nothing_bit_for_bit(world, tmp_path, distilling):
    found = []
    for worded in (False, True):
        folder = tmp_path / str(worded)
        folder.mkdir()
        student = distill(of_one_expert(world, folder, distilling(updates=2, reworded=0.0), worded))
        found.append(read_lora(student).modules)
    assert all(torch.equal(f.b, found[1][name].b) for name, f in found[0].items())


# Teachers and anchor are switched one by one


@pytest.mark.parametrize(
    "parts, there, missing",
    [
        ({"anchor": None}, "gap", "anchor_gap"),
        ({"anchor": {"model": "quality", "weight": 0.0}}, "gap", "anchor_gap"),
        ({"distillation": False, "anchor": {"model": "quality", "weight": 0.5}}, "anchor_gap", "gap"),
    ],
)
def test_each_half_trains_without_the_other(world, tmp_path, distilling, parts, there, missing):
    student = distill(world.session(tmp_path / "out", distill=distilling(**parts)))
    assert any(delta.any() for delta in deltas(student).values())
    assert all(there in row and missing not in row for row in rows(tmp_path / "out"))


def test_both_halves_together_show_both_gaps(world, tmp_path, distilling):
    distill(world.session(tmp_path / "out", distill=distilling(anchor={"model": "base", "weight": 0.5})))
    assert all({"gap", "anchor_gap"} <= row.keys() for row in rows(tmp_path / "out"))


@pytest.mark.parametrize("anchor", [None, {"model": "base", "weight": 0.0}])
def test_with_both_halves_off_nothing_is_left_to_learn(world, tmp_path, distilling, anchor):
    session = world.session(tmp_path / "out", distill=distilling(distillation=False, anchor=anchor))
    with pytest.raises(ConfigError, match="nothing is left to learn from"):
        distill(session)


def test_an_anchor_on_the_start_itself_has_no_gap_yet(world, tmp_path, distilling):
    parts = distilling(updates=1, distillation=False, anchor={"model": "base", "weight": 1.0})
    distill(world.session(tmp_path / "out", distill=parts))
    assert rows(tmp_path / "out")[0]["anchor_gap"] == 0


# It works


def test_distillation_closes_the_gap_to_every_expert(world, tmp_path, distilling):
    parts = distilling(updates=45, learning_rate=0.03, ema=0.0, anchor=None, samples_per_label=4)
    distill(world.session(tmp_path / "out", distill=parts))
    for gap in ("gap", "gap/composition", "gap/quality"):
        gaps = [row[gap] for row in rows(tmp_path / "out")]
        assert np.mean(gaps[-5:]) < gaps[0] / (2 if gap == "gap" else 1.5)


def test_an_anchor_alone_draws_the_student_to_it(world, tmp_path, distilling):
    anchor = {"model": "quality", "weight": 1.0}
    parts = distilling(updates=30, learning_rate=0.03, ema=0.0, distillation=False, anchor=anchor)
    distill(world.session(tmp_path / "out", distill=parts))
    gaps = [row["anchor_gap"] for row in rows(tmp_path / "out")]
    assert np.mean(gaps[-5:]) < gaps[0] / 2


def test_the_student_of_one_expert_starts_with_its_gap_closed(world, tmp_path, distilling):
    tree = world.tree(coldstart=MERGED, distill=distilling(updates=1, anchor=None))
    parts = {"teachers": {"quality": tree["teachers"]["quality"]}, "prompts": {"quality": tree["prompts"]["quality"]}}
    session = world.session(tmp_path / "out", **{**tree, **parts})
    cold_start(session)
    distill(session)
    assert rows(tmp_path / "out")[0]["gap"] < 1e-9


@pytest.mark.parametrize("loss", get_args(DistillConfig.model_fields["loss"].annotation))
def test_one_word_chooses_the_loss(world, tmp_path, distilling, loss):
    parts = distilling(updates=1, loss=loss, sampling={"steps": 2, "sampler": "sde"})
    student = distill(world.session(tmp_path / "out", distill=parts))
    assert any(delta.any() for delta in deltas(student).values())
    assert rows(tmp_path / "out")[0]["gap"] > 0


@pytest.mark.parametrize(
    "sampling",
    [{"sampler": "ode"}, *({"sampler": "sde", "noise": a} for a in (0.2, 0.7, 1.2)), {"sampler": "cps", "noise": 0.5}],
    ids=str,
)
def test_a_student_learns_on_any_sampler_at_any_noise(world, tmp_path, distilling, sampling):
    parts = distilling(updates=30, learning_rate=0.03, ema=0.0, anchor=None, sampling={"steps": 2, **sampling})
    distill(world.session(tmp_path / "out", distill=parts))
    gaps = [row["gap"] for row in rows(tmp_path / "out")]
    assert np.mean(gaps[-5:]) < gaps[0] / 1.5


def test_the_last_step_of_cps_has_no_noise_and_can_be_left_out(world, tmp_path, distilling):
    """A policy gradient needs noise at every trained step."""
    parts = distilling(updates=1, loss="log_ratio", sampling={"steps": 3, "sampler": "cps"})
    with pytest.raises(ConfigError, match="without noise"):
        distill(world.session(tmp_path / "all", distill=parts))
    distill(world.session(tmp_path / "out", distill={**parts, "query": {"kind": "fixed", "steps": [0, 1]}}))
    assert {f"gap/quality/{i}" in rows(tmp_path / "out")[0] for i in (0, 1)} == {True}
    assert "gap/quality/2" not in rows(tmp_path / "out")[0]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"kind": "fixed"}, "steps and kind fixed go together"),
        ({"kind": "all", "steps": [0]}, "steps and kind fixed go together"),
        ({"kind": "fixed", "steps": [0, 0]}, "must be distinct"),
        ({"kind": "fixed", "steps": [2]}, "step 2 is beyond a rollout of 2 trained steps"),
        ({"kind": "random", "k": 3}, "k = 3 queried steps do not fit"),
    ],
)
def test_queries_that_cannot_be_are_refused_before_anything_is_trained(world, tmp_path, distilling, query, said):
    with pytest.raises(ConfigError, match=said):
        run(make_recipe(world.tree(coldstart=MERGED, distill=distilling(query=query))), tmp_path / "out")
    assert not (tmp_path / "out" / "coldstart").exists()


@pytest.mark.parametrize(
    ("weighting", "said"),
    [
        ([2.0, 1.0, 1.0], "3 custom weights for 2 steps; give one a step"),
        ([1.0, -1.0], "step weights must be finite, >= 0"),
        ("kl", "noise"),
    ],
)
def test_weights_that_cannot_be_are_refused_before_anything_is_trained(world, tmp_path, distilling, weighting, said):
    with pytest.raises(ConfigError, match=said):
        run(make_recipe(world.tree(coldstart=MERGED, distill=distilling(weighting=weighting))), tmp_path / "out")
    assert not (tmp_path / "out" / "coldstart").exists()


# An update is a function of the seed and the step


def test_the_micro_batch_does_not_change_the_gradient(world, tmp_path, distilling, monkeypatch):
    sampling = {"steps": 3, "sampler": "sde", "guidance": 2.0}
    whole, single, uneven = (
        gradients_of(
            world.session(
                tmp_path / f"micro-{size}",
                distill=distilling(updates=1, micro_batch=size, samples_per_label=3, sampling=sampling),
            ),
            monkeypatch,
        )[0]
        for size in (48, 1, 4)
    )
    assert any(gradient.any() for gradient in whole)
    for other in (single, uneven):
        for a, b in zip(whole, other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_the_micro_batch_does_not_change_the_student(world, tmp_path, distilling):
    students = [
        deltas(distill(world.session(tmp_path / f"micro-{size}", distill=distilling(micro_batch=size))))
        for size in (48, 1)
    ]
    for name, delta in students[0].items():
        torch.testing.assert_close(delta, students[1][name], atol=2e-5, rtol=1e-2)


def test_every_update_sees_every_label_at_every_step(world, tmp_path, distilling):
    distill(world.session(tmp_path / "out", distill=distilling()))
    wanted = {f"gap/{label}{step}" for label in ("composition", "quality") for step in ("", "/0", "/1")}
    assert all(wanted <= row.keys() for row in rows(tmp_path / "out"))


def test_a_label_without_training_prompts_and_route_is_judged_alone(world, tmp_path, distilling):
    def left_out(name, **parts):
        tree = world.tree(distill=distilling(), **parts)
        tree["teachers"].pop("quality")
        tree["prompts"]["quality"].pop("train")
        return open_run(make_recipe(tree), tmp_path / name)

    session = left_out("out")
    assert list(session.training_prompts()) == ["composition"]
    distill(session)
    assert {key.split("/")[1] for row in rows(session.out) for key in row if key.startswith("gap/")} == {"composition"}
    with pytest.raises(ConfigError, match=r"no train prompts for label 'quality' .*; add prompts\.quality\.train"):
        distill(left_out("routed", routes={"quality": "composition"}))


def test_every_update_draws_as_many_prompts_of_every_label(world, tmp_path, distilling, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "flowopd.routing.LabelRouter.__call__",
        lambda self, labels: asked.append(list(labels)) or torch.ones(len(labels), 2) / 2,
    )
    distill(world.session(tmp_path / "out", distill=distilling(updates=2)))
    assert asked[-2:] == [["composition"] * 2 + ["quality"] * 2] * 2


def labels_by_update(session, patch):
    """The labels of the samples of every rollout of a distillation."""
    seen, call = [], LabelRouter.__call__
    patch.setattr(LabelRouter, "__call__", lambda self, labels: seen.append(list(labels)) or call(self, labels))
    distill(session)
    patch.undo()
    return [labels for labels in seen if len(labels) == 4]


def test_labels_take_turns_and_every_update_draws_as_many_samples(world, tmp_path, distilling, monkeypatch):
    parts = distilling(updates=4, labels_per_update=1)
    session = world.session(tmp_path / "out", distill=parts)
    turns = [["composition"] * 4, ["quality"] * 4]
    assert labels_by_update(session, monkeypatch) == turns * 2
    found = [{name for name in row if re.fullmatch("gap/[a-z]+", name)} for row in rows(tmp_path / "out")]
    assert found == [{"gap/composition"}, {"gap/quality"}] * 2


def test_updates_of_one_rollout_are_one_turn(world, tmp_path, distilling, monkeypatch):
    parts = distilling(updates=4, labels_per_update=1, updates_per_rollout=2, checkpoint_every=2)
    session = world.session(tmp_path / "out", distill=parts)
    assert labels_by_update(session, monkeypatch) == [["composition"] * 4, ["quality"] * 4]


@pytest.mark.parametrize("n", [1, 2, 3, 4, None])
def test_over_the_turns_every_label_has_its_samples(n):
    labels = ["a", "b", "c", "d"]
    config = DistillConfig(samples_per_label=3, labels_per_update=n)
    turns = [counts_of(config, labels, turn) for turn in range(12)]
    assert all(sum(turn.values()) == 12 and len(turn) == (n or 4) for turn in turns)
    assert {label: sum(turn.get(label, 0) for turn in turns) for label in labels} == dict.fromkeys(labels, 36)


def test_the_samples_of_all_labels_in_turn_are_those_of_all(world, tmp_path, distilling):
    students = [
        deltas(distill(world.session(tmp_path / f"{n}", distill=distilling(updates=2, labels_per_update=n))))
        for n in (None, 2)
    ]
    assert all(torch.equal(delta, students[1][name]) for name, delta in students[0].items())


def test_more_labels_than_there_are_are_refused_before_anything_is_trained(world, tmp_path, distilling):
    recipe = make_recipe(world.tree(coldstart=MERGED, distill=distilling(labels_per_update=3)))
    with pytest.raises(ConfigError, match="labels_per_update is 3, and there are 2 labels; take fewer"):
        run(recipe, tmp_path / "out")
    assert not (tmp_path / "out" / "coldstart").exists()


def test_a_seed_makes_a_student_again_and_another_seed_another(world, tmp_path, distilling):
    first, same, other = (
        deltas(distill(world.session(tmp_path / name, seed=seed, distill=distilling())))
        for name, seed in (("first", 0), ("same", 0), ("other", 1))
    )
    assert all(torch.equal(delta, same[name]) for name, delta in first.items())
    assert not all(torch.equal(delta, other[name]) for name, delta in first.items())


def test_prompts_are_encoded_once_however_often_they_occur(world, tmp_path, monkeypatch):
    session = world.session(tmp_path / "out")
    prompts = session.prompts("quality", "train")
    encoded, encode = [], Sd3.encode
    monkeypatch.setattr(Sd3, "encode", lambda self, texts: encoded.extend(texts) or encode(self, texts))
    for _ in range(2):
        session.encode(prompts * 3)
    assert sorted(encoded) == sorted({"", *(prompt.text for prompt in prompts)})


@pytest.mark.parametrize(("steps", "queried"), [(1, 1), (2, 2), (10, 2)])
def test_two_steps_are_queried_unless_there_is_one(steps, queried):
    config = DistillConfig(sampling=SamplingConfig(steps=steps))
    (plan,) = plans_of(config, seed=0, step=0, updates=1, samples=6)
    assert [len(queries.indices) for queries in plan] == [queried] * 6


def test_prompts_that_are_cut_are_told_once(world, tmp_path, capsys):
    kept, long = world.session(tmp_path), "a red circle " * 9
    kept.encode([Prompt("a red circle", "quality")])
    assert capsys.readouterr().err == ""
    for _ in range(2):
        kept.encode([Prompt(long, "quality"), Prompt("a blue star", "quality")])
    assert (
        capsys.readouterr().err.count(f"1 of 2 prompts are longer than the model reads, and cut, such as {long[:80]!r}")
        == 1
    )


def test_a_prompt_is_routed_by_its_own_label_if_it_has_one(world, tmp_path, distilling):
    prompts = world.session(tmp_path / "a").prompts("composition", "train")
    write_prompts(tmp_path / "own.jsonl", [replace(prompt, label="quality") for prompt in prompts])
    tree = world.tree(distill=distilling(updates=1))
    tree["prompts"] = {"composition": {"train": str(tmp_path / "own.jsonl")}}
    assert (distill(open_run(make_recipe(tree), tmp_path / "out")) / "adapter_config.json").exists()


def test_a_student_adapts_every_layer_of_its_cold_start_unless_told(world, tmp_path, distilling):
    session = world.session(tmp_path / "out", coldstart=MERGED, distill=distilling(updates=1, adapter={"rank": 8}))
    cold_start(session)
    layers = read_lora(distill(session)).modules.keys()
    assert layers > read_lora(tmp_path / "out" / "coldstart").modules.keys()


# Several updates from one rollout


def test_several_updates_of_a_rollout_walk_once_and_ask_experts_once(world, tmp_path, distilling):
    asked = {}
    for n in (1, 3):
        parts = distilling(updates=3, updates_per_rollout=n, checkpoint_every=3, anchor=None)
        session = world.session(tmp_path / f"{n}", distill=parts)
        frozen = []
        session.model.transformer.register_forward_hook(
            lambda _m, _a, named, out, frozen=frozen: frozen.append(out[0].requires_grad), with_kwargs=True
        )
        distill(session)
        asked[n] = frozen.count(True), frozen.count(False)
    assert asked == {1: (3 * 2, 3 * 2), 3: (3 * 2, 2)}


def test_the_first_update_of_a_rollout_is_what_it_is_alone(world, tmp_path, distilling, monkeypatch):
    alone, first = (
        gradients_of(
            world.session(tmp_path / f"{n}", distill=distilling(updates=n, updates_per_rollout=n, checkpoint_every=n)),
            monkeypatch,
        )
        for n in (1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(alone[0], first[0], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first[0], first[1], strict=True))


def test_a_run_with_several_updates_of_a_rollout_goes_on_as_if_it_had_not_stopped(
    world, tmp_path, distilling, monkeypatch
):
    query = {"kind": "random", "k": 1}
    parts = distilling(updates=4, updates_per_rollout=2, checkpoint_every=2, query=query)
    whole = deltas(distill(world.session(tmp_path / "whole", distill=parts)))
    step = Trainer.step

    def stopping(self, i):
        if i == 3:
            raise KeyboardInterrupt
        return step(self, i)

    monkeypatch.setattr(Trainer, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        distill(world.session(tmp_path / "parts", distill=parts))
    monkeypatch.undo()
    resumed = deltas(distill(world.session(tmp_path / "parts", distill=parts)))
    assert all(torch.equal(delta, resumed[name]) for name, delta in whole.items())


def test_a_run_that_goes_on_within_a_rollout_walks_anew(world, tmp_path, distilling, monkeypatch):
    parts = distilling(updates=2, updates_per_rollout=2, checkpoint_every=2)
    step = Trainer.step

    def failing(self, i):
        if i == 1:
            raise NumericsError("not finite")
        return step(self, i)

    monkeypatch.setattr(Trainer, "step", failing)
    with pytest.raises(NumericsError):
        distill(world.session(tmp_path / "out", distill=parts))
    monkeypatch.undo()
    distill(world.session(tmp_path / "out", distill=parts))
    assert [row["step"] for row in rows(tmp_path / "out")] == [0, 1]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"loss": "log_ratio", "updates_per_rollout": 2}, "2 updates_per_rollout need loss closed_form"),
        ({"loss": "log_ratio_to_go", "updates_per_rollout": 2}, "log_ratio_to_go holds for new states only"),
        ({"updates_per_rollout": 3, "checkpoint_every": 50}, "checkpoint_every 50 must be a multiple of .* 3"),
        ({"updates_per_rollout": 0}, "updates_per_rollout"),
    ],
)
def test_updates_of_a_rollout_that_cannot_be_are_refused(world, tmp_path, distilling, parts, said):
    with pytest.raises(ConfigError, match=said):
        world.session(tmp_path / "out", distill=distilling(**parts))
