"""A reward that says nothing stops a run with its cause; one that says little does not."""

import numpy as np
import pytest

from flowopd.errors import NumericsError
from flowopd.prompts import Prompt
from flowopd.stages.watch import RewardWatch, check_finite

PROMPTS = [Prompt(f"prompt {i}", "") for i in range(4)]
SAME, OTHER = np.full(4, 0.25), np.array([0.25, 0.25, 0.25, 0.5])
PATIENCE = 3


def watched(*updates, start=0, patience=PATIENCE, detail=None, alone=True):
    watch = RewardWatch("look", "signs", patience, detail, alone)
    for step, rewards in enumerate(updates, start):
        watch(step, rewards, PROMPTS)


def test_the_same_reward_for_all_pictures_of_so_many_updates_stops():
    with pytest.raises(NumericsError) as told:
        watched(OTHER, SAME, SAME, SAME, start=4)
    assert str(told.value) == (
        "reward 'look' for the prompts of 'signs' gave 0.25 to all 4 pictures of each of the updates 5 to 7: nothing "
        "is learnt from that; run `flowopd doctor`, or set watch.patience=null to go on"
    )


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        (1.0, "gave 1 to all .*, its best: the task is solved, or the judge says yes to all; .* take harder prompts"),
        (0.0, "gave 0 to all .*: none of them is right, or the judge is broken; .* take easier prompts"),
    ],
)
def test_the_ends_of_the_range_are_told_from_a_value_between(value, cause):
    with pytest.raises(NumericsError, match=cause):
        watched(*[np.full(4, value)] * PATIENCE)


def test_a_detail_has_ends_of_its_own():
    with pytest.raises(NumericsError, match=r"detail 'deqa' of reward 'look' .* gave 1 to .*: nothing is learnt"):
        watched(*[np.ones(4)] * PATIENCE, detail="deqa")


BEST = [np.ones(4)] * (2 * PATIENCE)


def test_a_task_of_several_that_was_solved_stops_nothing():
    watched(OTHER, *BEST, alone=False)
    with pytest.raises(NumericsError, match="the task is solved"):
        watched(OTHER, *BEST)


@pytest.mark.parametrize(
    "updates",
    [BEST, [OTHER, *[np.zeros(4)] * PATIENCE], [OTHER, *[SAME] * PATIENCE]],
    ids=["yes to all from the first", "no to all", "the same to all"],
)
def test_a_task_of_several_that_never_spoke_or_fell_silent_below_its_best_stops(updates):
    with pytest.raises(NumericsError, match="to all 4 pictures"):
        watched(*updates, alone=False)


def test_a_detail_is_solved_at_the_highest_it_ever_gave():
    watched(OTHER, *[np.full(4, 3.0)] * (2 * PATIENCE), alone=False, detail="part")
    with pytest.raises(NumericsError, match="gave 3 to all 4 pictures of each of the updates 1 to 3"):
        watched(np.array([3.0, 3.0, 3.5, 3.0]), *[np.full(4, 3.0)] * PATIENCE, alone=False, detail="part")


@pytest.mark.parametrize("detail", [None, "part"])
def test_a_task_of_several_that_falls_silent_when_a_run_goes_on_stops(detail):
    with pytest.raises(NumericsError, match="gave 0 to all 4 pictures"):
        watched(*[np.zeros(4)] * PATIENCE, start=7, alone=False, detail=detail)


def test_few_prompts_an_update_take_more_updates():
    watch = RewardWatch("look", "signs", PATIENCE)
    for step in range(5):
        watch(step, SAME, [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]])
    with pytest.raises(NumericsError, match="of each of the updates 0 to 5"):
        watch(5, SAME, [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]])


@pytest.mark.parametrize(("patience", "updates"), [(PATIENCE, PATIENCE - 1), (None, 50)])
def test_it_stops_no_earlier_and_without_patience_never(patience, updates):
    watched(*[SAME] * updates, patience=patience)


@pytest.mark.parametrize("other", [OTHER, np.zeros(4)], ids=["a picture differs", "the value differs"])
def test_an_update_between_begins_the_count_again(other):
    watched(SAME, SAME, other, SAME, SAME)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_finite_stops_at_once_and_names_the_picture(value):
    told = (
        f"reward 'look' for the prompts of 'signs' in update 7 gave {value} to picture 2 of 4, prompt 'prompt 2'; run"
    )
    with pytest.raises(NumericsError, match=told):
        watched(np.array([0.5, 0.1, value, value]), start=7, patience=None)


def test_finite_scores_of_any_kind_pass():
    check_finite("look", np.array([1, 0, 3, 2]), PROMPTS)
    check_finite("look", np.array([], np.float32), [])
