"""Intervals cover what they should, and records of results come back as they were written."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from flowopd.errors import DataError
from flowopd.results import (
    Estimate,
    Results,
    bootstrap,
    bootstrap_average,
    bootstrap_grouped,
    gap_closed,
)

REPEATS = 200


def coverage(estimates, truth):
    """The share of intervals that hold the truth."""
    return np.mean([low <= truth <= high for low, high in (estimate.ci95 for estimate in estimates)])


def exactly(mean):
    return Estimate(mean=mean, ci95=(mean - 0.01, mean + 0.01), n=320)


def results(student=0.7, expert=0.9, base=0.5):
    models = {"base": base, "teacher:text": expert, "student": student}
    return Results(models={name: {"ocr": exactly(mean)} for name, mean in models.items()})


def test_an_interval_of_a_normal_mean_covers_it_19_times_of_20():
    rng = np.random.default_rng(1)
    estimates = [bootstrap(rng.normal(3, 2, 100), seed) for seed in range(REPEATS)]
    assert 0.92 <= coverage(estimates, 3) <= 0.98


def test_an_interval_of_grouped_means_covers_their_mean():
    rng = np.random.default_rng(2)
    groups = np.repeat(["easy", "hard", "odd"], [100, 40, 60])
    centres = np.repeat([0.9, 0.2, 0.4], [100, 40, 60])
    estimates = [bootstrap_grouped(centres + rng.normal(0, 0.3, 200), groups, seed) for seed in range(REPEATS)]
    assert 0.92 <= coverage(estimates, 0.5) <= 0.98


def test_groups_weigh_the_same_whatever_their_size():
    estimate = bootstrap_grouped(np.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0]), ["a", "a", "a", "a", "b", "b"])
    assert estimate == Estimate(mean=0.5, ci95=(0.5, 0.5), n=6)


def test_weights_replace_the_even_mean_of_groups():
    values, groups = np.repeat([1.0, 0.0, 0.5], 2), np.repeat(["a", "b", "c"], 2)
    estimate = bootstrap_grouped(values, groups, weights={"a": 2, "b": 1, "c": 1})
    assert estimate == Estimate(mean=0.625, ci95=(0.625, 0.625), n=6)


def test_an_interval_of_groups_of_one_prompt_covers_their_mean():
    rng = np.random.default_rng(3)
    estimates = [bootstrap_grouped(rng.normal(0.5, 0.3, 60), np.arange(60), seed) for seed in range(REPEATS)]
    assert 0.92 <= coverage(estimates, 0.5) <= 0.98


def test_a_group_of_one_prompt_is_drawn_with_the_smallest_other():
    values, groups = np.array([1.0, 1.0, 1.0, 0.5, 0.5, 0.0]), ["a", "a", "a", "b", "b", "c"]
    estimate = bootstrap_grouped(values, groups)
    assert estimate.mean == pytest.approx(0.5)
    assert estimate.ci95 == pytest.approx(((1 + 0 + 0) / 3, (1 + 0.5 + 0.5) / 3))


def test_prompts_are_drawn_within_their_group():
    values = np.repeat([0.0, 10.0], 50) + np.random.default_rng(0).normal(size=100)
    low, high = bootstrap_grouped(values, np.repeat([0, 1], 50)).ci95
    spread_low, spread_high = bootstrap(values).ci95
    assert high - low < (spread_high - spread_low) / 3


def test_the_width_of_an_interval_is_that_of_theory():
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap(values, resamples=20_000).ci95
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.03)


def test_a_seed_gives_the_same_interval_again():
    values = np.random.default_rng(0).random(30)
    assert bootstrap(values, seed=4) == bootstrap(values, seed=4) != bootstrap(values, seed=5)


def test_pairs_cancel_what_both_share():
    rng = np.random.default_rng(3)
    difficulty = rng.normal(0, 5, 200)
    a, b = difficulty + 1 + rng.normal(0, 0.1, 200), difficulty + rng.normal(0, 0.1, 200)
    assert bootstrap(a).overlaps(bootstrap(b))
    difference = bootstrap_grouped(a - b, np.repeat(["x", "y"], 100))
    assert 0.9 < difference.ci95[0] < difference.mean < difference.ci95[1] < 1.1


@pytest.mark.parametrize(
    ("values", "groups"), [([], []), ([1.0, np.nan], ["a", "a"]), ([1.0], ["a", "b"]), ([[1.0]], [["a"]])]
)
def test_values_without_a_mean_are_refused(values, groups):
    with pytest.raises(DataError):
        bootstrap_grouped(np.array(values), groups)


def test_the_gap_closed_is_0_at_the_base_and_1_at_the_teacher():
    owners = {"ocr": "text"}
    assert [gap_closed(results(student=s), owners).gap_closed["ocr"] for s in (0.5, 0.7, 0.9)] == [
        pytest.approx(share) for share in (0, 0.5, 1)
    ]


def test_without_a_gap_there_is_a_reason_instead():
    closed = gap_closed(results(expert=0.5), {"ocr": "text"})
    assert closed.gap_closed == {"ocr": None}
    assert "0.500" in closed.settings["no_gap"]["ocr"]
    assert closed.settings["owners"] == {"ocr": "text"}


def test_a_gap_between_intervals_that_overlap_is_in_doubt():
    closed = gap_closed(results(), {"ocr": "text"})
    assert closed.doubtful == []
    near = {"ci95": (closed.models["base"]["ocr"].mean, 1.0)}
    models = {**closed.models, "teacher:text": {"ocr": closed.models["teacher:text"]["ocr"].model_copy(update=near)}}
    assert gap_closed(closed.model_copy(update={"models": models}), {"ocr": "text"}).doubtful == ["ocr"]


def test_a_gap_needs_every_estimate():
    with pytest.raises(DataError, match="teacher:layout"):
        gap_closed(results(), {"ocr": "layout"})


def test_a_record_comes_back_as_it_was_saved(tmp_path):
    record = gap_closed(results(expert=0.4), {"ocr": "text"})
    record.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == record
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["schema"] == 1 and content["gap_closed"] == {"ocr": None}
    assert content["models"]["base"]["ocr"] == {"mean": 0.5, "ci95": [0.49, 0.51], "n": 320}


def test_the_average_is_the_last_metric():
    rows = {"base": {"average": exactly(1), "ocr": exactly(1)}, "student": {"geneval": exactly(1)}}
    assert Results(models=rows).metrics == ["ocr", "geneval", "average"]


def test_unknown_keys_are_read_among_the_settings_alone(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('{"schema": 1, "settings": {"of the future": [1, {"deep": null}]}}')
    assert Results.load(path).settings == {"of the future": [1, {"deep": None}]}


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"schema": 2}', "schema must be 1"),
        ('{"schema": 1, "surprise": 1}', "surprise:"),
        ('{"models": {"base": {"ocr": {"mean": 1, "ci95": [2, 1], "n": 3}}}}', "models.base.ocr:"),
        ('{"models": {"base": {"ocr": {"mean": 1, "ci95": [1, 1], "n": 0}}}}', "models.base.ocr.n must be at least 1"),
        ('{"models": {"base"', "Invalid JSON"),
    ],
)
def test_a_record_that_is_none_is_refused_in_one_line_that_names_the_field(tmp_path, text, field):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(DataError) as refusal:
        Results.load(path)
    assert f"results.json: {field}" in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_missing_record_says_how_to_make_it(tmp_path):
    with pytest.raises(DataError, match="flowopd eval"):
        Results.load(tmp_path / "results.json")


def test_an_estimate_is_a_number():
    with pytest.raises(ValidationError):
        Estimate(mean=float("nan"), ci95=(0, 1), n=2)


def test_a_handful_of_prompts_tells_no_two_models_apart():
    many, few = (Estimate(mean=0.9, ci95=(0.9, 0.9), n=n) for n in (20, 19))
    low = Estimate(mean=0.1, ci95=(0.1, 0.1), n=500)
    assert many.is_told_from(low) and low.is_told_from(many)
    assert not few.is_told_from(low) and not low.is_told_from(few)


def test_a_single_prompt_has_no_interval_to_show():
    assert str(Estimate(mean=0.9, ci95=(0.9, 0.9), n=1)) == "0.900"
    assert str(Estimate(mean=0.9, ci95=(0.85, 0.95), n=2)) == "0.900 ± 0.050"


def test_results_print_as_their_table():
    shown = str(gap_closed(results(expert=0.4), {"ocr": "text"})).splitlines()
    assert shown[0] == "|  | ocr |" and shown[2] == "| base | 0.500 ± 0.010 |" and shown[-1] == "| gap closed | none |"


def test_an_average_of_many_metrics_is_of_no_more_prompts_than_the_smallest():
    values = {f"m{i}": np.linspace(0, 1, 2 + i) for i in range(10)}
    groups = {name: [""] * len(each) for name, each in values.items()}
    assert bootstrap_average(values, groups).n == 2
