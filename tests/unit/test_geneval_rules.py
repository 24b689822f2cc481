"""GenEval's rules on hand-made detections: each kind of clause holds when it should, and only then."""

import pytest

from flowopd.errors import DataError
from flowopd.rewards.geneval_rules import Detection, judge, relations


def seen(kind, colour=None, x=0.0, y=0.0, confidence=0.9, size=10.0):
    """A detection whose box of `size` is centred on (x, y)."""
    return Detection(kind, colour, (x - size / 2, y - size / 2, x + size / 2, y + size / 2), confidence)


def asks(*include, exclude=(), tag="any"):
    return {"tag": tag, "include": list(include), "exclude": list(exclude), "prompt": "a prompt"}


def three_views(detections, metadata):
    verdict = judge(detections, metadata)
    return verdict.official, verdict.strict, verdict.continuous


BENCH, CAT = {"class": "bench", "count": 1}, {"class": "cat", "count": 1}
RED_BENCH = BENCH | {"color": "red"}
THREE_CATS = asks({"class": "cat", "count": 3}, exclude=[{"class": "cat", "count": 4}], tag="counting")
CAT_LEFT_OF_BENCH = asks(BENCH, CAT | {"position": ["left of", 0]}, tag="position")


def test_a_single_object_has_to_be_there():
    assert three_views([seen("bench")], asks(BENCH)) == (1, 1, 1)
    assert three_views([], asks(BENCH)) == (0, 0, 0)
    assert three_views([seen("cat")], asks(BENCH)) == (0, 0, 0)


def test_strict_minds_objects_nobody_asked_for():
    assert three_views([seen("bench"), seen("cat")], asks(BENCH)) == (1, 0, 1)
    assert three_views([seen("bench"), seen("bench")], asks(BENCH)) == (1, 0, 0)


def test_two_objects_both_have_to_be_there():
    assert three_views([seen("bench"), seen("cat")], asks(BENCH, CAT)) == (1, 1, 1)
    assert three_views([seen("bench")], asks(BENCH, CAT)) == (0, 0, 0.5)


@pytest.mark.parametrize("found, views", [(2, (0, 0, 2 / 3)), (3, (1, 1, 1)), (4, (0, 0, 2 / 3)), (7, (0, 0, 0))])
def test_counting_excludes_one_more(found, views):
    assert three_views([seen("cat")] * found, THREE_CATS) == pytest.approx(views)


def test_colour_is_asked_of_as_many_as_are_wanted():
    two_red = asks({"class": "bench", "count": 2, "color": "red"})
    assert three_views([seen("bench", "red")], asks(RED_BENCH)) == (1, 1, 1)
    assert three_views([seen("bench", "blue")], asks(RED_BENCH)) == (0, 0, 0)
    assert three_views([seen("bench", "red"), seen("bench", "blue")], two_red) == (0, 0, 0.5)


def test_colour_is_asked_of_the_most_confident():
    sure, unsure = seen("bench", "blue", confidence=0.9), seen("bench", "red", confidence=0.4)
    assert judge([unsure, sure], asks(RED_BENCH)).official == 0
    assert judge([sure, unsure], asks(RED_BENCH)).official == 0
    assert judge([seen("bench", "red", confidence=0.95), sure], asks(RED_BENCH)).official == 1


@pytest.mark.parametrize("x, y, place", [(-30, 0, "left of"), (30, 0, "right of"), (0, -30, "above"), (0, 30, "below")])
def test_position_counts_from_the_target(x, y, place):
    bench, cat = seen("bench", x=50, y=50), seen("cat", x=50 + x, y=50 + y)
    assert relations(cat.box, bench.box) == {place}
    assert three_views([bench, cat], asks(BENCH, CAT | {"position": [place, 0]})) == (1, 1, 1)
    other = "above" if place == "left of" else "left of"
    assert three_views([bench, cat], asks(BENCH, CAT | {"position": [other, 0]})) == (0, 0, 0.5)


def test_position_is_void_within_a_tenth_of_the_extents():
    bench = seen("bench", x=50, y=50)
    assert relations(seen("cat", x=48.1, y=50).box, bench.box) == frozenset()
    assert relations(seen("cat", x=47.0, y=50).box, bench.box) == frozenset()
    assert relations(seen("cat", x=45.9, y=50).box, bench.box) == {"left of"}


def test_a_diagonal_is_both():
    assert relations(seen("cat", x=0, y=0).box, seen("bench", x=50, y=50).box) == {"left of", "above"}


def test_position_fails_without_its_target():
    assert three_views([seen("cat")], CAT_LEFT_OF_BENCH) == (0, 0, 0)


def test_the_order_of_detections_does_not_matter():
    detections = [seen("bench", x=50), seen("cat", x=10), seen("dog", x=90)]
    assert judge(detections, CAT_LEFT_OF_BENCH) == judge(detections[::-1], CAT_LEFT_OF_BENCH)


def test_strict_implies_official_and_continuous():
    scenes = [[seen("bench", x=50)] * i + [seen("cat", x=10)] * j for i in range(4) for j in range(4)]
    for metadata in (asks(BENCH), asks(BENCH, CAT), THREE_CATS, CAT_LEFT_OF_BENCH):
        for verdict in (judge(scene, metadata) for scene in scenes):
            assert verdict.strict <= min(verdict.official, verdict.continuous)


@pytest.mark.parametrize("metadata", [{}, {"include": []}, {"tag": "text", "include": []}])
def test_a_prompt_that_asks_for_nothing_is_refused(metadata):
    with pytest.raises(DataError, match="a sign"):
        judge([], metadata | {"prompt": "a sign"})


@pytest.mark.parametrize("clause", [{"class": "cat"}, CAT | {"count": 0}, CAT | {"position": ["above", 0]}])
def test_a_broken_clause_is_refused(clause):
    with pytest.raises(DataError, match="a prompt"):
        judge([], asks(clause))
