"""YAML and JSON from anywhere, read into plain values: strictly, in bounded time and memory, and nothing runs.

Plain values are dicts with distinct keys, lists, strings, numbers that are finite, true, false and null. Tags, dates
and repeated keys are mistakes. Every ValueError here is one line that says what and where; its reader adds the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from flowopd.errors import SECRET

DEEPEST = 32
"""Levels of nesting."""

MOST_VALUES = 100_000
"""Values of a YAML text, those behind an alias counted each time."""

LARGEST_YAML = 256 << 10
"""Bytes of a YAML text."""

LONGEST = 20
"""Digits of a whole number."""

SHOWN = 60
"""Characters of a value that an error shows."""


def yaml_values(text: str) -> Any:
    """The plain values of a YAML text; anchors and merge keys (`<<`) are honoured. Raises ValueError."""
    if len(text) > LARGEST_YAML:
        raise ValueError(f"it has more than {LARGEST_YAML >> 10} KiB")
    try:
        return yaml.load(text, _Plain)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{error.problem or error.context}{where}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def json_values(text: str) -> Any:
    """The plain values of a JSON text. Raises ValueError."""
    try:
        values = json.loads(
            text,
            object_pairs_hook=_distinct,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} deep") from None
    check_values(values)
    return values


def check_values(values: Any) -> None:
    """Raises ValueError for values nested too deep, and for texts that no file could keep."""
    for depth, value in _walked(values):
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")
        if isinstance(value, str):
            check_text(value)


def check_text(text: str) -> None:
    """Raises ValueError for a text with a zero character, or half of a surrogate pair."""
    if "\0" in text:
        raise ValueError(f"the text {text[:SHOWN]!r} holds a zero character")
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"the text {text[:SHOWN]!r} holds half of a surrogate pair")


def check_secrets(values: Any) -> None:
    """Raises ValueError, without showing it, for a text that holds a token, or an address with a password or a key."""
    if any(isinstance(value, str) and SECRET.search(value) for _, value in _walked(values)):
        raise ValueError("a token, or an address with a password, stands in it; keep it in an environment variable")


def read_at_most(path: Path, size: int) -> bytes:
    """What a file holds. Raises ValueError if that is more than `size` bytes, OSError if it cannot be read."""
    try:
        with path.open("rb") as stream:
            content = stream.read(size + 1)
    except ValueError as error:
        raise OSError(0, str(error)) from None
    if len(content) > size:
        raise ValueError(f"it has more than {size:,} bytes")
    return content


def _walked(values: Any) -> Iterator[tuple[int, Any]]:
    """Every value and key with its depth; what is too deep is not entered."""
    waiting = [(0, values)]
    while waiting:
        depth, value = waiting.pop()
        yield depth, value
        if isinstance(value, dict):
            waiting += [(depth + 1, below) for pair in value.items() for below in pair]
        elif isinstance(value, list):
            waiting += [(depth + 1, below) for below in value]


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:SHOWN]!r} stands there twice")
    return values


def _whole(digits: str) -> int:
    if len(digits) > LONGEST:
        raise ValueError(f"the number {digits[:SHOWN]} has more than {LONGEST} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:SHOWN]} is not finite")
    return value


class _Plain(yaml.SafeLoader):
    """A loader of plain values alone, which counts what it composes before it builds anything."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":value"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._count = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node, counted; one behind an alias counts with all that is below it."""
        mark, before = self.peek_event().start_mark, self._count
        aliased = self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"it is nested more than {DEEPEST} deep", problem_mark=mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if aliased and node not in self._sizes:
            raise yaml.MarkedYAMLError(problem="an alias stands within its own anchor", problem_mark=mark)
        self._count += self._sizes[node] if aliased else 1
        if not aliased:
            self._sizes[node] = self._count - before
        if self._count > MOST_VALUES:
            raise yaml.MarkedYAMLError(problem=f"it stands for more than {MOST_VALUES} values", problem_mark=mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """A mapping whose keys are single values, each of them once."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a single value", problem_mark=key.start_mark)
            if (key.tag, key.value) in seen:
                problem = f"the key {key.value[:SHOWN]!r} stands there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add((key.tag, key.value))
        return node

    def construct_number(self, node: Any) -> int | float:
        """A number as YAML 1.1 writes it. Raises MarkedYAMLError for one that is none, too long or not finite."""
        kind, digits = "int" if node.tag.endswith(":int") else "float", self.construct_scalar(node)
        try:
            if ":" in digits:
                raise ValueError(f"{digits[:SHOWN]} would be read to the base of 60; put it into quotes")
            if kind == "int" and len(digits) > LONGEST:
                raise ValueError(f"the number {digits[:SHOWN]} has more than {LONGEST} digits")
            value = getattr(super(), f"construct_yaml_{kind}")(node)
            return _finite(str(value)) if kind == "float" else value
        except (ValueError, OverflowError) as error:
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None
        except IndexError:
            raise yaml.MarkedYAMLError(problem="a number is empty", problem_mark=node.start_mark) from None

    def construct_text(self, node: Any) -> str:
        """A text that can be written to a file."""
        text = self.construct_scalar(node)
        try:
            check_text(text)
        except ValueError as error:
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from None
        return text

    def construct_truth(self, node: Any) -> bool:
        """True or false. Raises MarkedYAMLError for any other word with this tag."""
        word = self.construct_scalar(node)
        if word.lower() not in self.bool_values:
            problem = f"{word[:SHOWN]!r} is neither true nor false"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return self.construct_yaml_bool(node)


_TAG = "tag:yaml.org,2002:"
_Plain.yaml_constructors = {
    f"{_TAG}null": _Plain.construct_yaml_null,
    f"{_TAG}bool": _Plain.construct_truth,
    f"{_TAG}int": _Plain.construct_number,
    f"{_TAG}float": _Plain.construct_number,
    f"{_TAG}str": _Plain.construct_text,
    f"{_TAG}seq": _Plain.construct_yaml_seq,
    f"{_TAG}map": _Plain.construct_yaml_map,
    None: _Plain.construct_undefined,
}
