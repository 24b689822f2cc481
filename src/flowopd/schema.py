"""The JSON schema of recipes, for editors and for reading: every key with its meaning, bounds and default."""

from __future__ import annotations

import json

from flowopd.recipe import Recipe

SCHEMA = "recipe.schema.json"
"""The schema's file beside the shipped recipes."""


def recipe_schema() -> str:
    """The schema as text. Keys that are not in it are mistakes."""
    tree = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"
