"""The mini world's GenEval is judged first: on drawn truth, planted faults, and pictures a bit off."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from flowopd.errors import DataError
from flowopd.mini.degrade import degrade, to_bytes
from flowopd.mini.draw import draw
from flowopd.mini.wishes import grant, metadata, mistake, random_wish
from flowopd.mini.world import TASKS, Scene, Thing
from flowopd.prompts import Prompt
from flowopd.rewards import make_reward

EACH = 40


def asked(wish):
    return Prompt(f"a {wish.task} of {wish.parts}", "composition", metadata(wish, ""))


def drawn(wishes, rng):
    return np.stack([draw(grant(wish, rng)) for wish in wishes])


@pytest.fixture(scope="module")
def judge():
    return make_reward("mini_geneval")


@pytest.fixture(scope="module")
def truth():
    """Wishes of all tasks, EACH a task, with their pictures."""
    rng = np.random.default_rng(0)
    wishes = [random_wish(task, rng) for task in TASKS for _ in range(EACH)]
    return [asked(wish) for wish in wishes], drawn(wishes, rng), wishes


def test_truth_is_right_in_every_task_and_view(judge, truth):
    prompts, pictures, _ = truth
    scores = judge(pictures, prompts)
    for view in (scores.value, *scores.details.values()):
        assert view.shape == (len(prompts),)
        assert view.reshape(len(TASKS), EACH).mean(1).min() >= 0.97


def test_mistakes_are_caught_in_every_task(judge, truth):
    prompts, _, wishes = truth
    rng = np.random.default_rng(1)
    scores = judge(drawn([mistake(wish, rng) for wish in wishes], rng), prompts)
    assert (scores.value < 1).reshape(len(TASKS), EACH).mean(1).min() >= 0.95
    assert (scores.details["continuous"] < 1).mean() >= 0.95


def test_a_stranger_in_the_picture_is_strictly_wrong(judge):
    rng = np.random.default_rng(2)
    wish = random_wish("single_object", rng)
    other = "ring" if wish.parts[0].kind != "ring" else "star"
    things = tuple(Thing(kind, "blue", x, 32, 11) for kind, x in ((wish.parts[0].kind, 16), (other, 48)))
    scores = judge(draw(Scene(things, None, (180, 180, 180)))[None], [asked(wish)])
    assert scores.value[0] == 1 and scores.details["strict"][0] == 0


@pytest.mark.parametrize("name", ["blur", "fade", "grain", "mottle"])
def test_pictures_a_bit_worse_are_still_read(judge, truth, name):
    prompts, pictures, _ = truth
    rng = np.random.default_rng(3)
    assert judge(np.stack([degrade(x, name, 0.35, rng) for x in pictures]), prompts).value.mean() >= 0.95


def test_what_an_autoencoder_does_is_forgiven(judge, truth):
    prompts, pictures, _ = truth
    rng = np.random.default_rng(4)
    off = gaussian_filter(pictures.astype(np.float64), (0, 0.6, 0.6, 0)) + rng.uniform(-8, 8, pictures.shape)
    for picture in off:
        x, y = rng.integers(0, 61, 2)
        picture[y : y + 3, x : x + 3] = rng.integers(0, 256, 3)
    assert judge(to_bytes(off), prompts).details["strict"].mean() >= 0.95


def test_blobs_signs_and_empty_pictures_show_no_object(judge):
    rng = np.random.default_rng(5)
    prompt = asked(random_wish("single_object", rng))
    noise = gaussian_filter(rng.standard_normal((20, 64, 64, 3)), (0, 4, 4, 0))
    blobs = to_bytes(180 + 80 * noise / noise.std())
    signs = drawn([random_wish("text", rng) for _ in range(20)], rng)
    empty = np.full((1, 64, 64, 3), 180, np.uint8)
    pictures = np.concatenate([signs, empty, blobs])
    assert judge(pictures, [prompt] * len(pictures)).value.mean() <= 0.03


def test_scores_belong_to_their_pictures(judge, truth):
    prompts, pictures, _ = truth
    rng = np.random.default_rng(6)
    swapped = rng.permutation(len(prompts))
    mixed = pictures[np.where(rng.random(len(prompts)) < 0.5, swapped, np.arange(len(prompts)))]
    scores, order = judge(mixed, prompts), rng.permutation(len(prompts))
    again = judge(mixed[order], [prompts[i] for i in order])
    assert 0.3 < scores.value.mean() < 0.8
    assert np.array_equal(again.value, scores.value[order])
    for name, view in scores.details.items():
        assert np.array_equal(again.details[name], view[order])


def test_a_sign_has_no_composition_to_judge(judge):
    prompt = Prompt('a sign that says "ART"', "text", {"tag": "text", "include": []})
    with pytest.raises(DataError, match="ART"):
        judge(np.zeros((1, 64, 64, 3), np.uint8), [prompt])


def test_lengths_and_types_have_to_fit(judge, truth):
    prompts, pictures, _ = truth
    with pytest.raises(DataError, match="3 pictures came with 2 prompts"):
        judge(pictures[:3], prompts[:2])
    with pytest.raises(DataError, match="uint8"):
        judge(pictures[:2] / 255.0, prompts[:2])
