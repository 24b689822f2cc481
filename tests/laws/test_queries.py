"""Laws of the queried steps: unbiased where they say so."""

from collections import Counter

import pytest
import torch

from flowopd.errors import ConfigError
from flowopd.queries import AllSteps, BetaStep, FixedSteps, RandomSteps

N, DRAWS = 8, 4000


@pytest.mark.parametrize(
    "rule", [AllSteps(), RandomSteps(1), RandomSteps(3), RandomSteps(N), BetaStep(2.0, 1.5, unbiased=True)]
)
def test_the_mean_over_all_steps_is_estimated_without_bias(rule, generator):
    losses = torch.linspace(1, 2, N, dtype=torch.float64)
    draws = [rule.draw(N, generator) for _ in range(DRAWS)]
    estimates = torch.tensor(
        [sum(w * float(losses[i]) for i, w in zip(d.indices, d.weights, strict=True)) / N for d in draws]
    )
    assert (estimates.mean() - losses.mean()).abs() < 4 * estimates.std() / DRAWS**0.5 + 1e-6


def test_an_unbiased_weight_is_one_over_the_chance(generator):
    rule = BetaStep(5.0, 2.0, unbiased=True)
    p = rule.probabilities(N)
    for _ in range(50):
        query = rule.draw(N, generator)
        assert query.weights[0] * float(p[query.indices[0]]) == pytest.approx(1.0)


def test_a_flat_beta_is_one_random_step(generator):
    query = BetaStep(1.0, 1.0, unbiased=True).draw(N, generator)
    assert query.weights == pytest.approx(RandomSteps(1).draw(N, generator).weights)


def test_beta_steps_follow_their_probabilities(generator):
    rule = BetaStep()
    p = rule.probabilities(N)
    counts = Counter(rule.draw(N, generator).indices[0] for _ in range(DRAWS))
    seen = torch.tensor([counts[i] for i in range(N)], dtype=torch.float64)
    assert ((seen - DRAWS * p).abs() < 4 * (DRAWS * p * (1 - p)).sqrt() + 1).all()
    assert rule.draw(N, generator).weights == (1.0,)


def test_beta_5_2_prefers_late_steps_as_the_continuous_one_does():
    p = BetaStep(5.0, 2.0).probabilities(50)
    place = (torch.arange(50) + 0.5) / 50
    assert float((p * place).sum()) == pytest.approx(5 / 7, abs=0.01)
    assert float(p.sum()) == pytest.approx(1.0)


def test_random_steps_are_distinct_and_ascending(generator):
    for _ in range(50):
        indices = RandomSteps(4).draw(N, generator).indices
        assert list(indices) == sorted(set(indices)) and len(indices) == 4


def test_draws_are_functions_of_the_generator():
    draws = [RandomSteps(3).draw(N, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert draws[0] == draws[1]


def test_fixed_steps_are_as_given(generator):
    query = FixedSteps((6, 2)).draw(N, generator)
    assert query.indices == (2, 6) and query.weights == (1.0, 1.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda g: FixedSteps((8,)).draw(N, g),
        lambda g: FixedSteps((1, 1)),
        lambda g: FixedSteps((-1,)),
        lambda g: FixedSteps(()),
        lambda g: RandomSteps(0),
        lambda g: RandomSteps(9).draw(N, g),
        lambda g: BetaStep(0.0, 1.0),
    ],
)
def test_queries_that_cannot_work_are_refused(make, generator):
    with pytest.raises(ConfigError):
        make(generator)
