"""Cosines between tasks' gradients: alike tasks agree as far as their noise lets them, opposed ones do not."""

import json

import numpy as np
import pytest
import torch

from flowopd.errors import ConfigError, DataError
from flowopd.lora_file import read_lora
from flowopd.stages.interference import (
    INTERFERENCE,
    Interference,
    _compared,
    _gradient,
    _numbers,
    _over_repeats,
    _stages,
    _taught,
    write_interference,
)

QUALITY = {"reward": "mini_quality", "prompts": "quality"}
HOLDOUT = {"reward": "mini_holdout", "prompts": "quality"}
MIX = {
    "prompts_per_update": 4,
    "group": 4,
    "sampling": {"steps": 3, "sampler": "sde", "window": 2},
    "adapter": {"rank": 4, "alpha": 8},
    "optim": {"updates": 1, "learning_rate": 1e-3},
    "tasks": {"quality": QUALITY, "held": HOLDOUT},
}


@pytest.fixture(scope="module")
def both(world, tmp_path_factory, distilling):
    """A run with a distillation and a mix, neither trained, and the file of its starts' cosines."""
    out = tmp_path_factory.mktemp("interference") / "out"
    session = world.session(out, distill=distilling(samples_per_label=4), grpo_mix=MIX)
    write_interference(session, model="start", repeats=2)
    return session


def measured(session):
    return {(one.stage, one.model): one for one in Interference.load(session.out / INTERFERENCE).measured}


def test_both_losses_are_measured_at_their_start(both):
    found = measured(both)
    assert list(found) == [("distill", "base"), ("grpo_mix", "base")]
    assert found["distill", "base"].tasks == ["composition", "quality"]
    assert found["grpo_mix", "base"].tasks == ["quality", "held"]


def test_a_matrix_is_symmetric_and_within_one(both):
    for one in measured(both).values():
        mean = np.array(one.mean)
        assert mean == pytest.approx(mean.T) and np.abs(mean).max() <= 1
        assert all(norm > 0 for norm in one.norms.values()) and np.array(one.spread).min() >= 0


def test_two_batches_of_one_task_agree_more_than_those_of_two_teachers(both):
    one = measured(both)["distill", "base"]
    own = [one.cosine(task, task)[0] for task in one.tasks]
    assert np.mean(own) > 0.5 > one.cosine(*one.tasks)[0]


def test_it_is_the_same_again_and_leaves_no_adapter(both):
    before = Interference.load(both.out / INTERFERENCE)
    write_interference(both, model="start", repeats=2)
    assert Interference.load(both.out / INTERFERENCE) == before
    assert not {"student", "grpo_mix"} & set(both.adapters.names)


def test_another_number_of_repeats_replaces_its_own_stage_alone(both):
    before = measured(both)
    write_interference(both, "distill", "start", repeats=1)
    after = measured(both)
    assert after["grpo_mix", "base"] == before["grpo_mix", "base"]
    assert after["distill", "base"].repeats == 1 and after["distill", "base"].spread == [[None] * 2] * 2
    write_interference(both, "distill", "start", repeats=2)
    assert measured(both) == before


def test_a_checkpoint_and_what_became_of_it_are_one(kept):
    before = read_lora(kept.out / "student")
    for model in ("checkpoint:distill/3", "student"):
        write_interference(kept, model=model, repeats=1)
    last, own = measured(kept).values()
    assert (last.stage, own.stage) == ("distill", "distill") and last.mean == own.mean
    assert all(torch.equal(f.b, before.modules[n].b) for n, f in read_lora(kept.out / "student").modules.items())
    write_interference(kept, model="start", repeats=1)
    assert list(measured(kept))[-1] == ("distill", "merge")


def test_gradients_of_distillation_are_those_of_an_update(kept, monkeypatch):
    """The mean over labels of the tasks' gradients is the gradient that an update of all labels takes."""
    config = kept.recipe.distill.model_copy(update={"anchor": None})
    prompts = {label: kept.prompts(label, "train")[:1] for label in kept.recipe.prompts}
    kept.load_teachers()
    conditioning = kept.encode([prompt for group in prompts.values() for prompt in group])
    kept.create("student", config.adapter)
    route = kept.route(list(prompts))
    parameters = list(kept.adapters.parameters("student").values())
    monkeypatch.setattr("flowopd.stages.updates.seed_of", lambda *_: 5)
    with kept.adapters.using("student"):
        whole, *parts = (
            _gradient(_taught(kept, config, route, those, conditioning), 0, parameters)
            for those in (prompts, *({label: group} for label, group in prompts.items()))
        )
    kept.adapters.remove("student")
    torch.testing.assert_close(sum(parts) / len(parts), whole, rtol=1e-4, atol=1e-7)
    assert whole.norm() > 0


def test_labels_that_take_turns_are_measured_each(world, tmp_path, distilling):
    turns = {"labels_per_update": 2, "loss": "detached"}
    session = world.session(tmp_path / "out", distill=distilling(**turns), route_by="text")
    (found,) = write_interference(session, model="start", repeats=1)
    assert found.tasks == ["composition", "quality"] and min(found.norms.values()) > 0


def test_no_update_has_the_number_of_another_and_a_repeat_s_share_their_window():
    numbers = [_numbers(repeat, tasks=3, cycle=4) for repeat in range(5)]
    flat = [number for halves in numbers for half in halves for number in half]
    assert len(set(flat)) == len(flat) == 30
    assert [{number % 4 for half in halves for number in half} for halves in numbers] == [{0}, {1}, {2}, {3}, {0}]


def test_cosines_are_between_batches_that_are_not_shared():
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 50, generator=draw)
    cosines, norms = _compared(a, b)
    cosine = torch.nn.functional.cosine_similarity
    assert cosines[1, 1] == pytest.approx(float(cosine(a[1], b[1], 0)), abs=1e-6)
    assert cosines[0, 2] == pytest.approx(float((cosine(a[0], b[2], 0) + cosine(a[2], b[0], 0)) / 2), abs=1e-6)
    assert norms[1] == pytest.approx(float((a[1].norm() + b[1].norm()) / 2))


def test_a_gradient_of_zero_has_no_cosine():
    a = torch.eye(2, 4)
    cosines, _ = _compared(a, torch.stack([torch.zeros(4), a[1]]))
    assert np.isnan(cosines[0]).all() and cosines[1, 1] == 1
    repeats = np.stack([cosines, np.ones((2, 2))])
    assert _over_repeats(repeats, np.mean, 1) == [[1.0, 1.0], [1.0, 1.0]]
    assert _over_repeats(cosines[None], np.mean, 1) == [[None, None], [None, 1.0]]


@pytest.mark.parametrize(
    ("stage", "model", "stages"),
    [
        (None, None, ["distill", "grpo_mix"]),
        (None, "base", ["distill", "grpo_mix"]),
        (None, "student", ["distill"]),
        (None, "checkpoint:grpo_mix/20", ["grpo_mix"]),
        (None, "checkpoint:teachers/quality/20", ["distill", "grpo_mix"]),
        ("grpo_mix", "student", ["grpo_mix"]),
    ],
)
def test_a_model_is_measured_by_the_loss_that_made_it(both, stage, model, stages):
    assert _stages(both.recipe, stage, model) == stages


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stage": "sft"}, "the recipe has no 'sft'; its losses are: distill, grpo_mix"),
        ({"model": "nobody"}, "there is no model 'nobody' here; there are: base"),
        ({"repeats": 0}, "there must be a repeat at least, got 0"),
        ({}, "there is no model 'student' here"),
    ],
)
def test_what_cannot_be_measured_is_refused(both, settings, words):
    with pytest.raises(ConfigError, match=words):
        write_interference(both, **settings)


def test_a_single_task_interferes_with_none(world, tmp_path):
    one = {**MIX, "prompts_per_update": 1, "tasks": {"quality": QUALITY}}
    with pytest.raises(ConfigError, match="grpo_mix has one task, quality, which interferes with none"):
        write_interference(world.session(tmp_path / "out", grpo_mix=one), model="base", repeats=1)


def test_a_recipe_without_a_loss_says_so(world, tmp_path):
    with pytest.raises(ConfigError, match="has no `distill` and no `grpo_mix`; its losses are: none"):
        write_interference(world.session(tmp_path / "out"))


def test_a_file_that_is_no_such_record_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist; flowopd interference writes it"):
        Interference.load(tmp_path / INTERFERENCE)
    (tmp_path / INTERFERENCE).write_text(json.dumps({"measured": [{"stage": "distill"}]}))
    with pytest.raises(
        DataError, match=r"measured.0.model: Field required; delete it, and flowopd interference writes it"
    ):
        Interference.load(tmp_path / INTERFERENCE)
