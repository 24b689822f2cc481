"""The sum to go as it is trained: an update's expected gradient is that of the whole trajectory's divergence.

The student is `v = theta x` and its teacher `v = theta_T x`, so the second moments of the states are known, and with
them the loss `1/N sum_i w_i E[mean_D (v_S - v_T)^2]` and its gradient through the states too. Groups are small: a
baseline that knew its own sample would show.
"""

from itertools import pairwise

import pytest
import torch
from torch import nn

from flowopd.configs import DistillConfig
from flowopd.dynamics import FlowSde
from flowopd.objectives import leave_one_out, to_go
from flowopd.prompts import Prompt
from flowopd.stages.updates import Place, distillation, update_kind
from flowopd.types import Condition

THETA, TEACHER = 0.4, -2.0
GRID = torch.tensor([0.9, 0.4, 0.05])
SDE = FlowSde(a=0.7)
GROUP, GROUPS = 4, 100


class Line(nn.Module):
    """The field `v = theta x`."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta))

    def forward(self, x, t, cond):
        return self.theta * x


def settings(**parts):
    sampling = {"steps": 2, "sampler": "sde", "noise": SDE.a}
    taught = {"samples_per_label": GROUP, "anchor": None, "query": {"kind": "all"}, **parts}
    return DistillConfig(loss="log_ratio_to_go", sampling=sampling, **taught)


def gradients(config, updates):
    """The gradient of each of some updates, whose samples differ."""
    student, labels = Line(THETA), [f"label {i}" for i in range(GROUPS)]
    lesson = distillation(config, GRID, student, [Line(TEACHER)])
    update = update_kind(config)(
        config,
        Place((2,), seed=0),
        lesson,
        lambda prompts: torch.ones(len(prompts), 1),
        {label: [Prompt(label, label)] for label in labels},
        lambda texts: Condition({"text": torch.zeros(len(texts), 1)}),
    )
    found = []
    for i in range(updates):
        student.zero_grad()
        update(i)
        found.append(student.theta.grad.clone())
    return torch.stack(found)


def analytic(weights, through_the_states=True):
    """d/dtheta of `1/N sum_i w_i (theta - theta_T)^2 E[x_i^2]`."""
    theta, moment, total = torch.tensor(THETA, requires_grad=True), torch.ones(()), torch.zeros(())
    for w, (t, t_next) in zip(weights, pairwise(GRID), strict=True):
        step = SDE.coefficients(t, t_next)
        seen = moment if through_the_states else moment.detach()
        total = total + w / len(weights) * (theta - TEACHER).square() * seen
        moment = (step.x + step.v * theta).square() * moment + step.std.square()
    return torch.autograd.grad(total, theta)[0]


@pytest.mark.parametrize(
    "parts", [{"weighting": "kl"}, {"weighting": (0.5, 1.5)}, {"query": {"kind": "random", "k": 1}}], ids=str
)
def test_any_weights_and_queries_have_the_gradient_of_the_whole_trajectory(parts):
    found, whole, _ = expectation(settings(**parts), updates=8)
    error = found.std() / len(found) ** 0.5
    assert (found.mean() - whole).abs() < 4 * error < whole.abs()


def test_an_update_has_the_gradient_through_the_states_too():
    found, whole, states_fixed = expectation(settings(), updates=40)
    error = found.std() / len(found) ** 0.5
    assert (found.mean() - whole).abs() < 4 * error < (whole - states_fixed).abs()


def expectation(config, updates):
    """The gradients of some updates, and the analytic ones, of the whole trajectory and at fixed states."""
    weights = distillation(config, GRID, Line(THETA), [Line(TEACHER)]).weights
    return gradients(config, updates), analytic(weights), analytic(weights, through_the_states=False)


def test_the_whole_gradient_does_not_depend_on_the_micro_batch():
    found = [gradients(settings(micro_batch=size), updates=1) for size in (GROUP * GROUPS, 70)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_a_sum_to_go_ends_with_the_last_reward():
    rewards = torch.tensor([[1.0, 5.0], [2.0, 6.0], [4.0, 7.0]])
    torch.testing.assert_close(to_go(rewards), torch.tensor([[7.0, 18.0], [6.0, 13.0], [4.0, 7.0]]))


def test_a_baseline_is_the_mean_of_the_others_of_the_group():
    returns = torch.tensor([[1.0, 10.0, 3.0, 20.0, 8.0]])
    baseline = leave_one_out(returns, ["a", "b", "a", "b", "a"])
    torch.testing.assert_close(baseline, torch.tensor([[5.5, 20.0, 4.5, 10.0, 2.0]]))


def test_a_baseline_does_not_know_its_own_sample(generator):
    returns, groups = torch.randn(3, 6, generator=generator), ["a", "a", "b", "a", "b", "c"]
    before = leave_one_out(returns, groups)
    for n in range(6):
        changed = returns.clone()
        changed[:, n] += 100
        torch.testing.assert_close(leave_one_out(changed, groups)[:, n], before[:, n])


def test_a_sample_that_is_alone_has_no_baseline(generator):
    returns = torch.randn(3, 2, generator=generator)
    assert not leave_one_out(returns, ["a", "b"]).any()


def test_the_baseline_makes_the_gradient_vary_less(generator):
    """Where returns are far from zero beside their spread, as divergences are."""
    returns, score = 50 + torch.randn(1, 4000, generator=generator), torch.randn(1, 4000, generator=generator)
    groups = [i // GROUP for i in range(4000)]
    less = (returns - leave_one_out(returns, groups)) * score
    assert less.std() < (returns * score).std() / 20
