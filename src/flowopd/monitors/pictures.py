"""Numbers of a set of pictures (B, H, W, 3) uint8, `group` of each prompt in a row; no model and no reward."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import median_filter

Pictures = np.ndarray
LOW_FREQUENCY = 0.1
"""Cycles a pixel below which a spectrum shows what a picture is of, and not how it was made."""

AROUND = np.array([1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1], bool)
"""The neighbours that a peak of the spectrum is held against, in bins along either axis; its own foot is left out."""

COARSE = 16
"""Largest side in pixels of the pictures whose distances are taken."""


def measures(pictures: Pictures, group: int) -> dict[str, float]:
    """Every number of this module by its name."""
    return {
        "grid": grid(pictures),
        "noise": noise(pictures),
        "sharpness": sharpness(pictures),
        "clipped": clipped(pictures),
        "chroma": chroma(pictures),
        "diversity": diversity(pictures, group),
    }


def grid(pictures: Pictures) -> float:
    """How far the sharpest peak of the spectrum stands out: some units for a drawing, tens and more for a grid.

    In each picture's periodogram (a Hann window) every power is divided by the median of its neighbours, along the axis
    where that is larger: outlines are long ridges and cancel, a lattice or a checkerboard is made of points. The
    geometric mean over pictures keeps what they share; its largest value off the low frequencies counts.
    """
    grey = _grey(pictures)
    height, width = grey.shape[1:]
    window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[None, 1:-1]
    mean = (grey * window).sum((1, 2), keepdims=True) / window.sum()
    level = np.log(np.abs(np.fft.fft2((grey - mean) * window)) ** 2 + 1)
    along, down = (
        median_filter(level, footprint=AROUND.reshape(shape), mode="wrap") for shape in ((1, 1, -1), (1, -1, 1))
    )
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    return float(np.exp((level - np.maximum(along, down)).mean(0)[frequency >= LOW_FREQUENCY].max()))


def noise(pictures: Pictures) -> float:
    """Standard deviation, in grey levels, of white noise of the same median Laplacian; outlines hardly count."""
    return float(np.median(np.abs(_laplacian(pictures)), (1, 2)).mean() / (0.6745 * np.sqrt(20)))


def sharpness(pictures: Pictures) -> float:
    """Mean over pictures of the variance of the Laplacian, in squared grey levels: blur lowers it, noise raises it."""
    return float(_laplacian(pictures).var((1, 2)).mean())


def clipped(pictures: Pictures) -> float:
    """Share of pixels with a channel at either end of its range, in 0..1."""
    return float(((pictures <= 1) | (pictures >= 254)).any(3).mean())


def chroma(pictures: Pictures) -> float:
    """Mean distance between the largest and the smallest channel of a pixel, in 0..1."""
    return float((pictures.max(3).astype(float) - pictures.min(3)).mean() / 255)


def diversity(pictures: Pictures, group: int) -> float:
    """Root mean square distance of two pictures of one prompt, seen coarsely, mean over pairs and prompts, in 0..1."""
    coarse = _coarse(pictures).reshape(-1, group, *_coarse(pictures).shape[1:])
    first, second = np.triu_indices(group, 1)
    distances = np.sqrt(((coarse[:, first] - coarse[:, second]) ** 2).mean((2, 3, 4)))
    return float(distances.mean() / 255)


def _grey(pictures: Pictures) -> np.ndarray:
    return pictures.astype(float) @ np.array([0.299, 0.587, 0.114])


def _laplacian(pictures: Pictures) -> np.ndarray:
    """Four neighbours less four times the pixel, (B, H - 2, W - 2)."""
    g = _grey(pictures)
    return g[:, 2:, 1:-1] + g[:, :-2, 1:-1] + g[:, 1:-1, 2:] + g[:, 1:-1, :-2] - 4 * g[:, 1:-1, 1:-1]


def _coarse(pictures: Pictures) -> np.ndarray:
    """Means over blocks, so that at most COARSE pixels are left along a side; a rest at the edges is cut off."""
    count, height, width, channels = pictures.shape
    rows, columns = -(-height // COARSE), -(-width // COARSE)
    cut = pictures[:, : height // rows * rows, : width // columns * columns].astype(float)
    return cut.reshape(count, height // rows, rows, width // columns, columns, channels).mean((2, 4))
