"""Metrics are read once, as they grow; what is no row is counted, and a file that was written anew is read anew."""

import json

import numpy as np
import pytest

from flowopd.studio.tail import CHUNK, Tail, last_rows

MALFORMED = [
    b"{",
    b"[1, 2]",
    b'"text"',
    b'{"stage": "distill"}',
    b'{"stage": 3, "step": 0}',
    b'{"stage": "distill", "step": "0"}',
    b'{"stage": "distill", "step": true}',
    b'{"stage": "distill", "step": 1' + b"0" * 30 + b"}",
    b"\xff\xfe",
    b"[" * 100_000,
]


def row(step, stage="distill", **metrics):
    return json.dumps({"stage": stage, "step": step, "seconds": step + 1.0, **metrics}).encode() + b"\n"


def whole(path):
    """A tail that has read all of a file."""
    tail = Tail(path)
    tail.advance()
    while tail.behind:
        tail.advance()
    return tail


def contents(tail):
    return {
        stage: (list(columns.steps), {key: columns.values(key).tolist() for key in columns.keys})
        for stage, columns in tail.stages.items()
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_reading_as_it_grows_is_reading_it_whole(path):
    rows = [row(i, gap=0.1 * i, **({"extra": 1.0} if i % 7 == 3 else {})) for i in range(50)] + [
        row(0, "eval", text=0.5)
    ]
    data, tail = b"".join(rows), Tail(path)
    for cut in range(0, len(data) + 1, 97):
        path.write_bytes(data[:cut])
        tail.advance()
    path.write_bytes(data)
    tail.advance()
    np.testing.assert_equal(contents(tail), contents(whole(path)))
    assert list(tail.stages["distill"].steps) == list(range(50)) and tail.behind == 0


def test_a_line_that_is_still_being_written_waits(path):
    path.write_bytes(row(0, gap=1.0) + row(1, gap=2.0)[:-9])
    tail = whole(path)
    assert list(tail.stages["distill"].steps) == [0] and tail.faults == 0 and tail.behind == 0
    with path.open("ab") as file:
        file.write(row(1, gap=2.0)[-9:])
    tail.advance()
    assert tail.stages["distill"].values("gap").tolist() == [1.0, 2.0]


@pytest.mark.parametrize("line", MALFORMED, ids=range(len(MALFORMED)))
def test_a_line_that_is_no_row_is_counted_and_passed_over(path, line):
    path.write_bytes(row(0) + line + b"\n\n" + row(1))
    tail = whole(path)
    assert tail.faults == 1 and list(tail.stages["distill"].steps) == [0, 1]


def test_a_line_without_an_end_is_one_fault_and_takes_no_memory(path):
    path.write_bytes(row(0) + b"x" * (2 * CHUNK + 5) + b"\n" + row(1))
    tail = whole(path)
    assert tail.faults == 1 and list(tail.stages["distill"].steps) == [0, 1]


def test_a_file_that_was_written_anew_is_read_anew(path):
    path.write_bytes(row(0, gap=1.0) + row(1, gap=2.0))
    tail = whole(path)
    before = tail.version
    aside = path.with_suffix(".tmp")
    aside.write_bytes(row(0, gap=5.0) + row(1, gap=6.0))
    aside.rename(path)
    tail.advance()
    assert tail.stages["distill"].values("gap").tolist() == [5.0, 6.0] and tail.version != before


def test_a_file_that_was_cut_and_grew_again_in_place_is_read_anew(path):
    path.write_bytes(row(0, gap=1.0) + row(1, gap=2.0))
    tail = whole(path)
    with path.open("r+b") as file:
        file.truncate(len(row(0, gap=1.0)))
        file.seek(0, 2)
        file.write(row(1, gap=3.0) + row(2, gap=4.0))
    tail.advance()
    assert tail.stages["distill"].values("gap").tolist() == [1.0, 3.0, 4.0]


def test_a_file_that_goes_away_and_comes_again(path):
    tail = Tail(path)
    tail.advance()
    assert tail.stages == {} and tail.behind == 0
    path.write_bytes(row(0))
    tail.advance()
    assert list(tail.stages["distill"].steps) == [0]
    path.unlink()
    tail.advance()
    assert tail.stages == {}


def test_what_is_no_number_is_no_metric(path):
    path.write_bytes(row(0, a=None, b=True, c="x", d=[1], e=float("nan"), f=10**400, g=1))
    columns = whole(path).stages["distill"]
    assert {key for key in columns.keys if np.isfinite(columns.values(key)).any()} == {"seconds", "g"}
    assert columns.curve("e").steps.tolist() == [] and columns.last("g") == 1 and columns.last("nothing") is None


def test_keys_may_come_and_go(path):
    path.write_bytes(row(0, a=1) + row(1, b=2) + row(2, a=3, b=4) + row(3))
    columns = whole(path).stages["distill"]
    np.testing.assert_equal(columns.values("a"), np.array([1, np.nan, 3, np.nan], np.float32))
    assert columns.curve("b").steps.tolist() == [1, 2] and columns.curve("b").values.tolist() == [2, 4]


def test_a_chunk_at_a_time(path):
    path.write_bytes(b"".join(row(i, note="x" * 1000) for i in range(3000)))
    tail = Tail(path)
    assert tail.behind == path.stat().st_size
    tail.advance()
    assert 0 < tail.behind < path.stat().st_size
    assert 0 < len(tail.stages["distill"].steps) < 3000
    assert len(whole(path).stages["distill"].steps) == 3000


def test_last_rows_need_only_the_end_of_a_file(path):
    path.write_bytes(b"".join(row(i, note="x" * 1000) for i in range(300)) + row(0, "eval") + row(1, "eval") + b'{"st')
    found = last_rows(path)
    assert list(found) == ["distill", "eval"] and (found["distill"]["step"], found["eval"]["step"]) == (299, 1)
    assert last_rows(path.with_name("nothing")) == {}


def test_the_newest_stage_comes_last(path):
    path.write_bytes(row(0) + row(0, "eval") + row(1))
    assert list(last_rows(path)) == ["eval", "distill"]
