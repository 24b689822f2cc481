"""The schema of recipes: current, complete, and in agreement with what the program takes and refuses."""

import json

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from flowopd.recipe import Recipe
from flowopd.schema import SCHEMA, recipe_schema
from flowopd.shipped import FOLDER, shipped_recipe, shipped_recipes

TREE = json.loads(recipe_schema())
MODELINE = f"# yaml-language-server: $schema={SCHEMA}"


def undescribed(tree):
    """The keys of all objects of a schema that do not say what they are for."""
    nodes = {"": tree, **tree.get("$defs", {})}
    return [
        f"{name}.{key}"
        for name, node in nodes.items()
        for key, value in node.get("properties", {}).items()
        if not value.get("description")
    ]


def test_every_key_of_a_recipe_says_what_it_is_for():
    assert undescribed(TREE) == []


def test_a_key_that_does_not_is_reported():
    class Bad(BaseModel):
        silent: int = 0

    assert undescribed(Bad.model_json_schema()) == [".silent"]


def test_the_shipped_schema_is_current(flowopd):
    mend = f"flowopd recipes schema > src/flowopd/recipes/{SCHEMA}"
    assert (FOLDER / SCHEMA).read_text(encoding="utf-8") == recipe_schema(), mend
    assert flowopd("recipes", "schema").out == recipe_schema()


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_names_the_schema_and_keeps_it(name):
    text = shipped_recipe(name).read_text(encoding="utf-8")
    assert MODELINE in text.splitlines()
    jsonschema.validate(yaml.safe_load(text), TREE)


@pytest.mark.parametrize("change", [{"distil": {}}, {"seed": "many"}, {"distill": {"optim": {"updates": 0}}}])
def test_what_the_program_refuses_the_schema_refuses(change):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"base": "b", **change}, TREE)
    with pytest.raises(ValueError):
        Recipe.model_validate({"base": "b", **change})
