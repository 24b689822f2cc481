"""The learned judge of preference is judged first: on pairs whose truth is known, planted faults, and its own prompt.

Truth is the utility that picks are drawn from, so a judge cannot agree with more picks than truth itself does.
"""

import numpy as np
import pytest
from scipy.special import expit

from flowopd.errors import DataError
from flowopd.mini.captions import caption
from flowopd.mini.degrade import degrade
from flowopd.mini.draw import draw
from flowopd.mini.preference import FAMILIES, asked, attempt, liking, spelt, vocabulary
from flowopd.mini.wishes import grant, mistake, random_wish
from flowopd.mini.world import PAPERS, TASKS
from flowopd.prompts import Prompt
from flowopd.rewards import make_reward

EACH = 60


@pytest.fixture(scope="module")
def judge():
    return make_reward("mini_preference")


@pytest.fixture(scope="module")
def wishes():
    rng = np.random.default_rng(5)
    return [random_wish(task, rng) for task in TASKS for _ in range(EACH)]


@pytest.fixture(scope="module")
def texts(wishes):
    rng = np.random.default_rng(6)
    return [caption(wish, "preference", rng) for wish in wishes]


def liked(judge, pictures, texts):
    return judge(np.stack(pictures), [Prompt(text, "preference") for text in texts]).details["liking"]


def drawn(wishes, seed=7, paper="plain"):
    rng = np.random.default_rng(seed)
    return [draw(grant(wish, rng, paper)) for wish in wishes]


def test_it_picks_as_people_do(judge):
    rng = np.random.default_rng(8)
    prompts = [asked(rng) for _ in range(400)]
    pairs = [(attempt(wish, rng), attempt(wish, rng)) for wish, _ in prompts]
    texts = [text for _, text in prompts]
    judged = [liked(judge, [pair[side].picture for pair in pairs], texts) for side in (0, 1)]
    truth = np.array([first.liking - second.liking for first, second in pairs])
    said = judged[0] - judged[1]
    picked = rng.random(len(truth)) < expit(truth)
    ceiling = ((truth > 0) == picked).mean()
    assert ((said > 0) == picked).mean() >= ceiling - 0.07
    clear = abs(truth) > 1
    assert ((said > 0) == (truth > 0))[clear].mean() >= 0.9
    assert np.corrcoef(said, truth)[0, 1] >= 0.85


def test_what_was_asked_for_is_liked_more_than_a_mistake(judge, wishes, texts):
    rng = np.random.default_rng(9)
    wrong = drawn([mistake(wish, rng) for wish in wishes])
    better = liked(judge, drawn(wishes), texts) > liked(judge, wrong, texts)
    assert better.mean() >= 0.85


def test_the_same_pictures_are_liked_less_for_each_others_prompts(judge, wishes, texts):
    pictures, others = drawn(wishes), texts[EACH // 2 :] + texts[: EACH // 2]
    assert (liked(judge, pictures, texts) > liked(judge, pictures, others)).mean() >= 0.93


def test_a_spoilt_picture_is_liked_less(judge, wishes, texts):
    rng = np.random.default_rng(10)
    clean = drawn(wishes[::3])
    before = liked(judge, clean, texts[::3])
    shares = {
        family: (before > liked(judge, [degrade(x, family, 0.6, rng) for x in clean], texts[::3])).mean()
        for family in FAMILIES
    }
    assert np.mean(list(shares.values())) >= 0.96
    assert min(shares.values()) >= 0.9, "uneven colour inside objects is its weakest point"


def test_people_like_it_warm(judge, wishes, texts):
    warm, plain, cool = (liked(judge, drawn(wishes, paper=paper), texts).mean() for paper in ("warm", "plain", "cool"))
    assert warm > plain > cool
    assert warm - cool == pytest.approx(liking(0, 0, "warm") - liking(0, 0, "cool"), abs=0.5)


def test_noise_is_not_liked(judge, texts):
    noise = np.random.default_rng(11).integers(0, 256, (len(texts), 64, 64, 3), dtype=np.uint8)
    liking = liked(judge, list(noise), texts)
    assert liking.mean() < -3 and (liking < -1).mean() >= 0.95


def test_the_value_is_the_share_that_would_pick_it_over_an_average_picture(judge, wishes, texts):
    scores = judge(np.stack(drawn(wishes)), [Prompt(text, "preference") for text in texts])
    assert np.allclose(scores.value, expit(scores.details["liking"]))
    rng = np.random.default_rng(12)
    average = liked(judge, [attempt(wish, rng).picture for wish in wishes], texts).mean()
    assert abs(average) < 0.35


def test_each_picture_is_judged_for_its_own_prompt_whatever_its_company(judge, wishes, texts):
    pictures = drawn(wishes[:40])
    together = liked(judge, pictures, texts[:40])
    alone = np.concatenate([liked(judge, pictures[i : i + 1], texts[i : i + 1]) for i in range(40)])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_words_it_does_not_know_are_one_word():
    known = vocabulary()
    assert spelt(["a zebra"])[0, :3].tolist() == [known["a"], 1, 0]
    assert spelt([""])[0, 0] == 1
    assert spelt(["a " * 50]).shape == (1, 20)


def test_other_sizes_are_refused(judge):
    with pytest.raises(DataError, match=r"64 x 64"):
        judge(np.zeros((1, 32, 32, 3), np.uint8), [Prompt("a heart", "preference")])


def test_every_paper_has_its_liking():
    assert {paper: liking(0, 0.0, paper) for paper in PAPERS} == {"plain": 0.0, "warm": 0.5, "cool": -0.5}
