"""Ways in which a picture gets worse, each with a severity in 0..1; what the quality judges are taught to
see.

A picture of severity s has the true quality 5 - 4 s, on DeQA's scale of 1 to 5. DEGRADATIONS is what the
base's corpus suffers from, and every judge knows; FURTHER only `mini_quality` learns from, ELSEWHERE only
`mini_holdout`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates, zoom


def blur(picture: np.ndarray, severity: float, _: np.random.Generator) -> np.ndarray:
    """Out of focus: a Gaussian of up to 2.4 pixels."""
    return gaussian_filter(picture, (2.4 * severity, 2.4 * severity, 0))


def fade(picture: np.ndarray, severity: float, _: np.random.Generator) -> np.ndarray:
    """Washed out: contrast around the mean lost, up to 75 %."""
    mean = picture.mean((0, 1), keepdims=True)
    return mean + (1 - 0.75 * severity) * (picture - mean)


def blotches(picture: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Coloured clouds of about eight pixels, up to 60 grey levels strong."""
    return picture + 60 * severity * _clouds(rng, 8)


def grain(picture: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of single pixels, up to 50 grey levels strong."""
    return picture + 50 * severity * rng.standard_normal(picture.shape)


def mottle(picture: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of about three pixels, up to 50 grey levels strong."""
    return picture + 50 * severity * _clouds(rng, 3)


def wobble(picture: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Wavy outlines: everything moved by up to about three pixels, differently every few pixels."""
    return _moved(picture, 2.5 * severity * _hills(rng, 3, 2))


def gaps(picture: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Broken shapes: up to 40 % of the picture, in patches, painted over with the background."""
    hills = _hills(rng, 2.5, 1)
    missing = np.clip(5 * (np.quantile(hills, 0.4 * severity) - hills), 0, 1)
    return picture + missing * (_background(picture) - picture)


def ghost(picture: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """A second picture three to nine pixels away shines through, up to half of what is seen."""
    turn, far = rng.uniform(0, 2 * np.pi), rng.uniform(3, 9)
    copy = np.roll(picture, (round(far * np.sin(turn)), round(far * np.cos(turn))), (0, 1))
    return picture + 0.5 * severity * (copy - picture)


def patchy(picture: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Washed out in places about sixteen pixels wide, up to 95 % of the contrast around the mean."""
    where = np.clip(0.65 + 0.4 * _hills(rng, 7, 1), 0.3, 1)
    mean = picture.mean((0, 1), keepdims=True)
    return mean + (1 - 0.95 * severity * where) * (picture - mean)


def uneven(picture: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Coloured clouds inside the objects alone, up to 60 grey levels strong."""
    inside = np.abs(picture - _background(picture)).max(2, keepdims=True) > 25
    return picture + 60 * severity * inside * _hills(rng, 3, 3)


def glow(picture: np.ndarray, severity: float, _: np.random.Generator) -> np.ndarray:
    """Soft edges: up to 90 % of the picture is its own Gaussian blur of three pixels."""
    return picture + 0.9 * severity * (gaussian_filter(picture, (3, 3, 0)) - picture)


def pixelate(picture: np.ndarray, severity: float, _: np.random.Generator) -> np.ndarray:
    """Up to all of the picture is its own mean over blocks of four pixels."""
    blocks = picture.reshape(16, 4, 16, 4, 3).mean((1, 3))
    return picture + severity * (blocks.repeat(4, 0).repeat(4, 1) - picture)


def streak(picture: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Motion: a Gaussian of up to four pixels along one axis."""
    along = rng.permutation([4.0 * severity, 0.0])
    return gaussian_filter(picture, (*along, 0))


def scatter(picture: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Frosted glass: every pixel fetched from up to about three pixels away."""
    return _moved(picture, 2 * severity * rng.standard_normal((64, 64, 2)))


def stripes(picture: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Bands of one colour in any direction, three to twelve pixels apart, up to 60 grey levels strong."""
    turn, frequency, phase = rng.uniform(0, np.pi), 2 * np.pi / rng.uniform(3, 12), rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:64, :64]
    wave = np.sin(frequency * (x * np.cos(turn) + y * np.sin(turn)) + phase)
    return picture + 60 * severity * wave[:, :, None] * rng.uniform(0.5, 1, 3)


def dim(picture: np.ndarray, severity: float, _: np.random.Generator) -> np.ndarray:
    """Too dark, down to 35 % of the light."""
    return (1 - 0.65 * severity) * picture


def _clouds(rng: np.random.Generator, pixels: int) -> np.ndarray:
    coarse = rng.standard_normal((64 // pixels + 2, 64 // pixels + 2, 3))
    fine = zoom(coarse, (pixels, pixels, 1), order=1)
    return fine[:64, :64]


def _hills(rng: np.random.Generator, pixels: float, layers: int) -> np.ndarray:
    """Smooth random numbers of unit variance, (64, 64, layers), rounded by a Gaussian of so many pixels."""
    hills = gaussian_filter(rng.standard_normal((64, 64, layers)), (pixels, pixels, 0), mode="wrap")
    return hills / hills.std((0, 1))


def _background(picture: np.ndarray) -> np.ndarray:
    """Median of the outermost pixels (3,)."""
    return np.median(np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]]), axis=0)


def _moved(picture: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Every pixel fetched from its place plus its offset (64, 64, 2) in pixels, linearly interpolated."""
    places = np.mgrid[:64, :64] + offsets.transpose(2, 0, 1)
    return np.stack(
        [map_coordinates(layer, places, order=1, mode="nearest") for layer in picture.transpose(2, 0, 1)], 2
    )


Degradation = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
DEGRADATIONS: dict[str, Degradation] = {
    "blur": blur,
    "fade": fade,
    "blotches": blotches,
    "grain": grain,
    "mottle": mottle,
}
FURTHER: dict[str, Degradation] = {
    "wobble": wobble,
    "gaps": gaps,
    "ghost": ghost,
    "patchy": patchy,
    "uneven": uneven,
    "glow": glow,
}
ELSEWHERE: dict[str, Degradation] = {
    "pixelate": pixelate,
    "streak": streak,
    "scatter": scatter,
    "stripes": stripes,
    "dim": dim,
}
_BY_NAME = DEGRADATIONS | FURTHER | ELSEWHERE


def degrade(picture: np.ndarray, name: str, severity: float, rng: np.random.Generator) -> np.ndarray:
    """One picture (64, 64, 3) uint8 made worse in the way `name` by `severity` in 0..1; uint8 again."""
    return to_bytes(_BY_NAME[name](picture.astype(np.float64), severity, rng))


def to_bytes(picture: np.ndarray) -> np.ndarray:
    """Real grey levels -> uint8, rounded and clipped."""
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
