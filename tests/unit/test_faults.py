"""What is wrong with a recipe or a suite is told by its place, what must stand there, and what may have been meant."""

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from flowopd.errors import ConfigError
from flowopd.faults import Fault
from flowopd.recipe import Recipe, make_recipe, validated
from flowopd.suite import Suite

TREE = {"base": "b", "prompts": {"a": {"train": "a.txt"}}, "teachers": {"a": {"adapter": "a"}}, "distill": {}}

CHANGES = {
    "distill.sampling.steps=ten": "distill.sampling.steps must be a whole number, got 'ten'",
    "distill.anchor.weight=-1": "distill.anchor.weight must be at least 0, got '-1'",
    "distill.weighting=velocty": "distill.weighting must be 'kl', 'ode' or 'velocity' or a list, got 'velocty'; "
    "did you mean 'velocity'?",
    "distill.weighting=[1, a]": "distill.weighting.1 must be a number, got 'a'",
    "distill.query=all": "distill.query must be a mapping of keys, got 'all'; its keys are a, b, k, kind, steps",
    "distill.query={kind: fixed, steps: [a]}": "distill.query.steps.0 must be a whole number, got 'a'",
    "distill.guidance=4": "unknown key 'distill.guidance'; did you mean 'distill.anchor.guidance' or "
    "'distill.sampling.guidance'?",
    "distill.sampler=sde": "unknown key 'distill.sampler'; did you mean 'distill.sampling.sampler'?",
    "coldstart={kind: sft, updates: 3}": "unknown key 'coldstart.updates'; did you mean 'coldstart.optim.updates'?",
    "distill.adapter.zzz=1": "unknown key 'distill.adapter.zzz'; the keys there are alpha, rank, targets",
    "prompts.sft.trian=f": "unknown key 'prompts.sft.trian'; did you mean 'train'?",
    "teachers.merge=5": "teachers.merge must be a mapping of keys, got '5'; its keys are adapter, ",
    "routes.a={x: y}": "routes.a.x must be a number, got 'y'",
    "routes.a=5": "routes.a must be a text or a mapping of keys, got '5'",
    "coldstart={kind: merg}": "coldstart.kind must be 'merge' or 'sft', got 'merg'; did you mean 'merge'?",
    "coldstart={weights: {a: 1}}": "coldstart.kind is missing; add 'merge' or 'sft'",
    "coldstart={kind: merge, images: 3}": "unknown key 'coldstart.images'; the keys there are kind, rank, weights",
    "track=tensorboard": "track must be a list, got 'tensorboard'; write it as [tensorboard]",
    "evaluate={metrics: {}, checkpoints: 0}": "evaluate.checkpoints must be true or false or at least 1, got '0'",
    "trust=null": "trust must be a list, got 'None'",
}

ROW = "rows: {a: {recipe: r.yaml}}\n"
SUITES = {
    "rows: {sft: {recipe: 5}}": "rows.sft.recipe must be a text, got '5'",
    "rows: {merge: 5}": "rows.merge must be a mapping of keys, got '5'; its keys are recipe, seeds, set",
    "rows: {}": "rows must be at least 1 long",
    ROW + "claims: [{says: s, of: a, over: a, withn: 1}]": "unknown key 'claims.0.withn'; did you mean 'within'?",
    ROW + "claims: [{says: s, of: a, over: a, within: 1, at_least: 1}]": "unknown key 'claims.0.at_least'; it does "
    "not go with the other keys there",
    ROW + "claims: [7]": "claims.0 must be a mapping of keys, got '7'; its keys are afterwards, at_least, ",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_wrong_with_a_change_is_told(change):
    with pytest.raises(ConfigError) as refused:
        make_recipe(TREE, [change], "file.yaml")
    assert str(refused.value).startswith(f"a change of the recipe given here: {CHANGES[change]}")


@pytest.mark.parametrize("text", SUITES)
def test_what_is_wrong_with_a_suite_is_told(text):
    with pytest.raises(ConfigError) as refused:
        validated(Suite, yaml.safe_load(text), (), "suite.yaml")
    assert str(refused.value).startswith(f"suite.yaml: {SUITES[text]}")


def test_a_kind_of_the_file_is_not_blamed_on_a_change_beside_it():
    tree = {**TREE, "coldstart": {"kind": "merg"}}
    with pytest.raises(ConfigError, match=r"^file.yaml: coldstart.kind must be"):
        make_recipe(tree, ["coldstart.rank=3"], "file.yaml")
    with pytest.raises(ConfigError, match=r"^a change of the recipe given here: coldstart.kind must be"):
        make_recipe(TREE, ["coldstart.kind=merg"], "file.yaml")


def test_without_the_values_the_place_is_pydantics_own():
    class Small(BaseModel):
        size: int | str

    with pytest.raises(ValidationError) as refused:
        Small.model_validate({"size": []})
    assert Fault.first(refused.value).where == "size.int"
    assert Fault.first(refused.value, {"size": []}).told() == "size must be a whole number or a text"


def test_a_key_of_a_part_of_a_part_is_sought_in_the_parts_that_there_are():
    with pytest.raises(ConfigError, match=r"unknown key 'updates'; did you mean 'distill\.optim\.updates'\?$"):
        make_recipe(TREE, ["updates=3"])


def test_what_is_told_names_keys_of_the_recipe_alone():
    assert set(CHANGES) and all(change.partition("=")[0].split(".")[0] in Recipe.model_fields for change in CHANGES)
