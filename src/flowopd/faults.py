"""What is wrong with values that pydantic refused, in words that one can act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    "too_short": "at least {min_length} long",
    "too_long": "at most {max_length} long",
    "string_too_short": "{min_length} or more characters long",
    "string_too_long": "{max_length} characters long at most",
}
"""By pydantic's name of what went wrong; what is not here is told in its own words, or in those of a check of ours."""

ABSENT, UNKNOWN, NO_KIND, OTHER_KIND = "missing", "extra_forbidden", "union_tag_not_found", "union_tag_invalid"
"""What pydantic calls a key that is missing or unknown, a part without its `kind`, and one whose kind there is not."""

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Fault:
    """The first thing that is wrong with values: its place among them, and what was said of each kind tried there."""

    place: Place
    said: tuple[ErrorDetails, ...]

    @classmethod
    def first(cls, error: ValidationError, values: object = None) -> Fault:
        """The first one, and of values of several kinds that of the kind which fits furthest.

        pydantic's own path names the kinds that it tried too; with the `values` these are left out.
        """
        errors = error.errors(include_url=False)
        places = [tuple(each["loc"]) if values is None else _place(each, values) for each in errors]
        top = places[0]
        place = max((each for each in places if each[: len(top)] == top), key=len)
        return cls(place, tuple(each for each, where in zip(errors, places, strict=True) if where == place))

    @property
    def where(self) -> str:
        """The place as it is written in `--set`."""
        return ".".join(map(str, self.place))

    @property
    def type(self) -> str:
        """What went wrong, by pydantic's name."""
        return self.said[0]["type"]

    @property
    def value(self) -> Any:
        """The value that is wrong."""
        return self.said[0]["input"]

    @property
    def wanted(self) -> list[str]:
        """What may stand there, by kind; empty where one of them says it in words of its own."""
        known = [WANTED[each["type"]].format(**_bounds(each)) for each in self.said if each["type"] in WANTED]
        return list(dict.fromkeys(known)) if len(known) == len(self.said) else []

    def told(self) -> str:
        """`WHERE must be a number or 'auto'`; `WHERE: MESSAGE`, or the message alone, for words of its own."""
        if self.wanted:
            return f"{self.where or 'the whole'} must be {' or '.join(self.wanted)}"
        message = " ".join(self.said[0]["msg"].removeprefix("Value error, ").split())
        return f"{self.where}: {message}" if self.place else message

    def came_with(self, changes: Sequence[str]) -> bool:
        """Whether it is the fault of one of these changes, `key.key=value` each, and not of a file."""
        place = [*map(str, self.place), *(["kind"] if self.type == OTHER_KIND else [])]
        paths = [change.partition("=")[0].split(".") for change in changes]
        within = self.type in (UNKNOWN, NO_KIND)
        return any(place[: len(path)] == path or (within and path[: len(place)] == place) for path in paths)


def explained(fault: Fault, kind: type[BaseModel], values: Mapping[str, Any]) -> str:
    """What is wrong with the values of a `kind`: the key, what it must be, what it is, and what may be meant."""
    nodes = _nodes(kind, fault.place, values)
    if fault.type == UNKNOWN:
        return f"unknown key {fault.where!r}{_meant_key(fault.place, kind, values)}"
    if fault.type == ABSENT:
        return f"{fault.where} is missing; add it"
    if fault.type in (NO_KIND, OTHER_KIND):
        return _of_no_kind(fault, [name for node in nodes if (name := _kind(node)) is not None])
    if not fault.place or fault.place[-1] == "token" or isinstance(fault.value, Mapping):
        return fault.told()
    given = str(fault.value)
    literals = [each["ctx"]["expected"] for each in fault.said if each["type"] == "literal_error"]
    words = [word for literal in literals for word in literal.split("'")[1::2]]
    return f"{fault.told()}, got {given[:80]!r}{_meant(given, words) or _written(fault, _keys(nodes))}"


def _place(error: ErrorDetails, values: object) -> Place:
    """The keys and positions that lead to what is wrong, as far as they are ones of the values."""
    place: list[str | int] = []
    for part in error["loc"]:
        if _holds(values, part):
            values = values[part]  # type: ignore[index]
            place.append(part)
    return (*place, error["loc"][-1]) if error["type"] == ABSENT else tuple(place)


def _holds(values: object, part: str | int) -> bool:
    if isinstance(values, list | tuple):
        return isinstance(part, int) and part < len(values)
    return isinstance(values, Mapping) and part in values


def _bounds(error: ErrorDetails) -> dict[str, Any]:
    """What pydantic compared with; a bound that is whole as it stands in a recipe."""
    found = error.get("ctx", {})
    whole = {name: int(bound) for name, bound in found.items() if isinstance(bound, float) and bound.is_integer()}
    return found | whole


def _of_no_kind(fault: Fault, kinds: Sequence[str]) -> str:
    wanted = " or ".join(map(repr, kinds))
    if fault.type == NO_KIND:
        return f"{fault.where}.kind is missing; add {wanted}"
    given = str(fault.said[0]["ctx"]["tag"])
    return f"{fault.where}.kind must be {wanted}, got {given[:80]!r}{_meant(given, kinds)}"


def _meant(given: str, words: Sequence[str]) -> str:
    near = get_close_matches(given, words, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _written(fault: Fault, keys: Sequence[str]) -> str:
    """How a list or a part is written, where there was one value in place of it."""
    if fault.wanted == [LIST] and isinstance(fault.value, str):
        return f"; write it as [{fault.value[:80]}]"
    return f"; its keys are {', '.join(keys)}" if fault.wanted == [MAPPING] and keys else ""


def _meant_key(place: Place, kind: type[BaseModel], values: Mapping[str, Any]) -> str:
    """What was meant by a key that there is not: the same one deeper in this part, or one that is written alike."""
    *above, key = place
    known = _keys(_nodes(kind, above, values))
    if key in known:
        return "; it does not go with the other keys there"
    near = _deeper(place, kind, values) or get_close_matches(str(key), known, n=1)
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    return f"; the keys there are {', '.join(known)}" if known else ""


def _deeper(place: Place, kind: type[BaseModel], values: Mapping[str, Any]) -> list[str]:
    """Where a key stands one part below its place, or else two: in parts that the values hold, if it is in any."""
    *above, key = place
    parts: list[Place] = [(*above,)]
    for _ in range(2):
        parts = [(*part, name) for part in parts for name in _keys(_nodes(kind, part, values))]
        found = [part for part in parts if key in _keys(_nodes(kind, part, values))]
        if found:
            held = [part for part in found if _value(values, part[: len(place)]) is not None]
            return [".".join(map(str, (*part, key))) for part in held or found]
    return []


def _value(values: object, place: Place) -> object:
    """What stands at a place; None where there is no such place."""
    for part in place:
        values = values[part] if _holds(values, part) else None  # type: ignore[index]
    return values


@cache
def _schema(kind: type[BaseModel]) -> dict[str, Any]:
    return kind.model_json_schema()


def _nodes(kind: type[BaseModel], place: Sequence[str | int], values: object) -> list[dict[str, Any]]:
    """The parts of the schema that a place may be of: of several kinds the one that the values name, if they do."""
    schema = _schema(kind)
    nodes = [schema]
    for part in place:
        nodes = [below for node in nodes for below in _below(node, part, schema)]
        values = values[part] if _holds(values, part) else None
        named = values.get("kind") if isinstance(values, Mapping) else None
        nodes = [node for node in nodes if _kind(node) is not None and _kind(node) == named] or nodes
    return nodes


def _kind(node: Mapping[str, Any]) -> str | None:
    found = node.get("properties", {}).get("kind", {}).get("const")
    return None if found is None else str(found)


def _keys(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({key for node in nodes for key in node.get("properties", {})})


def _below(node: Mapping[str, Any], part: str | int, schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    of_key = node.get("properties", {}).get(part) or node.get("additionalProperties")
    found = node.get("items") if isinstance(part, int) else of_key
    return _resolved(found, schema) if isinstance(found, dict) else []


def _resolved(node: Mapping[str, Any], schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in node:
        return _resolved(schema["$defs"][node["$ref"].rsplit("/", 1)[-1]], schema)
    options = [*node.get("anyOf", ()), *node.get("oneOf", ())]
    return [found for option in options for found in _resolved(option, schema)] or [dict(node)]
