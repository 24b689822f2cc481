"""Parting an update's samples by what they query changes no sample's share of it."""

import pytest
import torch

from flowopd.queries import AllSteps, BetaStep, FixedSteps, RandomSteps, places
from flowopd.sampling import Batch
from flowopd.stages.cohorts import cohorts, joined
from flowopd.types import Condition

N, B = 4, 11


def parted(rule, size=B, updates=1):
    own = [[rule.at(place, N) for place in places(B, torch.Generator().manual_seed(i))] for i in range(updates)]
    batch = Batch(Condition({"text": torch.arange(B)[:, None]}), tuple(range(B)))
    return cohorts(batch, torch.arange(B)[:, None].float(), list(zip(*own, strict=True)), size), own


RULES = [AllSteps(), FixedSteps((1, 3)), RandomSteps(1), RandomSteps(3), BetaStep()]


@pytest.mark.parametrize("size", [1, 2, B])
@pytest.mark.parametrize("rule", RULES)
def test_every_sample_is_in_one_cohort_with_its_own_plan_route_and_seed(rule, size):
    found, (plans,) = parted(rule, size)
    assert sorted(row for cohort in found for row in cohort.rows.tolist()) == list(range(B))
    for cohort in found:
        rows = cohort.rows.tolist()
        assert 1 <= len(cohort) <= size and list(cohort.batch.seeds) == rows
        assert cohort.routes[:, 0].tolist() == cohort.batch.cond["text"][:, 0].tolist() == rows
        assert all(cohort.plan == (plans[row],) for row in rows)


@pytest.mark.parametrize(
    ("rule", "count"), [(AllSteps(), 1), (FixedSteps((1,)), 1), (RandomSteps(1), 4), (RandomSteps(2), 2)]
)
def test_samples_of_one_plan_are_walked_together(rule, count):
    assert len(parted(rule)[0]) == count


def test_samples_that_part_in_a_later_update_are_parted_from_the_first():
    found, plans = parted(RandomSteps(1), updates=2)
    assert 4 < len(found) <= 8
    assert all(cohort.plan == (plans[0][row], plans[1][row]) for cohort in found for row in cohort.rows.tolist())


@pytest.mark.parametrize("rule", RULES)
def test_what_cohorts_give_is_joined_in_the_order_of_the_batch(rule):
    found, _ = parted(rule, size=3)
    values = [torch.stack([cohort.rows, -cohort.rows]).float() for cohort in found]
    assert joined(found, values).tolist() == [list(range(B)), [-row for row in range(B)]]
