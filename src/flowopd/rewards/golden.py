"""Judging a judge: pictures of which something is known before it sees them, and what its scores of them betray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flowopd.prompts import Prompt
from flowopd.rewards.base import Reward

LEAST_SPREAD = 1e-6
"""Scores nearer to each other than this are all the same."""

SLACK = 0.25
"""Share of the scores' spread by which a score may change with its batch: numerics do a little."""


@dataclass(frozen=True, eq=False)
class Golden:
    """Pictures (N, H, W, 3) uint8 and their N prompts.

    `better` holds pairs (i, j): picture i fits its prompt better than j fits its own. Any sound judge tells the
    pictures apart if `distinct`; else one may happen not to.
    """

    pictures: np.ndarray
    prompts: tuple[Prompt, ...]
    better: tuple[tuple[int, int], ...] = ()
    distinct: bool = True


@dataclass(frozen=True)
class Fault:
    """What a judge did that a sound one does not, or, if not `certain`, hardly does."""

    text: str
    certain: bool = True


def faults(judge: Reward, golden: Golden) -> list[Fault]:
    """What is wrong with a judge's scores of golden pictures: their number, range, constancy, order and preferences.

    Raises what the judge raises.
    """
    value = np.asarray(judge(golden.pictures, golden.prompts).value)
    broken = _malformed(value, len(golden.prompts))
    if broken:
        return [Fault(broken)]
    found = [Fault(f"gave {worst:g}, outside 0..1") for worst in value[(value < 0) | (value > 1)][:1]]
    if np.ptp(value) < LEAST_SPREAD:
        return [*found, Fault(f"gave {value[0]:g} to every golden picture", golden.distinct)]
    found += _displaced(judge, golden, value)
    wrong = [(i, j) for i, j in golden.better if not value[i] > value[j]]
    found += [
        Fault(f"gave the right picture {value[i]:g} and the wrong one {value[j]:g} for {golden.prompts[i].text!r}")
        for i, j in wrong[:1]
    ]
    return found


def _malformed(value: np.ndarray, n: int) -> str | None:
    """Why these are no scores of n pictures."""
    if value.shape != (n,):
        return f"gave {len(np.atleast_1d(value))} scores, shaped {value.shape}, for {n} pictures"
    finite = np.isfinite(value)
    return None if finite.all() else f"gave {value[~finite][0]} to golden picture {int(np.flatnonzero(~finite)[0])}"


def _displaced(judge: Reward, golden: Golden, value: np.ndarray) -> list[Fault]:
    """Scores of a batch, as it is and in another order, that are not those of each picture alone."""
    every = np.arange(len(value))
    alone = np.concatenate([_scores(judge, golden, [i]) for i in every])
    turned = np.random.default_rng(0).permutation(len(value))
    batches = [(every, value), (turned, _scores(judge, golden, turned))]
    for order, scores in batches:
        if alone.shape != value.shape or scores.shape != value.shape:
            return [Fault(f"gave {alone.size} scores to {len(value)} single pictures, {scores.size} to all together")]
        far = ~(np.abs(scores - alone[order]) <= SLACK * np.ptp(value))
        for i in np.flatnonzero(far)[:1]:
            text = f"gave a picture {alone[order][i]:g} alone and {scores[i]:g} among others: scores are out of order"
            return [Fault(text)]
    return []


def _scores(judge: Reward, golden: Golden, chosen: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.atleast_1d(judge(golden.pictures[chosen], [golden.prompts[i] for i in chosen]).value)
