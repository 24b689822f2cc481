"""The mini world's GenEval: objects found from pixels alone, judged by GenEval's rules.

Nothing is learned. The background is what the border shows; what differs from it falls into connected
components; a component is an object if its outline fits one of the drawn kinds, and it has the colour that
its inside is nearest to, fresh or faded. Anything else is no object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.ndimage import binary_erosion, find_objects, gaussian_filter, label, maximum_filter
from torch.nn.functional import grid_sample

from flowopd.mini.draw import SCALE, silhouette
from flowopd.mini.world import COLOURS, KINDS, SIZE
from flowopd.prompts import Prompt
from flowopd.rewards.base import Scores
from flowopd.rewards.geneval_rules import Box, Detection, asked_of, judge
from flowopd.rewards.pairs import check_pairs

SMOOTHING = 0.7
"""Gaussian, in pixels, that takes the edge off single-pixel noise before anything is looked at."""

BORDER = 2
"""Width in pixels of the frame that is taken for background."""

LEAST_DISTANCE, NOISE_FACTOR = 24.0, 2.4
"""A pixel this far from the background (Euclidean, grey levels; or times its noise) is foreground."""

PROMINENCE, WINDOW = 1 / 3, 7
"""A pixel is foreground if its distance is this share of the largest in a window this wide: no blurred skirts."""

LEAST_AREA = 30
"""Pixels below which a component is a speck."""

LEAST_FIT = 0.86
"""Tanimoto similarity, in 0..1, below which an outline is none of the kinds."""

LEAST_CONTRAST = 0.4
"""Least share of its contrast to the background with which a colour, faded or blurred, is still itself."""

FRAME = 32
"""Width in samples of the frame in which outlines are compared."""

REACH = 2.4
"""Half of the frame in units of the outline's root mean square distance from its centre."""


@dataclass(frozen=True)
class _Blob:
    """A component: coverage (64, 64) float32 in 0..1, name of its colour, box in pixels."""

    coverage: np.ndarray
    colour: str
    box: Box


class MiniGeneval:
    """GenEval for pictures (B, 64, 64, 3). `value` is the official score; details: `strict`, `continuous`.

    Raises DataError if a prompt has no composition metadata, or pictures and prompts differ in number.
    """

    @staticmethod
    def check_prompt(prompt: Prompt) -> None:
        """Raises DataError if a prompt has no composition metadata."""
        asked_of(prompt.metadata, prompt.text)

    def __call__(self, pictures: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        check_pairs(pictures, prompts)
        verdicts = [
            judge(found, {**prompt.metadata, "prompt": prompt.text})
            for found, prompt in zip(detect(pictures), prompts, strict=True)
        ]
        views = {name: np.array([getattr(v, name) for v in verdicts]) for name in ("official", "strict", "continuous")}
        return Scores(views.pop("official"), views)


def detect(pictures: np.ndarray) -> list[list[Detection]]:
    """The objects on each of B pictures (B, 64, 64, 3) uint8; a detection's confidence is its fit."""
    blobs = [_blobs(picture) for picture in pictures]
    coverage = np.array([blob.coverage for group in blobs for blob in group], np.float32)
    fits = iter(_fit(coverage.reshape(-1, SIZE, SIZE)))
    return [[found for blob in group for found in _recognised(blob, next(fits))] for group in blobs]


def _recognised(blob: _Blob, fit: np.ndarray) -> list[Detection]:
    """One detection, or none if no kind fits."""
    best = int(fit.argmax())
    if fit[best] < LEAST_FIT:
        return []
    return [Detection(KINDS[best], blob.colour, blob.box, float(fit[best]))]


def _blobs(picture: np.ndarray) -> list[_Blob]:
    """Connected components of one colour, covering a pixel as far as it has gone there from the background."""
    x = gaussian_filter(picture.astype(np.float32), (SMOOTHING, SMOOTHING, 0), truncate=3.0)
    border = np.concatenate([x[:BORDER], x[-BORDER:], x[:, :BORDER].swapaxes(0, 1), x[:, -BORDER:].swapaxes(0, 1)])
    background = np.median(border.reshape(-1, 3), axis=0)
    distance = np.linalg.norm(x - background, axis=2)
    noise = np.median(np.linalg.norm(border - background, axis=2))
    labels, _ = label(_prominent(distance) & (distance > max(LEAST_DISTANCE, NOISE_FACTOR * noise)))
    blobs = []
    for number, where in enumerate(find_objects(labels), 1):
        inside = labels[where] == number
        offset = _colour(x[where], inside) - background
        if inside.sum() >= LEAST_AREA and np.linalg.norm(offset) >= LEAST_DISTANCE:
            rows, columns = where
            box = (columns.start, rows.start, columns.stop, rows.stop)
            share = (x[where] - background) @ offset / np.square(offset).sum()
            coverage = np.zeros((SIZE, SIZE), np.float32)
            coverage[where] = _strengthened(share) * inside
            blobs.append(_Blob(coverage, _nearest_colour(offset, background), box))
    return blobs


def _colour(x: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Median colour (3,) away from the edge, where there is such a place."""
    core = binary_erosion(inside)
    return np.median(x[core if core.any() else inside], axis=0)


def _prominent(distance: np.ndarray) -> np.ndarray:
    return distance >= PROMINENCE * maximum_filter(distance, WINDOW)


def _strengthened(share: np.ndarray) -> np.ndarray:
    """A pixel half covered counts as covered, so that thin ends weigh what they should."""
    return np.clip(2 * share, 0, 1)


def _nearest_colour(offset: np.ndarray, background: np.ndarray) -> str:
    """Of the colours, each at a contrast of LEAST_CONTRAST..1, the one nearest to background + offset."""
    fresh = np.array(list(COLOURS.values())) - background
    contrast = np.clip(fresh @ offset / np.square(fresh).sum(1), LEAST_CONTRAST, 1)
    return list(COLOURS)[int(np.linalg.norm(contrast[:, None] * fresh - offset, axis=1).argmin())]


def _fit(coverage: np.ndarray) -> np.ndarray:
    """Tanimoto similarity of outlines (N, 64, 64) to each kind (N, kinds), the best over its templates."""
    a, bank = _framed(coverage), _bank()
    products = a @ bank.flatten(0, 1).T
    norms = a.square().sum(1, keepdim=True) + bank.flatten(0, 1).square().sum(1)
    return (products / (norms - products)).unflatten(1, bank.shape[:2]).amax(2).numpy()


def _framed(coverage: np.ndarray) -> torch.Tensor:
    """Outlines (N, 64, 64) -> (N, FRAME^2), their centroids and mean square radii made the same."""
    mass = torch.from_numpy(coverage).double()
    mass = mass / mass.sum((1, 2), keepdim=True)
    places = (torch.arange(SIZE).double() + 0.5) * 2 / SIZE - 1
    x, y = (mass.sum(1) * places).sum(1), (mass.sum(2) * places).sum(1)
    spread = ((mass.sum(1) + mass.sum(2)) * places.square()).sum(1) - x.square() - y.square()
    along = (torch.arange(FRAME) + 0.5) * 2 / FRAME - 1
    frame = torch.stack([along.expand(FRAME, FRAME), along[:, None].expand(FRAME, FRAME)], 2)
    grid = REACH * spread.sqrt()[:, None, None, None] * frame + torch.stack([x, y], 1)[:, None, None]
    return grid_sample(torch.from_numpy(coverage)[:, None], grid.float(), align_corners=False).flatten(1)


@cache
def _bank() -> torch.Tensor:
    """Templates (kinds, variants, FRAME^2): each kind in a few sizes, places and sharpnesses."""
    variants = [(r, shift, blur) for r in (10.5, 14.0, 19.0) for shift in (0.0, 0.5) for blur in (0.0, 1.0, 1.8)]
    outlines = np.array([_template(kind, *variant) for kind in KINDS for variant in variants])
    return _framed(outlines).unflatten(0, (len(KINDS), len(variants)))


def _template(kind: str, radius: float, shift: float, blur: float) -> np.ndarray:
    mask = np.asarray(silhouette(kind, radius, SIZE / 2 + shift, SIZE / 2 + shift), np.float32) / 255
    mask = mask.reshape(SIZE, SCALE, SIZE, SCALE).mean((1, 3))
    share = gaussian_filter(mask, np.hypot(SMOOTHING, blur))
    return _strengthened(share) * _prominent(share)
