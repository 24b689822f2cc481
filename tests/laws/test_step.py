"""One optimisation step: what its estimators share in expectation, and that its gaps are plain squared distances."""

from dataclasses import replace

import pytest
import torch

from flowopd.crews import Task
from flowopd.dynamics import FlowSde, Ode
from flowopd.errors import ConfigError
from flowopd.noise import Noise
from flowopd.objectives import Anchor, step_weights
from flowopd.queries import AllSteps
from flowopd.rollout import rollout
from flowopd.sampling import Batch
from flowopd.schedules import fused
from flowopd.step import Distillation, closed_form, detached, log_ratio

GRID = torch.tensor([0.9, 0.6, 0.3])
SDE = FlowSde(a=0.7)


def step_of(theta, x, dynamics, cond, noise):
    """The first step of a rollout whose field is `theta x`."""
    return next(iter(rollout(lambda x, t, cond: theta * x, dynamics, x, GRID, cond, noise, {0})))


def expectation(estimate, weight, condition, n=40_000):
    """The gradient of the closed form at a state; an estimator's mean over next states, its error, and its spread."""
    theta, w = torch.tensor(0.4, requires_grad=True), torch.tensor(weight)
    x = torch.tensor([[0.5, -1.0]]).expand(n, 2)
    step = step_of(theta, x, SDE, condition(1).expand(n), Noise(range(n)))
    target = 0.9 * step.x
    exact = torch.autograd.grad(closed_form(step, SDE, target, w).mean(), theta, retain_graph=True)[0]
    loss = estimate(step, SDE, target, w)
    mean = torch.autograd.grad(loss.mean(), theta, retain_graph=True)[0]
    parts = [torch.autograd.grad(part.mean(), theta, retain_graph=True)[0] for part in loss.chunk(20)]
    error = torch.stack(parts).std() / len(parts) ** 0.5
    return exact, mean, error, error * n**0.5


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_log_ratio_has_the_expected_gradient_of_the_closed_form(weight, condition):
    exact, mean, error, _ = expectation(log_ratio, weight, condition)
    assert error < exact.abs() / 10
    assert (mean - exact).abs() < 4 * error


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_detached_reward_has_no_expected_gradient(weight, condition):
    """Though a sample's is not zero, so nothing is clipped away: it is `w mean_D gap` times that of log pi."""
    exact, mean, error, spread = expectation(detached, weight, condition)
    assert error < exact.abs() / 10
    assert mean.abs() < 4 * error
    score = (2 * SDE.kl_weight(GRID[0], GRID[1]) * 1.25).sqrt()
    assert spread == pytest.approx(weight * 0.25 * 0.625 * float(score), rel=0.5)


def test_the_detached_reward_is_the_mean_of_that_of_the_log_ratio(condition):
    """A loss's gradient is minus its reward times that of the log-probability, so the rewards can be read off."""
    n, w = 40_000, torch.tensor(0.3)
    x = torch.tensor([[0.5, -1.0]]).expand(n, 2)
    step = step_of(torch.tensor(0.4, requires_grad=True), x, SDE, condition(1).expand(n), Noise(range(n)))
    log_prob = SDE.transition(step.x, step.v, step.t, step.t_next).log_prob(step.x_next)
    score = torch.autograd.grad(log_prob.sum(), step.v, retain_graph=True)[0][:, 0]
    gradients = (
        torch.autograd.grad(loss(step, SDE, 0.9 * step.x, w).sum(), step.v, retain_graph=True)[0][:, 0]
        for loss in (log_ratio, detached)
    )
    sampled, fixed = (-gradient / score for gradient in gradients)
    torch.testing.assert_close(fixed, fixed[:1].expand(n), rtol=1e-3, atol=0)
    assert (sampled.mean() - fixed[0]).abs() < 4 * sampled.std() / n**0.5


@pytest.mark.parametrize("estimate", [log_ratio, detached])
def test_a_sampled_loss_of_a_step_without_noise_is_refused(estimate, condition):
    theta = torch.tensor(0.4, requires_grad=True)
    step = step_of(theta, torch.ones(1, 2), Ode(), condition(1), None)
    with pytest.raises(ConfigError, match="without noise"):
        estimate(step, Ode(), torch.ones(1, 2), torch.tensor(1.0))


def distillation(tiny_net, weights, teachers=True, anchor=0.5):
    return Distillation(
        student=tiny_net(0),
        teachers=[tiny_net(1), tiny_net(2)] if teachers else [],
        anchor_field=tiny_net(3) if anchor else None,
        anchor=Anchor(weight=anchor),
        dynamics=[SDE, SDE],
        grid=GRID,
        weights=step_weights(weights, SDE, GRID),
        estimate=closed_form,
    )


def gradient_and_gaps(d, condition, routes):
    d.student.zero_grad()
    gaps = fused(d, Task(Batch(condition(2), (3, 4)), routes, (3, 4, 4), 2), [AllSteps().at(0.0, 2)] * 2)
    return torch.cat([p.grad.flatten() for p in d.student.parameters()]), gaps


def test_a_step_of_weight_0_gives_no_gradient_and_still_a_gap(tiny_net, condition):
    routes = torch.eye(2)
    whole, gaps = gradient_and_gaps(distillation(tiny_net, "velocity"), condition, routes)
    first, part = gradient_and_gaps(distillation(tiny_net, (2.0, 0.0)), condition, routes)
    last, _ = gradient_and_gaps(distillation(tiny_net, (0.0, 2.0)), condition, routes)
    torch.testing.assert_close((first + last) / 2, whole)
    torch.testing.assert_close(part, gaps)
    assert gaps.isfinite().all()


def test_teachers_and_anchor_add_up(tiny_net, condition):
    routes = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    both, _ = gradient_and_gaps(distillation(tiny_net, "velocity"), condition, routes)
    taught, gaps = gradient_and_gaps(distillation(tiny_net, "velocity", anchor=0.0), condition, routes)
    held, others = gradient_and_gaps(distillation(tiny_net, "velocity", teachers=False), condition, routes)
    torch.testing.assert_close(taught + held, both)
    assert gaps[0].isfinite().all() and gaps[1].isnan().all()
    assert others[0].isnan().all() and others[1].isfinite().all()


def test_a_mixed_batch_is_the_mean_of_its_rows(tiny_net, condition):
    d, cond = distillation(tiny_net, "velocity"), condition(2)
    routes, queries = torch.eye(2), AllSteps().at(0.0, 2)
    whole, _ = gradient_and_gaps(d, condition, routes)
    d.student.zero_grad()
    for i, seed in enumerate((3, 4)):
        fused(d, Task(Batch(cond.rows([i]), (seed,)), routes[i : i + 1], (3, 4, 4), 1, among=2), [queries])
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in d.student.parameters()]), whole)


class Counted:
    """A field that remembers how many rows it was asked for."""

    def __init__(self, field):
        self.field, self.rows = field, []

    def __call__(self, x, t, cond):
        self.rows.append(len(x))
        return self.field(x, t, cond)


def test_an_anchor_that_is_a_teacher_is_asked_once(tiny_net, condition):
    routes, apart = torch.eye(2), distillation(tiny_net, "velocity")
    anchor, other = Counted(tiny_net(1)), Counted(tiny_net(2))
    expected = gradient_and_gaps(replace(apart, anchor_field=tiny_net(1)), condition, routes)
    shared = replace(apart, teachers=[anchor, other], anchor_field=anchor)
    torch.testing.assert_close(gradient_and_gaps(shared, condition, routes), expected)
    assert anchor.rows == [2, 2] and other.rows == [1, 1]
