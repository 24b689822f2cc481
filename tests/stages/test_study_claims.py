"""Intervals over training seeds, and what a claim comes to by its intervals."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_ind

from flowopd.results import Estimate
from flowopd.stages.study.claims import between_seeds
from flowopd.stages.study.records import Verdict
from flowopd.suite import Claim


def test_two_sides_of_several_seeds_have_welch_s_interval():
    a, b = [0.83, 0.81, 0.86], [0.7, 0.75, 0.71, 0.9]
    known = ttest_ind(a, b, equal_var=False).confidence_interval()
    assert between_seeds(a, b) == pytest.approx((known.low, known.high))


def test_a_side_of_one_seed_counts_as_known():
    a = [0.83, 0.81, 0.86]
    known = ttest_1samp(a, 0.8).confidence_interval()
    assert between_seeds(a, [0.8]) == pytest.approx((known.low - 0.8, known.high - 0.8))
    assert between_seeds([0.8], a) == pytest.approx((0.8 - known.high, 0.8 - known.low))


def test_seeds_that_agree_leave_no_doubt_and_single_ones_say_nothing():
    assert between_seeds([0.5, 0.5], [0.25]) == (0.25, 0.25)
    assert between_seeds([0.5], [0.25]) is None


def test_the_interval_holds_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    drawn = [between_seeds(generator.normal(1, 0.1, 3), generator.normal(0, 0.3, 3)) for _ in range(2000)]
    assert 0.93 < np.mean([low < 1 < high for low, high in drawn]) < 0.985


@pytest.mark.parametrize(
    ("prompts", "seeds", "standing"),
    [
        ((0.1, 0.3), None, "holds"),
        ((0.1, 0.3), (0.15, 0.25), "holds"),
        ((0.1, 0.3), (0.05, 0.35), "undecided"),
        ((-0.1, 0.05), (-0.2, 0.05), "fails"),
        ((-0.1, 0.05), (-0.2, 0.15), "undecided"),
        ((0.05, 0.15), None, "undecided"),
    ],
)
def test_a_claim_holds_or_fails_by_all_of_its_intervals(prompts, seeds, standing):
    measured = Estimate(mean=sum(prompts) / 2, ci95=prompts, n=300)
    claim = Claim(says="S", of="a/b", over="c/d", at_least=0.1)
    assert Verdict(claim=claim, measured=measured, over_seeds=seeds).standing == standing
    assert Verdict(claim=claim).standing is None
