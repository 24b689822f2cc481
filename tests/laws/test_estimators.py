"""Which gradient: every estimator against the analytic one, on a linear field where it is known exactly.

The student is `v = theta x` and the teacher `v = theta_T x`, so the KL of a transition at `x` is
`w (theta - theta_T)^2 x^2` with `w = b^2 / (2 std^2)`. Two steps from `x ~ N(0, 1)` have three normal
variables, and every gradient is a polynomial in them: Gauss-Hermite nodes give its exact expectation.
One test draws at random instead. Each sample has a copy of theta, which gives a gradient a sample.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from flowopd.dynamics import FlowSde
from flowopd.objectives import DetachedSurrogate, ReverseKL, SampledLogRatio

THETA, TEACHER = 0.4, -0.3
DYNAMICS = FlowSde(a=0.7)
GRID = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64)
NODES = 10


@dataclass(frozen=True)
class Chain:
    """Two student steps: log-probabilities (2, N) of what was drawn, theta (N, 1), and the chance (N,)."""

    theta: Tensor
    states: list[Tensor]
    student: Tensor
    teacher: Tensor
    chance: Tensor


def walk(normals: Tensor, chance: Tensor) -> Chain:
    theta = torch.full((normals.shape[1], 1), THETA, dtype=torch.float64, requires_grad=True)
    states, student, teacher = [normals[0]], [], []
    for i in range(2):
        x, t, t_next = states[-1], GRID[i], GRID[i + 1]
        policy = DYNAMICS.transition(x, theta * x, t, t_next)
        states.append(policy.sample(normals[i + 1]).detach())
        student.append(policy.log_prob(states[-1]))
        teacher.append(DYNAMICS.transition(x, TEACHER * x, t, t_next).log_prob(states[-1]))
    return Chain(theta, states, torch.stack(student), torch.stack(teacher), chance)


@pytest.fixture
def chain() -> Chain:
    """The whole distribution of the chain, as weighted nodes."""
    node, weight = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(NODES))
    weight = weight / weight.sum()
    normals = torch.cartesian_prod(node, node, node).T.unsqueeze(2)
    return walk(normals, torch.cartesian_prod(weight, weight, weight).prod(1))


def analytic(through_the_states: bool) -> float:
    """d/dtheta of `sum_i w_i (theta - theta_T)^2 E[x_i^2]`, the second moments exact."""
    theta = torch.tensor(THETA, dtype=torch.float64, requires_grad=True)
    moment, total = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for t, t_next in pairwise(GRID):
        step = DYNAMICS.coefficients(t, t_next)
        seen = moment if through_the_states else moment.detach()
        total = total + DYNAMICS.kl_weight(t, t_next) * (theta - TEACHER).square() * seen
        moment = (step.x + step.v * theta).square() * moment + step.std.square()
    (gradient,) = torch.autograd.grad(total, theta)
    return float(gradient)


def moments(loss, chain) -> tuple[float, float]:
    """Mean and standard deviation of the gradient a sample."""
    (each,) = torch.autograd.grad(loss.sum(), chain.theta, retain_graph=True)
    each = each.squeeze(1)
    mean = (chain.chance * each).sum()
    return float(mean), float((chain.chance * (each - mean).square()).sum().sqrt())


def closed_form(chain) -> Tensor:
    losses = [
        ReverseKL()(chain.theta * x, TEACHER * x, DYNAMICS.kl_weight(GRID[i], GRID[i + 1]))[0]
        for i, x in enumerate(chain.states[:2])
    ]
    return torch.stack(losses).sum(0)


def sampled(chain, to_go) -> Tensor:
    return SampledLogRatio(to_go=to_go)(chain.student, chain.teacher)[0]


def detached(chain) -> Tensor:
    """The control on both steps."""
    losses = []
    for i, x in enumerate(chain.states[:2]):
        weight, log_prob = DYNAMICS.kl_weight(GRID[i], GRID[i + 1]), chain.student[i]
        losses.append(DetachedSurrogate()(chain.theta * x, TEACHER * x, weight, log_prob, log_prob.detach())[0])
    return torch.stack(losses).sum(0)


def test_the_closed_form_has_the_analytic_gradient(chain):
    assert moments(closed_form(chain), chain)[0] == pytest.approx(analytic(through_the_states=False), rel=1e-9)


def test_the_sampled_log_ratio_has_the_gradient_of_the_closed_form(chain):
    mean, _ = moments(sampled(chain, to_go=False), chain)
    assert mean == pytest.approx(analytic(through_the_states=False), rel=1e-9)


def test_the_sum_to_go_has_the_gradient_of_the_whole_trajectory(chain):
    whole, states_fixed = analytic(through_the_states=True), analytic(through_the_states=False)
    assert moments(sampled(chain, to_go=True), chain)[0] == pytest.approx(whole, rel=1e-9)
    assert abs(whole - states_fixed) > 0.03 * abs(states_fixed)


def test_the_detached_control_has_no_expected_gradient(chain):
    """Zero mean, while the analytic gradient is not and a single sample's is not."""
    mean, std = moments(detached(chain), chain)
    assert abs(mean) < 1e-9
    assert analytic(through_the_states=False) > 1 and std > 1


def test_the_closed_form_varies_less_than_samples(chain):
    stds = [moments(loss, chain)[1] for loss in (closed_form(chain), sampled(chain, False), sampled(chain, True))]
    assert stds[0] < stds[1] / 1.5 and stds[1] < stds[2]


def test_random_draws_agree_with_the_expectations(generator):
    n = 200_000
    normals = torch.randn(3, n, 1, generator=generator, dtype=torch.float64)
    drawn = walk(normals, torch.full((n,), 1 / n, dtype=torch.float64))
    for loss, expected in [
        (closed_form(drawn), analytic(through_the_states=False)),
        (sampled(drawn, to_go=False), analytic(through_the_states=False)),
        (sampled(drawn, to_go=True), analytic(through_the_states=True)),
        (detached(drawn), 0.0),
    ]:
        mean, std = moments(loss, drawn)
        assert abs(mean - expected) < 4 * std / n**0.5


@pytest.mark.parametrize("to_go", [False, True])
def test_a_student_that_is_its_teacher_has_no_gradient(to_go, chain):
    loss, _ = SampledLogRatio(to_go=to_go)(chain.student, chain.student.detach())
    assert moments(loss, chain) == (0.0, 0.0)
