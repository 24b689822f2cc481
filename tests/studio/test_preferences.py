"""Choices are kept line by line and counted with their intervals; a damaged file loses no sound line."""

import pytest

from flowopd.errors import DataError
from flowopd.studio.preferences import FILE, Preference, preferences, record, tally


def choice(chosen, models=("merge", "student")):
    return Preference(time=1.0, prompt="a ring", seed=3, steps=4, models=models, chosen=chosen)


def test_what_is_recorded_is_read(tmp_path):
    made = [choice("student"), choice(None), choice("merge", ("student", "merge"))]
    for one in made:
        record(tmp_path, one)
    assert preferences(tmp_path) == (made, 0)


def test_a_run_without_choices_has_none(tmp_path):
    assert preferences(tmp_path) == ([], 0)


def test_a_half_line_is_left_and_the_next_begins_anew(tmp_path):
    record(tmp_path, choice("student"))
    with (tmp_path / FILE).open("a") as file:
        file.write('{"time": 1.0, "prom')
    record(tmp_path, choice("merge"))
    assert preferences(tmp_path) == ([choice("student"), choice("merge")], 1)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(DataError, match=r"preferences.jsonl cannot be written .*make room, or allow it"):
        record(tmp_path, choice("student"))


def test_wins_are_counted_whichever_side_was_named_first():
    one, two = ("merge", "student"), ("student", "merge")
    choices = (
        [choice("student", one)] * 3 + [choice("student", two)] * 4 + [choice("merge", two)] * 3 + [choice(None)] * 2
    )
    (pair,) = tally(choices)
    assert (pair.first, pair.second, pair.wins, pair.losses, pair.ties) == ("merge", "student", 3, 7, 2)
    assert pair.share == pytest.approx(0.3)
    assert pair.interval == pytest.approx((0.1078, 0.6032), abs=1e-4)  # Wilson for 3 of 10
    assert pair.p == pytest.approx(2 * (1 + 10 + 45 + 120) / 1024)


def test_ties_alone_decide_nothing():
    (pair,) = tally([choice(None)] * 5)
    assert (pair.wins, pair.losses, pair.ties, pair.share, pair.interval, pair.p) == (0, 0, 5, None, None, None)


def test_every_pair_is_counted_alone():
    pairs = tally([choice("merge"), choice("base", ("base", "student"))])
    assert [(pair.first, pair.second, pair.wins) for pair in pairs] == [("merge", "student", 1), ("base", "student", 1)]


def test_a_link_that_leads_out_of_the_run_is_not_followed(tmp_path):
    run, outside = tmp_path / "run", tmp_path / "outside.jsonl"
    run.mkdir()
    outside.write_text(choice("student").model_dump_json() + "\n")
    (run / FILE).symlink_to(outside)
    for act in (lambda: record(run, choice("merge")), lambda: preferences(run)):
        with pytest.raises(DataError, match="leads out of the run"):
            act()
    assert len(outside.read_text().splitlines()) == 1
