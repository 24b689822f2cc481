"""What GenEval's metadata (2310.11513) asks of a picture: `include` clauses, which must hold, and `exclude` clauses.

A clause is {class, count, color?, position?}, `position` being [relation, index of an earlier clause]; an excluded one
is {class, count}, which may not be reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowopd.errors import DataError

RELATIONS = ("left of", "right of", "above", "below")

MOST = 10_000
"""Objects of a clause."""

SHOWN = 200
"""Characters of a clause that an error shows."""


@dataclass(frozen=True)
class Clause:
    """`count` objects of a kind; of a colour, and in `relation` to those of the clause `target`, unless None."""

    kind: str
    count: int
    colour: str | None = None
    relation: str | None = None
    target: int = 0


@dataclass(frozen=True)
class Composition:
    """The clauses that must hold, and those that may not."""

    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...]


def composition(metadata: Mapping[str, Any], where: str) -> Composition:
    """The clauses of a prompt's metadata, none where it has none.

    Raises DataError, which begins with `where`, for a clause that is broken.
    """
    include, exclude = (_clauses(metadata, key, where) for key in ("include", "exclude"))
    for i, clause in enumerate(include):
        if clause.relation is not None and not (clause.relation in RELATIONS and 0 <= clause.target < i):
            raise _broken(where, "include", metadata["include"][i])
    return Composition(include, exclude)


def _clauses(metadata: Mapping[str, Any], key: str, where: str) -> tuple[Clause, ...]:
    rows = metadata.get(key) or ()
    if not isinstance(rows, list | tuple):
        raise DataError(f"{where} has an `{key}` that is no list, {repr(rows)[:SHOWN]}; list its clauses")
    return tuple(_clause(row, key, where) for row in rows)


def _clause(row: Any, key: str, where: str) -> Clause:
    if not isinstance(row, Mapping):
        raise _broken(where, key, row)
    kind, count, place = row.get("class"), row.get("count"), row.get("position") or (None, 0)
    whole = isinstance(kind, str) and _is_whole(count) and 1 <= count <= MOST
    coloured = row.get("color") is None or isinstance(row["color"], str)
    placed = isinstance(place, list | tuple) and len(place) == 2 and _is_whole(place[1])
    if not (whole and coloured and placed):
        raise _broken(where, key, row)
    return Clause(kind, count, row.get("color"), *place)


def _is_whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def _broken(where: str, key: str, row: Any) -> DataError:
    shown = repr(dict(row) if isinstance(row, Mapping) else row)[:SHOWN]
    return DataError(
        f"{where} has a broken `{key}` clause {shown}; it needs a class, a count of 1 or more, and a position, if "
        f"any, of one of {', '.join(RELATIONS)} and the index of an earlier clause"
    )
