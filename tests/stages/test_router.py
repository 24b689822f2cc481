"""Routing by the prompt's own text: how often it is right, on which prompts, and that a run is routed by it."""

import json

import pytest
import torch

from flowopd.errors import ConfigError, DataError
from flowopd.hub import located
from flowopd.models import open_model
from flowopd.pipeline import open_run, run
from flowopd.prompts import Prompt, read_prompts, write_prompts
from flowopd.recipe import make_recipe
from flowopd.routing import LabelRouter
from flowopd.session import Own
from flowopd.stages.coldstart import cold_start
from flowopd.stages.distill import distill
from flowopd.stages.doctor.material import routes as doctor_routes
from flowopd.stages.plan import plan
from flowopd.stages.router import TextRouter, accuracy, fit_text_router
from flowopd.types import Condition

LABELS = ("composition", "text", "quality", "preference")
OWN = LabelRouter({label: label for label in LABELS}, LABELS)


def shipped(split, every):
    """Evenly spaced ones of the mini world's prompts."""
    return [p for n in LABELS for p in read_prompts(located(f"package:mini/prompts/{split}/{n}.jsonl"), n)[::every]]


@pytest.fixture(scope="module")
def conditioning():
    model = open_model(
        "package:mini/base",
        revision=None,
        device=torch.device("cpu"),
        dtype=torch.float32,
        t5=True,
        gradient_checkpointing=False,
        compiled=False,
    )
    return model.encode


@pytest.fixture(scope="module")
def router(conditioning):
    return fit_text_router(OWN, shipped("train", every=3), conditioning)


def test_prompts_like_those_of_the_training_are_routed_as_their_labels(router):
    found = accuracy(router, shipped("test", every=5))
    assert found.keys() == {"routing/accuracy", *(f"routing/accuracy/{label}" for label in LABELS)}
    assert min(found.values()) > 0.9


def test_prompts_in_other_words_are_not(router):
    """Signs have their quotes in any words; what else tells the labels apart is how they were asked."""
    found = accuracy(router, shipped("rewritten", every=5))
    assert found["routing/accuracy/text"] > 0.95
    assert 0.4 < found["routing/accuracy"] < 0.9


def test_a_prompt_s_own_label_is_not_looked_at(router):
    prompts = shipped("test", every=40)
    renamed = [Prompt(prompt.text, "unknown") for prompt in prompts]
    assert torch.equal(router(renamed), router(prompts))
    assert torch.equal(router(prompts[::-1]), router(prompts).flip(0))


def test_soft_routes_are_those_of_the_resembled_label(router):
    soft = LabelRouter({**dict.fromkeys(LABELS, "text"), "text": {"text": 3.0, "quality": 1.0}}, LABELS)
    mixed = TextRouter(soft, router.labels, router._classes, router._conditioning)
    row = mixed([Prompt('a red sign saying "fox"', "unknown")])
    torch.testing.assert_close(row, torch.tensor([[0.0, 0.75, 0.25, 0.0]]))


def test_a_model_without_pooled_embeddings_is_refused():
    tokens = lambda texts: Condition({"tokens": torch.zeros(len(texts), 3, 4)})  # noqa: E731
    with pytest.raises(ConfigError, match=r"without a pooled embedding.*leave route_by out"):
        fit_text_router(OWN, [Prompt("a", "text")], tokens)


def test_without_a_label_that_has_a_route_nothing_can_be_learnt(conditioning):
    with pytest.raises(ConfigError, match="there are none; name a label as its teacher"):
        fit_text_router(OWN, [Prompt("a", "poems")], conditioning)


# A run


def tree(world, folder, **parts):
    """A recipe with a third label that is no teacher's, whose prompts are those of both."""
    made = world.tree(**parts)
    files = [files["train"] for files in made["prompts"].values()]
    mixed = [Prompt(p.text, "mixed") for file in files for p in read_prompts(file, "mixed")]
    write_prompts(folder / "mixed.jsonl", mixed)
    return {**made, "prompts": {**made["prompts"], "mixed": {"train": str(folder / "mixed.jsonl")}}}


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_prompts_without_a_label_of_their_own_are_routed_by_their_text(world, tmp_path, distilling, monkeypatch):
    routed, route = [], TextRouter.__call__
    monkeypatch.setattr(TextRouter, "__call__", lambda self, prompts: routed.append(route(self, prompts)) or routed[-1])
    recipe = make_recipe(tree(world, tmp_path, route_by="text", distill=distilling(updates=2)))
    run(recipe, tmp_path / "out")
    first, second = rows(tmp_path / "out")
    assert 0 <= first["routing/accuracy"] <= 1 and "routing/accuracy" not in second
    assert {"gap/mixed", "gap/quality"} <= first.keys()
    assert [tuple(each.shape) for each in routed] == [(6, 2)] * 2
    assert all((each.sum(1) == 1).all() and (each.max(1).values == 1).all() for each in routed)


def test_by_label_they_are_refused_before_anything_is_trained(world, tmp_path, distilling):
    with pytest.raises(DataError, match="no route for label 'mixed'"):
        run(make_recipe(tree(world, tmp_path, distill=distilling())), tmp_path / "out")


def test_by_text_some_label_has_to_be_known(world, tmp_path, distilling):
    made = tree(world, tmp_path, route_by="text", distill=distilling())
    made["prompts"] = {"mixed": made["prompts"]["mixed"]}
    with pytest.raises(DataError, match="no route for label 'mixed'"):
        run(make_recipe(made), tmp_path / "out")


def test_a_route_that_is_given_leaves_the_other_labels_to_their_teachers(world, tmp_path):
    session = open_run(
        make_recipe(tree(world, tmp_path, routes={"mixed": {"quality": 1, "composition": 3}})), tmp_path / "out"
    )
    found = session.router(["mixed", "quality"])(["mixed", "quality", "composition"])
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.25], [0.0, 1.0], [1.0, 0.0]]))


def test_a_plan_spreads_unknown_labels_as_the_others(world, tmp_path, distilling):
    known = plan(open_run(make_recipe(world.tree(distill=distilling())), tmp_path / "known"))
    mixed = plan(
        open_run(make_recipe(tree(world, tmp_path, route_by="text", distill=distilling())), tmp_path / "mixed")
    )
    assert mixed.forwards_per_update["teacher"] == 1.5 * known.forwards_per_update["teacher"]


def test_experts_draw_for_the_labels_that_are_theirs_alone(world, tmp_path):
    few = {"kind": "sft", "images": 2, "batch": 2, "sampling": {"steps": 1}, "optim": {"updates": 1}}
    session = open_run(make_recipe(tree(world, tmp_path, route_by="text", coldstart=few)), tmp_path / "out")
    assert (cold_start(session) / "adapter_model.safetensors").exists()


def test_the_doctor_says_who_is_routed_by_text(world, tmp_path, distilling):
    session = open_run(make_recipe(tree(world, tmp_path, route_by="text", distill=distilling())), tmp_path / "out")
    (found,) = doctor_routes(session)
    assert found.fact.endswith("quality to quality 100%, mixed to the expert that each text resembles")


def test_a_router_of_one_s_own_goes_before_the_text(world, tmp_path, distilling):
    own = Own(router=lambda prompts: torch.tensor([[0.5, 0.5]] * len(prompts)))
    made = make_recipe(tree(world, tmp_path, route_by="text", distill=distilling(updates=1)))
    distill(open_run(made, tmp_path / "out", own))
    assert "routing/accuracy" not in rows(tmp_path / "out")[0]
