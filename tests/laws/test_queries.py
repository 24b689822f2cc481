"""Laws of the queried steps: unbiased where they say so, at uniform places that cover an update evenly."""

from collections import Counter
from itertools import pairwise

import pytest
import torch

from flowopd.errors import ConfigError
from flowopd.queries import AllSteps, BetaStep, FixedSteps, RandomSteps, places

N = 8
EVERYWHERE = [(i + 0.5) / 4000 for i in range(4000)]
"""Places so close that a mean over them is one over uniform places."""


@pytest.mark.parametrize(
    "rule", [AllSteps(), *(RandomSteps(k) for k in range(1, N + 1)), BetaStep(2.0, 1.5, unbiased=True)]
)
def test_the_mean_over_all_steps_is_estimated_without_bias(rule):
    losses = torch.rand(N, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    drawn = [rule.at(place, N) for place in EVERYWHERE]
    estimates = [sum(w * float(losses[i]) for i, w in zip(d.indices, d.weights, strict=True)) / N for d in drawn]
    assert sum(estimates) / len(estimates) == pytest.approx(float(losses.mean()), rel=0.01)


@pytest.mark.parametrize("k", range(1, N + 1))
def test_every_step_is_as_likely_as_another(k):
    counts = Counter(i for place in EVERYWHERE for i in RandomSteps(k).at(place, N).indices)
    assert counts == dict.fromkeys(range(N), len(EVERYWHERE) * k // N)


@pytest.mark.parametrize("n", [1, 3, 7, 10, 28])
@pytest.mark.parametrize("place", [0.0, 1 / 3, 0.29999999999999993, 1 - 2**-53])
def test_random_steps_are_distinct_ascending_and_spread(n, place):
    for k in range(1, n + 1):
        indices = RandomSteps(k).at(place, n).indices
        assert len(indices) == k and all(0 <= i < n for i in indices)
        gaps = [b - a for a, b in pairwise((*indices, indices[0] + n))]
        assert all(n // k <= gap <= -(-n // k) for gap in gaps)


def test_an_unbiased_weight_is_one_over_the_chance():
    rule = BetaStep(5.0, 2.0, unbiased=True)
    p = rule.probabilities(N)
    for place in EVERYWHERE[::50]:
        query = rule.at(place, N)
        assert query.weights[0] * float(p[query.indices[0]]) == pytest.approx(1.0)


def test_a_flat_beta_is_one_random_step():
    for place in EVERYWHERE[::50]:
        query, other = BetaStep(1.0, 1.0, unbiased=True).at(place, N), RandomSteps(1).at(place, N)
        assert query.indices == other.indices and query.weights == pytest.approx(other.weights)


def test_beta_steps_follow_their_probabilities():
    counts = Counter(BetaStep().at(place, N).indices[0] for place in EVERYWHERE)
    for i, chance in enumerate(BetaStep().probabilities(N)):
        assert counts[i] == pytest.approx(len(EVERYWHERE) * float(chance), abs=1)
    assert BetaStep().at(0.5, N).weights == (1.0,)


def test_beta_5_2_prefers_late_steps_as_the_continuous_one_does():
    p = BetaStep(5.0, 2.0).probabilities(50)
    place = (torch.arange(50) + 0.5) / 50
    assert float((p * place).sum()) == pytest.approx(5 / 7, abs=0.01)
    assert float(p.sum()) == pytest.approx(1.0)


def test_a_place_is_uniform(generator):
    drawn = torch.tensor([places(3, generator) for _ in range(4000)])
    assert ((drawn >= 0) & (drawn < 1)).all()
    for column in drawn.T:
        cells = torch.histc(column, 10, 0, 1)
        assert ((cells - 400).abs() < 4 * (400 * 0.9) ** 0.5).all()


@pytest.mark.parametrize("samples", [8, 12, 36, 48, 100])
def test_neighbours_cover_the_rollout_evenly_wherever_they_begin(samples, generator):
    for _ in range(20):
        own = places(200, generator)
        for first in (0, 5, 77):
            steps = Counter(RandomSteps(1).at(place, N).indices[0] for place in own[first : first + samples])
            assert all(abs(steps[i] - samples / N) < 2.5 for i in range(N))


def test_places_are_functions_of_the_generator():
    first, again, other = (places(5, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert first == again != other


def test_fixed_steps_are_as_given():
    query = FixedSteps((6, 2)).at(0.3, N)
    assert query.indices == (2, 6) and query.weights == (1.0, 1.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixedSteps((8,)).at(0.0, N),
        lambda: FixedSteps((1, 1)),
        lambda: FixedSteps((-1,)),
        lambda: FixedSteps(()),
        lambda: RandomSteps(0),
        lambda: RandomSteps(9).at(0.0, N),
        lambda: BetaStep(0.0, 1.0),
    ],
)
def test_queries_that_cannot_work_are_refused(make):
    with pytest.raises(ConfigError):
        make()
