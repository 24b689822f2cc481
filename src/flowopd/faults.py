"""What is wrong with values that pydantic refused, in words that one can act on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

WHOLE_NUMBER, NUMBER, LIST, MAPPING = "a whole number", "a number", "a list", "a mapping of keys"

WANTED = {
    "int_type": WHOLE_NUMBER,
    "int_parsing": WHOLE_NUMBER,
    "int_from_float": WHOLE_NUMBER,
    "float_type": NUMBER,
    "float_parsing": NUMBER,
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "list_type": LIST,
    "tuple_type": LIST,
    "dict_type": MAPPING,
    "model_type": MAPPING,
    "model_attributes_type": MAPPING,
    "literal_error": "{expected}",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "string_too_short": "{min_length} or more characters long",
    "string_too_long": "{max_length} characters long at most",
}
"""By pydantic's name of what went wrong; what is not here is told in its own words, or in those of a check of ours."""

KINDS = ("merge", "sft", "[key]", "a claim", "a claim within")
"""Tags of unions, and of keys: pydantic puts them into the path of an error."""

TRIED = ("literal[", "list[", "dict[", "tuple[", "function-", "constrained-")
"""How the names of the kinds of values begin that it tried at a place, where there are several."""

NO_KIND = "union_tag_invalid"
"""What pydantic calls a `kind` that there is not; it names the part, and not the key."""


def told(where: str, faults: Sequence[ErrorDetails]) -> str:
    """`WHERE must be a number or 'auto'`, from what was said of each kind of value that was tried there.

    `WHERE: MESSAGE`, or the message alone where `where` is empty, for what a check says in words of its own.
    """
    wanted = [WANTED[fault["type"]].format(**_bounds(fault)) for fault in faults if fault["type"] in WANTED]
    if wanted and len(wanted) == len(faults):
        return f"{where or 'the whole'} must be {' or '.join(dict.fromkeys(wanted))}"
    message = " ".join(faults[0]["msg"].removeprefix("Value error, ").split())
    return f"{where}: {message}" if where else message


def _bounds(fault: ErrorDetails) -> dict[str, Any]:
    """What pydantic compared with; a bound that is whole as it stands in a recipe."""
    found = fault.get("ctx", {})
    whole = {name: int(bound) for name, bound in found.items() if isinstance(bound, float) and bound.is_integer()}
    return found | whole


def is_changed(error: ValidationError, overrides: Sequence[str]) -> bool:
    """Whether the value that is wrong came with a change, and not from the recipe's file."""
    first = error.errors()[0]
    place = list(map(str, _place(first)))
    paths = [override.partition("=")[0].split(".") for override in overrides]
    within = first["type"] in ("extra_forbidden", NO_KIND)
    return any(place[: len(path)] == path or (within and path[: len(place)] == place) for path in paths)


def _place(fault: ErrorDetails) -> list[str | int]:
    """The keys that lead to what is wrong, without the kinds of values that pydantic tried there."""
    return [part for part in fault["loc"] if part not in KINDS and not str(part).startswith(TRIED)]


def explained(error: ValidationError, kind: type[BaseModel]) -> str:
    """What is wrong first with the values of a `kind`: the key, what it must be, what it is, and what may be meant."""
    faults = error.errors()
    first, place = faults[0], _place(faults[0])
    where = ".".join(map(str, place))
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}; {_nearest(kind, place)}"
    if first["type"] == "missing":
        return f"{where} is missing; add it"
    if first["type"] == NO_KIND:
        given, known = first["ctx"]["tag"], re.findall(r"'([^']*)'", first["ctx"]["expected_tags"])
        return f"{where}.kind must be {' or '.join(map(repr, known))}, got {given[:80]!r}{_meant(given, known)}"
    message = told(where, [fault for fault in faults if _place(fault) == place])
    if not place or place[-1] == "token" or isinstance(first["input"], Mapping):
        return message
    given = str(first["input"])
    words = re.findall(r"'([^']*)'", first["msg"]) if first["type"] == "literal_error" else []
    return f"{message}, got {given[:80]!r}{_meant(given, words) or _written(message, given, _known_keys(kind, place))}"


def _meant(given: str, words: Sequence[str]) -> str:
    near = get_close_matches(given, words, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _written(message: str, given: str, keys: Sequence[str]) -> str:
    """How a list or a part is written, where there was one value in place of it."""
    if message.endswith(f"must be {LIST}"):
        return f"; write it as [{given[:80]}]"
    return f"; its keys are {', '.join(keys)}" if message.endswith(MAPPING) and keys else ""


def _nearest(kind: type[BaseModel], place: Sequence[str | int]) -> str:
    """What was meant by a key that there is not: one that is written alike, or the same one in a part of this part."""
    *above, key = map(str, place)
    known = _known_keys(kind, above)
    parts = [[*above, part] for part in known]
    below = [".".join([*part, key]) for part in parts if key in _known_keys(kind, part)]
    near = get_close_matches(key, known, n=1) or below
    return f"did you mean {near[0]!r}?" if near else f"the keys there are {', '.join(known)}"


@cache
def _schema(kind: type[BaseModel]) -> dict[str, Any]:
    return kind.model_json_schema()


def _known_keys(kind: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys that the schema allows at a path."""
    schema = _schema(kind)
    nodes = [schema]
    for part in path:
        nodes = [below for node in nodes for below in _below(node, str(part), schema)]
    return sorted({key for node in nodes for key in node.get("properties", {})})


def _below(node: Mapping[str, Any], key: str, schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = node.get("properties", {}).get(key) or node.get("additionalProperties")
    return _resolved(found, schema) if isinstance(found, dict) else []


def _resolved(node: Mapping[str, Any], schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in node:
        return _resolved(schema["$defs"][node["$ref"].rsplit("/", 1)[-1]], schema)
    options = [*node.get("anyOf", ()), *node.get("oneOf", ())]
    return [found for option in options for found in _resolved(option, schema)] or [dict(node)]
