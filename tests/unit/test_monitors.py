"""Monitors see faults and leave clean drawings alone: rates on the mini world's own pictures, and what each one is.

`python tests/unit/test_monitors.py` prints the table of docs/MONITORS.md.
"""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from flowopd.errors import ConfigError
from flowopd.mini.captions import DOMAINS
from flowopd.mini.degrade import degrade, to_bytes
from flowopd.mini.draw import draw
from flowopd.mini.wishes import grant, trainable_wish
from flowopd.monitors.limits import DIFFERENCES, Limits, changes, exceeded
from flowopd.monitors.pictures import chroma, clipped, diversity, grid, measures, noise, sharpness
from flowopd.recipe import make_recipe

DOCUMENT = Path(__file__).parents[2] / "docs" / "MONITORS.md"
PROMPTS, IMAGES, TRIALS = 4, 4, 20
UNCHANGED = {"velocity": 1.0}
Y, X = np.mgrid[:64, :64]


def on(pattern):
    """A pattern of grey levels (64, 64) on every picture."""
    return lambda pictures, rng: to_bytes(pictures + pattern[None, :, :, None])


def one_by_one(name, severity):
    return lambda pictures, rng: np.stack([degrade(picture, name, severity, rng) for picture in pictures])


def garish(pictures, rng):
    grey = pictures.mean(3, keepdims=True)
    return to_bytes(grey + 4 * (pictures - grey))


FAULTS = {
    "checkerboard, 6 grey levels": ("grid", on(6.0 * (-1) ** (X + Y))),
    "lattice of 8 pixels": ("grid", on(-24.0 * ((X % 8 == 0) | (Y % 8 == 0)))),
    "waves of 4 pixels, 10 grey levels": ("grid", on(10 * np.cos(np.pi * X / 2) * np.cos(np.pi * Y / 2))),
    "white noise, 25 grey levels": ("noise", lambda p, rng: to_bytes(p + 25 * rng.standard_normal(p.shape))),
    "grain": ("noise", one_by_one("grain", 0.6)),
    "blur": ("sharpness", one_by_one("blur", 0.8)),
    "contrast doubled": ("clipped", lambda p, rng: to_bytes(128 + 2 * (p - 128.0))),
    "colours four times stronger": ("clipped", garish),
    "faded to grey": (
        "chroma",
        lambda p, rng: to_bytes(p.mean(3, keepdims=True) + 0.2 * (p - p.mean(3, keepdims=True))),
    ),
    "one picture for each prompt": ("diversity", lambda p, rng: p[np.arange(len(p)) // IMAGES * IMAGES]),
}
"""Name -> the measure that has to see it, and what it does to pictures (B, 64, 64, 3)."""

BARS = dict.fromkeys(FAULTS, 0.95)
"""The least share of trials in which each fault is seen."""

MOST_FALSE = 0.01
"""The largest share of clean trials in which anything is seen."""


def drawn(wishes, rng):
    """Clean pictures, IMAGES of each wish, each laid out anew."""
    return np.stack([draw(grant(wish, rng, "plain")) for wish in wishes for _ in range(IMAGES)])


def trial(seed):
    """Two sets of clean pictures of the same wishes."""
    rng = np.random.default_rng(seed)
    tasks = (*DOMAINS["quality"], "text")
    wishes = [trainable_wish(rng, tasks) for _ in range(PROMPTS)]
    return drawn(wishes, rng), drawn(wishes, rng)


def seen(start, now):
    """The measures that leave their band."""
    change = changes(start | UNCHANGED, now | UNCHANGED)
    return {line.split()[0] for line in exceeded(change, Limits())}, change


@pytest.fixture(scope="module")
def outcomes():
    return run_trials()


def run_trials():
    """Name of a fault, or `clean` -> (measures that left their band, all changes) of each trial."""
    found = {name: [] for name in ("clean", *FAULTS)}
    for seed in range(TRIALS):
        start, now = trial(seed)
        before = measures(start, IMAGES)
        found["clean"].append(seen(before, measures(now, IMAGES)))
        for name, (_, spoil) in FAULTS.items():
            spoiled = spoil(now.astype(float) if name not in ("grain", "blur") else now, np.random.default_rng(seed))
            found[name].append(seen(before, measures(to_bytes(spoiled), IMAGES)))
    return found


def table(outcomes):
    """The rows of docs/MONITORS.md."""
    count = TRIALS * PROMPTS * IMAGES
    clean = outcomes["clean"]
    false = np.mean([bool(names) for names, _ in clean])
    lines = [
        f"{count} clean pictures in {TRIALS} sets: {false:.0%} of the sets warn.",
        "",
        "| measure | counted as | allowed | clean sets |",
        "| --- | --- | --- | --- |",
    ]
    for name, (low, high) in Limits():
        values = [change[name] for _, change in clean]
        kind = "difference" if name in DIFFERENCES else "quotient"
        spread = "not drawn" if name in UNCHANGED else f"{min(values):.2f} to {max(values):.2f}"
        lines.append(f"| `monitor/{name}` | {kind} | {low:g} to {high:g} | {spread} |")
    lines += ["", "| fault | seen by | sets that warn | change, smallest to largest |", "| --- | --- | --- | --- |"]
    for name, (measure, _) in FAULTS.items():
        values = [change[measure] for _, change in outcomes[name]]
        rate = np.mean([measure in names for names, _ in outcomes[name]])
        lines.append(f"| {name} | `{measure}` | {rate:.0%} | {min(values):.3g} to {max(values):.3g} |")
    return lines


def test_there_are_enough_clean_pictures():
    assert TRIALS * PROMPTS * IMAGES >= 200


def test_clean_pictures_are_left_alone(outcomes):
    assert np.mean([bool(names) for names, _ in outcomes["clean"]]) <= MOST_FALSE


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen_by_its_own_measure(outcomes, name):
    assert np.mean([FAULTS[name][0] in names for names, _ in outcomes[name]]) >= BARS[name]


def test_the_document_shows_what_was_measured(outcomes):
    assert "\n".join(table(outcomes)) in DOCUMENT.read_text()


def test_each_limit_is_a_measure_and_each_measure_has_a_limit():
    pictures = trial(0)[0]
    assert {*measures(pictures, IMAGES), *UNCHANGED} == set(Limits.model_fields)


# What the numbers are


def flat(value=100, count=4, size=64):
    return np.full((count, size, size, 3), value, np.uint8)


def test_flat_pictures_have_none_of_it():
    found = measures(flat(), 2)
    assert found == {
        "grid": pytest.approx(1.0),
        **dict.fromkeys(("noise", "sharpness", "clipped", "chroma", "diversity"), 0),
    }


@pytest.mark.parametrize("sigma", [3.0, 12.0])
def test_noise_is_the_standard_deviation_of_white_noise(sigma):
    grey = np.random.default_rng(0).normal(128, sigma, (4, 64, 64, 1))
    assert noise(to_bytes(np.repeat(grey, 3, 3))) == pytest.approx(sigma, rel=0.05)


def test_sharpness_is_the_variance_of_the_laplacian():
    picture = flat(count=1)
    picture[0, 10, 10] = 110
    values = np.zeros((62, 62))
    values[9, 9], values[[8, 10, 9, 9], [9, 9, 8, 10]] = -40, 10
    assert sharpness(picture) == pytest.approx(values.var())


def test_clipped_is_a_share_and_any_channel_counts():
    pictures = flat(count=1)
    pictures[0, :16, :, 1] = 255
    pictures[0, 16:32, :, 2] = 0
    assert clipped(pictures) == 0.5


def test_chroma_is_the_distance_of_channels():
    pictures = flat(count=1)
    pictures[..., 0] += 51
    assert chroma(pictures) == pytest.approx(0.2)


def test_diversity_is_within_prompts_and_not_between_them():
    pictures = np.concatenate([flat(0, 2), flat(255, 2)])
    assert diversity(pictures, 2) == 0
    assert diversity(pictures[[0, 2, 1, 3]], 2) == 1


def test_diversity_hardly_counts_noise():
    noisy = to_bytes(128 + 25 * np.random.default_rng(0).standard_normal((4, 64, 64, 3)))
    assert diversity(noisy, 4) < 0.1


@pytest.mark.parametrize("size", [(48, 64), (96, 40)])
def test_pictures_of_any_shape_are_measured(size):
    pictures = np.random.default_rng(0).integers(0, 255, (4, *size, 3)).astype(np.uint8)
    assert all(np.isfinite(value) for value in measures(pictures, 2).values())


def test_a_grid_is_seen_in_large_pictures_too():
    pictures = np.kron(trial(0)[0], np.ones((1, 4, 4, 1), np.uint8))
    y, x = np.mgrid[:256, :256]
    with_grid = to_bytes(pictures - 12.0 * ((x % 16 == 0) | (y % 16 == 0))[None, :, :, None])
    assert grid(with_grid) > 5 * grid(pictures)


# Limits


def test_a_change_that_is_no_number_is_outside_every_band():
    change = dict.fromkeys(Limits.model_fields, float("nan"))
    assert len(exceeded(change, Limits())) == len(Limits.model_fields)


def test_what_is_outside_is_said_with_its_band():
    change = {**dict.fromkeys(Limits.model_fields, 1.0), "noise": 7.5, "clipped": 0.0}
    assert exceeded(change, Limits()) == ["noise 7.5 (allowed -255 to 6)"]


@pytest.mark.parametrize(
    ("monitor", "said"),
    [
        ({"limits": {"grid": [3, 1]}}, "monitor.limits.grid"),
        ({"action": "pause"}, "monitor.action"),
        ({"evry": 3}, "did you mean 'every'"),
        ({"images": 1}, "monitor.images"),
    ],
)
def test_a_monitor_that_cannot_be_is_refused(monitor, said):
    with pytest.raises(ConfigError, match=said):
        make_recipe({"base": "b", "monitor": monitor})


def test_limits_are_frozen():
    with pytest.raises(ValidationError):
        Limits().grid = (0, 1)


if __name__ == "__main__":
    print("\n".join(table(run_trials())))
