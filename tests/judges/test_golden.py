"""Golden pictures: sound judges pass on them, and each fault of a faulty one is found and named."""

import numpy as np
import pytest

from flowopd.rewards import REWARDS, Scores, make_reward
from flowopd.rewards.base import JudgeConfig
from flowopd.rewards.drawn import GOLDEN, golden, street
from flowopd.rewards.golden import Golden, faults

AT_HAND = sorted({"ocr", *(name for name in REWARDS if name.startswith("mini_"))})
"""Rewards whose weights are here."""

TRUTH = np.array([0.9, 0.1, 0.7, 0.3])


def scripted(score):
    """A judge whose scores are `score(picture's own number, batch's truth)`."""

    def judge(pictures, prompts):
        return Scores(np.asarray(score(TRUTH[pictures[:, 0, 0, 0]])))

    return judge


@pytest.fixture
def numbered():
    """Four pictures that carry their number, of which the first and third are right."""
    pictures = np.repeat(np.arange(4, dtype=np.uint8), 12).reshape(4, 2, 2, 3)
    return Golden(pictures, street().prompts, better=((0, 1), (2, 3)))


FAULTY = {
    "zeros": (lambda s: 0 * s, "gave 0 to every golden picture"),
    "ones": (lambda s: 0 * s + 1, "gave 1 to every golden picture"),
    "not a number": (lambda s: np.where(s == 0.7, np.nan, s), "gave nan to golden picture 2"),
    "infinite": (lambda s: np.where(s == 0.1, -np.inf, s), "gave -inf to golden picture 1"),
    "too few": (lambda s: s[:-1], "gave 3 scores, shaped (3,), for 4 pictures"),
    "a mean": (lambda s: s.mean(), "gave 1 scores, shaped (), for 4 pictures"),
    "a column": (lambda s: s[:, None], "gave 4 scores, shaped (4, 1), for 4 pictures"),
    "too large": (lambda s: 5 * s, "gave 4.5, outside 0..1"),
    "negative": (lambda s: s - 0.5, "gave -0.4, outside 0..1"),
    "rolled": (lambda s: np.roll(s, 1), "out of order"),
    "backwards": (lambda s: s[::-1], "out of order"),
    "sorted": (lambda s: np.sort(s), "out of order"),
    "best first": (lambda s: -np.sort(-s), "out of order"),
    "relative to its batch": (lambda s: s / s.max(), "out of order"),
    "upside down": (lambda s: 1 - s, "gave the right picture 0.1 and the wrong one 0.9 for 'a photo of a stop sign"),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_each_fault_is_found_and_named(numbered, fault):
    score, named = FAULTY[fault]
    found = faults(scripted(score), numbered)
    assert any(named in one.text and one.certain for one in found), found


@pytest.mark.parametrize("score", [lambda s: s, lambda s: s**2, lambda s: (s > 0.5).astype(float)])
def test_a_sound_judge_has_no_fault(numbered, score):
    assert faults(scripted(score), numbered) == []


def test_scores_of_a_shuffler_are_never_taken_for_sound(numbered):
    for seed in range(20):
        shuffle = np.random.default_rng(seed).permutation
        assert faults(scripted(shuffle), Golden(numbered.pictures, numbered.prompts)), seed


def test_the_same_score_for_all_is_a_doubt_where_a_sound_judge_may_give_it(numbered):
    (found,) = faults(scripted(lambda s: 0 * s), Golden(numbered.pictures, numbered.prompts, distinct=False))
    assert not found.certain and "gave 0 to every golden picture" in found.text


@pytest.mark.parametrize("name", AT_HAND)
def test_the_judges_at_hand_are_sound(name):
    assert faults(make_reward(name), golden(name)) == []


def test_a_judge_that_sees_through_clip_passes(clip_folder):
    judge = make_reward("clipscore", config=JudgeConfig(model=clip_folder))
    assert [one for one in faults(judge, golden("clipscore")) if "every golden picture" not in one.text] == []


@pytest.mark.parametrize("name", sorted({*REWARDS, "a reward of somebody's own"}))
def test_golden_pictures_are_pictures_with_prompts_and_come_out_the_same(name):
    first, again = golden(name), golden(name)
    assert first.pictures.dtype == np.uint8 and first.pictures.shape[-1] == 3
    assert len(first.pictures) == len(first.prompts) == 4
    assert {i for pair in first.better for i in pair} <= set(range(4))
    assert np.array_equal(first.pictures, again.pictures) and first.prompts == again.prompts


def test_only_rewards_that_exist_have_pictures_of_their_own():
    assert set(GOLDEN) <= set(REWARDS)
