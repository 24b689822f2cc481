"""Intervals over training seeds, shares of gaps, and what a claim comes to by its intervals."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_ind

from flowopd.errors import ConfigError
from flowopd.results import BASE, Estimate, bootstrap_average
from flowopd.stages.study.claims import verdict, welch
from flowopd.stages.study.records import Verdict
from flowopd.suite import Claim, Closes

PROMPTS = 200


@dataclass
class Row:
    """A row as claims ask it: by model and seed the scores of each metric, (P,); all but the base is trained."""

    row: str
    given: dict
    counted: list = field(default_factory=lambda: ["m"])

    @property
    def models(self):
        return list(self.given)

    @property
    def prompts(self):
        names = {name for mine in self.given.values() for scores in mine.values() for name in scores}
        return dict.fromkeys(names, "the same")

    def scores(self, model):
        first = list(self.given[model].values())
        return {name: np.mean([one[name] for one in first], axis=0) for name in first[0]}

    def average(self, scores, metrics, resamples=2000):
        groups = dict.fromkeys(metrics, [""] * PROMPTS)
        return bootstrap_average({name: scores[name] for name in metrics}, groups, resamples)

    def by_seed(self, model, metrics):
        return {seed: self.average(scores, metrics, 1).mean for seed, scores in self.given[model].items()}

    def is_trained(self, model):
        return model != BASE


def noisy(mean, seed=0, **others):
    """Scores of 200 prompts around a mean, of `m` and other metrics."""
    noise = np.random.default_rng(seed).normal(0, 0.1, PROMPTS)
    return {name: value + noise - noise.mean() for name, value in {"m": mean, **others}.items()}


def seeds(*means):
    return {i: noisy(mean, 7 + i) for i, mean in enumerate(means)}


def test_two_samples_have_welch_s_interval():
    a, b = [0.83, 0.81, 0.86], [0.7, 0.75, 0.71, 0.9]
    known = ttest_ind(a, b, equal_var=False).confidence_interval()
    assert welch([a, [-x for x in b]]) == pytest.approx((known.low, known.high))


def test_one_sample_has_student_s_interval_and_one_that_agrees_none():
    a = [0.83, 0.81, 0.86]
    known = ttest_1samp(a, 0.8).confidence_interval()
    assert welch([a], -0.8) == pytest.approx((known.low - 0.8, known.high - 0.8))
    assert welch([[0.5, 0.5]], -0.25) == (0.25, 0.25)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    drawn = [welch([generator.normal(1, 0.1, 3), generator.normal(0, 0.3, 3)]) for _ in range(2000)]
    assert 0.93 < np.mean([low < 1 < high for low, high in drawn]) < 0.985


def test_rows_of_several_seeds_are_compared_as_samples_and_lines_of_one_row_run_by_run():
    rows = {
        "a": Row("a", {"x": seeds(0.5, 0.6, 0.7), "y": seeds(0.4, 0.5, 0.6)}),
        "b": Row("b", {"x": seeds(0.1, 0.4)}),
    }
    apart = verdict(Claim(says="S", of="a/x", over="b/x"), rows)
    assert apart.measured.mean == pytest.approx(0.35)
    assert apart.over_seeds == pytest.approx(welch([[0.5, 0.6, 0.7], [-0.1, -0.4]]))
    together = verdict(Claim(says="S", of="a/x", over="a/y"), rows)
    assert together.over_seeds == pytest.approx((0.1, 0.1))
    assert verdict(Claim(says="S", of="gone/x", over="a/y"), rows).measured is None


def test_seeds_that_only_one_line_has_are_left_out():
    later = {1: noisy(0.5), 2: noisy(0.4)}
    rows = {"a": Row("a", {"x": seeds(0.5, 0.6, 0.7), "y": later})}
    found = verdict(Claim(says="S", of="a/x", over="a/y"), rows)
    assert found.over_seeds == pytest.approx(welch([[0.1, 0.3]]))


def test_one_seed_is_known_of_what_is_not_trained_alone():
    rows = {"a": Row("a", {"x": seeds(0.5, 0.6, 0.7)}), "b": Row("b", {BASE: seeds(0.1), "x": seeds(0.2)})}
    assert verdict(Claim(says="S", of="a/x", over=f"b/{BASE}"), rows).over_seeds is not None
    assert verdict(Claim(says="S", of="a/x", over="b/x"), rows).over_seeds is None


def test_both_intervals_are_of_the_metrics_that_the_first_row_averages():
    rows = {
        "a": Row("a", {"x": {i: noisy(0.5, i, n=0.9) for i in range(3)}}),
        "b": Row("b", {BASE: {0: noisy(0.4, n=0.1)}}, ["m", "n"]),
    }
    found = verdict(Claim(says="S", of="a/x", over=f"b/{BASE}"), rows)
    assert found.measured.mean == pytest.approx(0.1) and found.over_seeds == pytest.approx((0.1, 0.1))


def closes(rows, share=0.9):
    claim = Closes(says="S", of="a/student", over="a/base", expert="a/teacher", metric="m", closes=share)
    return verdict(claim, rows)


def test_a_share_of_a_gap_has_the_interval_of_what_is_left_of_it():
    rows = {"a": Row("a", {"student": seeds(0.75), "base": seeds(0.5), "teacher": seeds(0.8)})}
    found = closes(rows)
    assert found.measured.mean == pytest.approx(0.25 / 0.3)
    assert found.measured.ci95 == pytest.approx((0.25 / 0.3,) * 2)  # the same noise in all: nothing is in doubt
    doubtful = {
        "a": Row("a", {"student": {0: noisy(0.75, 1)}, "base": {0: noisy(0.5, 2)}, "teacher": {0: noisy(0.8, 3)}})
    }
    low, high = closes(doubtful).measured.ci95
    share, error = 0.25 / 0.3, 0.1 / PROMPTS**0.5
    half = 1.96 * error * np.sqrt(1 + (1 - share) ** 2 + share**2) / 0.3
    assert (high - low) / 2 == pytest.approx(half, rel=0.2)


def test_a_share_of_a_gap_is_compared_run_by_run_and_knows_its_experts_seeds():
    each = {"student": seeds(0.6, 0.7, 0.8), "base": seeds(0.5, 0.5, 0.5), "teacher": seeds(0.6, 0.7, 0.8)}
    assert closes({"a": Row("a", each)}).over_seeds == pytest.approx((1, 1))
    claim = Closes(says="S", of="a/student", over="a/base", expert="b/teacher", metric="m", closes=0.9)
    rows = {
        "a": Row("a", {"student": seeds(0.6, 0.7, 0.8), "base": seeds(0.5)}),
        "b": Row("b", {"teacher": seeds(0.6, 0.7, 0.8)}),
    }
    low, high = verdict(claim, rows).over_seeds
    half = welch([[0.6, 0.7, 0.8], [-0.6, -0.7, -0.8]])[1] / 0.2
    assert (low + high) / 2 == pytest.approx(1) and (high - low) / 2 == pytest.approx(half)


def test_no_gap_and_no_ratio_are_said():
    rows = {"a": Row("a", {"student": seeds(0.6), "base": seeds(0.5), "teacher": seeds(0.4), "nought": seeds(0.0)})}
    assert closes(rows).lacks.startswith("no gap") and closes(rows).standing is None
    ratio = Claim(says="S", of="a/student", over="a/nought", metrics=["m"], over_metrics=["m"])
    assert verdict(ratio, rows).lacks.startswith("no ratio")


@pytest.mark.parametrize(
    ("claim", "fault"),
    [
        ({"of": "a/x", "over": "b/y"}, "claim 'S': row 'b' has no model 'y'; it has: x"),
        ({"of": "a/x", "over": "b/x", "metrics": ["n"]}, "claim 'S': row 'b' has no metric 'n'; it has: m"),
    ],
)
def test_the_row_that_lacks_something_is_named(claim, fault):
    rows = {"a": Row("a", {"x": {0: noisy(0.5, n=0.1)}}), "b": Row("b", {"x": {0: noisy(0.5)}})}
    with pytest.raises(ConfigError, match=fault):
        verdict(Claim(says="S", **claim), rows)


@pytest.mark.parametrize(
    ("prompts", "over", "standing"),
    [
        ((0.1, 0.3), None, "holds"),
        ((0.1, 0.3), (0.15, 0.25), "holds"),
        ((0.1, 0.3), (0.05, 0.35), "undecided"),
        ((-0.1, 0.05), (-0.2, 0.05), "fails"),
        ((-0.1, 0.05), (-0.2, 0.15), "undecided"),
        ((0.05, 0.15), None, "undecided"),
    ],
)
def test_a_claim_holds_or_fails_by_all_of_its_intervals(prompts, over, standing):
    measured = Estimate(mean=sum(prompts) / 2, ci95=prompts, n=300)
    claim = Claim(says="S", of="a/b", over="c/d", at_least=0.1)
    assert Verdict(claim=claim, measured=measured, over_seeds=over).standing == standing
    assert Verdict(claim=claim).standing is None
