"""GenEval's scoring rules (2310.11513) as a pure function of what a detector found and what a prompt asks
for.

A prompt's metadata is GenEval's own, read by `flowopd.prompts.composition`. The detector's thresholds and its
limit of 16 objects a class are the detector's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowopd.errors import DataError
from flowopd.prompts.composition import RELATIONS, Clause, Composition, composition

Box = tuple[float, float, float, float]

POSITION_THRESHOLD = 0.1
"""Share of the two objects' summed extents, along each axis, by which an offset of centres is shortened."""


@dataclass(frozen=True)
class Detection:
    """One object; its colour is None where nobody asked, its box is (left, top, right, bottom), y down."""

    kind: str
    colour: str | None
    box: Box
    confidence: float


@dataclass(frozen=True)
class Verdict:
    """Three views of one picture, larger is better.

    official: 0 or 1, GenEval's own. strict: 0 or 1, official and every class asked for is there exactly as
    often as asked, and no other class. continuous: in 0..1, the mean over clauses of max(0, 1 - |found -
    wanted| / wanted), where found counts class and colour; a clause with a position is worth that times the
    share of pairs in place.
    """

    official: float
    strict: float
    continuous: float


def asked_of(metadata: Mapping[str, Any], text: str) -> Composition:
    """What a prompt's metadata asks for. Raises DataError if it has no `include`, or a clause that is broken."""
    asked = composition(metadata, f"prompt {text!r}")
    if not asked.include:
        raise DataError(f"prompt {text!r} has no composition metadata; GenEval's `include` has to name its objects")
    return asked


def judge(detections: Sequence[Detection], metadata: Mapping[str, Any]) -> Verdict:
    """The verdict on one picture.

    Raises DataError if the metadata has no `include`, or a clause that is broken or points at a later one.
    """
    asked = asked_of(metadata, str(metadata.get("prompt", "")))
    clauses = asked.include
    ranked = sorted(detections, key=lambda detection: -detection.confidence)
    found = Counter(detection.kind for detection in ranked)
    official = _all_hold(clauses, ranked) and not any(found[clause.kind] >= clause.count for clause in asked.exclude)
    strict = official and found == _wanted(clauses)
    return Verdict(float(official), float(strict), _continuous(clauses, ranked))


def relations(a: Box, b: Box) -> frozenset[str]:
    """Where box `a` lies as seen from box `b`: none, one or two of left of, right of, above, below.

    The offset of centres is shortened along each axis by POSITION_THRESHOLD of the summed extents; what is
    left must exceed half the offset's length.
    """
    corners = np.array([a, b], np.float64).reshape(2, 2, 2)
    centres, extents = corners.mean(1), np.abs(corners[:, 1] - corners[:, 0])
    offset = centres[0] - centres[1]
    rest = np.sign(offset) * np.maximum(np.abs(offset) - POSITION_THRESHOLD * extents.sum(0), 0.0)
    if np.abs(rest).max() < 1e-3:
        return frozenset()
    x, y = rest / np.linalg.norm(offset)
    places = dict(zip(RELATIONS, (-x, x, -y, y), strict=True))
    return frozenset(name for name, share in places.items() if share > 0.5)


def _wanted(clauses: Sequence[Clause]) -> Counter[str]:
    wanted: Counter[str] = Counter()
    for clause in clauses:
        wanted[clause.kind] += clause.count
    return wanted


def _all_hold(clauses: Sequence[Clause], ranked: Sequence[Detection]) -> bool:
    """Colour and position are asked of the `count` most confident objects of a class, as GenEval does."""
    groups = [[d for d in ranked if d.kind == clause.kind][: clause.count] for clause in clauses]
    return all(
        len(group) == clause.count
        and all(clause.colour in (None, d.colour) for d in group)
        and _in_place(clause, group, groups[clause.target]) == 1.0
        for clause, group in zip(clauses, groups, strict=True)
    )


def _in_place(clause: Clause, group: Sequence[Detection], targets: Sequence[Detection]) -> float:
    """Share of pairs (object, target) in the clause's relation: 1 without a relation, 0 without a pair."""
    if clause.relation is None:
        return 1.0
    pairs = [clause.relation in relations(d.box, target.box) for d in group for target in targets]
    return float(np.mean(pairs)) if pairs else 0.0


def _continuous(clauses: Sequence[Clause], ranked: Sequence[Detection]) -> float:
    groups = [[d for d in ranked if d.kind == c.kind and c.colour in (None, d.colour)] for c in clauses]
    return float(
        np.mean(
            [
                max(0.0, 1 - abs(len(group) - clause.count) / clause.count)
                * _in_place(clause, group, groups[clause.target])
                for clause, group in zip(clauses, groups, strict=True)
            ]
        )
    )
