"""The benchmark as a command: one line of JSON with every figure, lines for people, files where they are asked for."""

import json

import pytest

KEYS = {
    "schedule",
    "query",
    "seconds_per_update",
    "seconds_per_sample_step",
    "forwards",
    "rows",
    "backwards",
    "outside_model_share",
    "flops_per_update",
    "matmul_peak_share",
    "peak_memory_mib",
    "teacher_memory_mib",
    "compare",
}


@pytest.fixture
def quick(world):
    return ("bench", "--model", world.base, "--batch", 1, "--steps", 2, "--teachers", 1, "--rank", 2, "--repeats", 1)


def test_the_json_is_one_line_with_every_figure(flowopd, quick, tmp_path):
    made = flowopd(*quick, "--vs", "naive", "--query", "beta", "--json", "--out", tmp_path / "new" / "one.json")
    assert made.code == 0 and made.out.count("\n") == 1, made.err
    row = json.loads(made.out)
    assert row.keys() >= KEYS and (row["schedule"], row["query"]) == ("fused", "beta")
    assert (row["compare"]["schedule"], row["compare"]["query"]) == ("naive", "all")
    assert json.loads((tmp_path / "new" / "one.json").read_text()) == row


def test_a_page_is_written_from_a_folder(flowopd, quick, tmp_path):
    measured = tmp_path / "measured"
    assert flowopd(*quick, "--schedule", "replay", "--out", measured / "one.json").code == 0
    made = flowopd("bench", "--page", measured)
    assert made.code == 0 and made.out.strip() == str(tmp_path / "PERFORMANCE.md")
    assert "| one | replay |" in (tmp_path / "PERFORMANCE.md").read_text()


def test_a_profile_is_a_table(flowopd, quick, tmp_path):
    made = flowopd(*quick, "--profile", "--out", tmp_path / "one.txt")
    assert made.code == 0 and "Self CPU" in made.out
    assert made.out.strip() == (tmp_path / "one.txt").read_text().strip()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--query", "gamma"), "a query is all, beta, or a number of steps, got 'gamma'"),
        (("--schedule", "fussed"), "schedule must be 'fused', 'replay' or 'naive', got 'fussed'"),
        (("--vs", "fussed"), "--vs 'fussed' is no schedule; it is fused, replay or naive"),
        (("--preset", "large"), "preset"),
        (("--anchor", "maybe"), "anchor"),
        (("--scan", "colours"), "--scan colours is not known"),
        (("--scan", "batch", "--vs", "naive"), "--scan measures one schedule; leave --vs out"),
        (("--model", "/nowhere"), "model /nowhere has no readable model_index.json"),
        (("--patches", 99), "99 patches along a side"),
    ],
)
def test_what_cannot_be_measured_is_one_line(flowopd, quick, flags, said):
    wrong = flowopd(*quick, *flags)
    assert wrong.code == 2 and wrong.err.startswith("error: ") and wrong.err.count("\n") == 1, wrong.err
    assert said in wrong.err and not wrong.out
