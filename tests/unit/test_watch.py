"""A reward that says nothing stops a run with its cause; one that says little does not."""

import numpy as np
import pytest

from flowopd.errors import NumericsError
from flowopd.prompts import Prompt
from flowopd.stages.watch import PATIENCE, RewardWatch, check_finite

PROMPTS = [Prompt(f"prompt {i}", "") for i in range(4)]
SAME, OTHER = np.full(4, 0.25), np.array([0.25, 0.25, 0.25, 0.5])


def watched(*updates, start=0):
    watch = RewardWatch("look")
    for step, rewards in enumerate(updates, start):
        watch(step, rewards, PROMPTS)


def test_the_same_reward_for_all_pictures_of_three_updates_stops():
    with pytest.raises(NumericsError) as told:
        watched(OTHER, SAME, SAME, SAME, start=4)
    assert str(told.value) == (
        "reward 'look' gave 0.25 to all 4 pictures of updates 5 to 7; nothing is learnt from that, run `flowopd doctor`"
    )


def test_it_stops_no_earlier():
    watched(*[SAME] * (PATIENCE - 1))


@pytest.mark.parametrize("other", [OTHER, np.zeros(4)], ids=["a picture differs", "the value differs"])
def test_an_update_between_begins_the_count_again(other):
    watched(SAME, SAME, other, SAME, SAME)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_finite_stops_at_once_and_names_the_picture(value):
    with pytest.raises(NumericsError, match=f"reward 'look' gave {value} to picture 2 of 4, prompt 'prompt 2'; run"):
        watched(np.array([0.5, 0.1, value, value]))


def test_finite_scores_of_any_kind_pass():
    check_finite("look", np.array([1, 0, 3, 2]), PROMPTS)
    check_finite("look", np.array([], np.float32), [])
