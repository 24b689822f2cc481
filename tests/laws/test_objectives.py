"""Laws of the losses: the gap in float32, weights as shares, exact KL, linear routing, PPO's clip."""

from typing import get_args

import pytest
import torch
from jaxtyping import TypeCheckError

from flowopd.dynamics import Cps, FlowSde, Ode
from flowopd.errors import ConfigError
from flowopd.gaussian import Gaussian
from flowopd.objectives import (
    Anchor,
    DetachedSurrogate,
    FlowMatching,
    Grpo,
    ReverseKL,
    SampledLogRatio,
    Weighting,
    group_advantages,
    squared_gap,
    step_weights,
)
from flowopd.routing import LabelRouter, mix
from flowopd.schedule import sigma_grid
from flowopd.types import Condition

T, S = torch.tensor(0.8), torch.tensor(0.7)


@pytest.mark.parametrize("spread", [0.01, 1.0])
def test_the_gap_of_bf16_velocities_is_exact(spread, generator):
    """Close ones lose their digits to a square in bf16, and far ones to a difference in bf16."""
    v = torch.randn(2, 4096, generator=generator).bfloat16()
    target = (v + spread * torch.randn(2, 4096, generator=generator)).bfloat16()
    exact = (v.double() - target.double()).square().mean(1)
    torch.testing.assert_close(squared_gap(v, target).double(), exact, rtol=1e-5, atol=0)


def test_the_gap_is_a_mean_over_the_elements(generator):
    v, target = torch.randn(2, 3, 4, 5, generator=generator).unbind(0)
    gap = squared_gap(v, target)
    torch.testing.assert_close(gap, (v - target).square().sum((1, 2)) / 20)
    torch.testing.assert_close(squared_gap(v.repeat(1, 2, 1), target.repeat(1, 2, 1)), gap)


def test_no_gradient_reaches_the_target():
    v, target = torch.ones(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    squared_gap(v, target).sum().backward()
    assert target.grad is None and v.grad is not None


@pytest.mark.parametrize("dynamics", [FlowSde(a=0.7), Cps(eta=0.7)])
def test_reverse_kl_with_the_kl_weight_is_the_kl(dynamics, generator):
    x, v, target = torch.randn(3, 4, 2, 5, generator=generator).unbind(0)
    weight = 10 * dynamics.kl_weight(T, S)
    loss, metrics = ReverseKL()(v, target, weight)
    expected = dynamics.transition(x, v, T, S).kl(dynamics.transition(x, target, T, S))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics["gap"], squared_gap(v, target).mean())


def test_the_anchor_is_a_weighted_reverse_kl(generator):
    v, target = torch.randn(2, 3, 4, generator=generator).unbind(0)
    weight = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(Anchor(weight=0.02)(v, target, weight)[0], 0.02 * ReverseKL()(v, target, weight)[0])
    assert (Anchor(weight=0.0)(v, target, 1.0)[0] == 0).all()
    with pytest.raises(ConfigError, match="negative"):
        Anchor(weight=-1.0)


def gradient(loss, parameter):
    return torch.autograd.grad(loss.sum(), parameter, retain_graph=True)[0]


def test_a_soft_route_has_the_weighted_gradient_of_its_teachers(generator):
    """`grad ||v - sum_k alpha_k v_k||^2 = sum_k alpha_k grad ||v - v_k||^2` for weights that sum to 1."""
    parameter = torch.randn(5, 5, generator=generator, requires_grad=True)
    v = torch.randn(1, 5, generator=generator) @ parameter
    teachers = torch.randn(3, 1, 5, generator=generator)
    route = {"a": 1.0, "b": 2.0, "c": 5.0}
    alpha = LabelRouter({"x": route}, list(route))(["x"])
    mixed = gradient(ReverseKL()(v, mix(alpha, teachers), 1.0)[0], parameter)
    single = [gradient(ReverseKL()(v, teacher, 1.0)[0], parameter) for teacher in teachers]
    torch.testing.assert_close(mixed, sum(a * g for a, g in zip(alpha[0], single, strict=True)))


def test_a_mixed_batch_has_the_weighted_gradient_of_its_tasks(generator):
    parameter = torch.randn(5, 5, generator=generator, requires_grad=True)
    v = torch.randn(6, 5, generator=generator) @ parameter
    teachers = torch.randn(2, 6, 5, generator=generator)
    labels = ["a", "b", "b", "a", "b", "b"]
    routes = LabelRouter({"a": "a", "b": "b"}, ["a", "b"])(labels)
    mixed = gradient(ReverseKL()(v, mix(routes, teachers), 1.0)[0].mean(), parameter)
    expected = torch.zeros_like(parameter)
    for k, label in enumerate("ab"):
        rows = [i for i, one in enumerate(labels) if one == label]
        task = ReverseKL()(v[rows], teachers[k, rows], 1.0)[0].mean()
        expected += len(rows) / 6 * gradient(task, parameter)
    torch.testing.assert_close(mixed, expected)


def test_micro_batches_add_up_to_the_batch(generator):
    parameter = torch.randn(5, 5, generator=generator, requires_grad=True)
    v, target = torch.randn(8, 5, generator=generator) @ parameter, torch.randn(8, 5, generator=generator)
    whole = gradient(ReverseKL()(v, target, 1.0)[0], parameter)
    for size in (1, 2, 4):
        parts = zip(v.split(size), target.split(size), strict=True)
        torch.testing.assert_close(sum(gradient(ReverseKL()(a, b, 1.0)[0], parameter) for a, b in parts), whole)


def test_normalised_weights_have_mean_1_and_the_same_shares():
    grid = sigma_grid(10)[:10]
    for weighting in ("kl", "ode", "velocity", [float(i) for i in range(9)]):
        raw = step_weights(weighting, FlowSde(a=0.7), grid, normalize=False)
        weights = step_weights(weighting, FlowSde(a=0.7), grid)
        assert float(weights.mean()) == pytest.approx(1.0)
        torch.testing.assert_close(weights / weights.sum(), raw / raw.sum())


def test_every_named_weighting_works():
    names = get_args(get_args(Weighting)[0])
    assert names == ("kl", "ode", "velocity")
    for name in names:
        assert step_weights(name, FlowSde(a=0.7), sigma_grid(10)).isfinite().all()


@pytest.mark.parametrize(
    ("weighting", "dynamics", "message"),
    [
        ("kl", Ode(), "without noise.*`velocity`"),
        ("kl", [FlowSde(a=0.7)] * 9 + [Ode()], "without noise"),
        ("kl", Cps(eta=0.7), "leave this step out"),
        ("kl", FlowSde(a=1e-22), "finite"),
        ([1.0] * 9, Ode(), "9 custom weights for 10 steps"),
        ([0.0] * 10, Ode(), "not all 0"),
        ([-1.0] + [1.0] * 9, Ode(), ">= 0"),
        ([float("nan")] + [1.0] * 9, Ode(), "finite"),
    ],
)
def test_weightings_that_cannot_work_are_refused(weighting, dynamics, message):
    with pytest.raises(ConfigError, match=message):
        step_weights(weighting, dynamics, sigma_grid(10))


def test_group_advantages_have_mean_0_and_std_1(generator):
    rewards = torch.rand(12, generator=generator)
    grouped = group_advantages(rewards, 4, eps=0.0).reshape(3, 4)
    torch.testing.assert_close(grouped.mean(1), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(grouped.std(1, correction=0), torch.ones(3))
    torch.testing.assert_close(group_advantages(5 * rewards + 3, 4, eps=0.0), grouped.flatten(), atol=1e-4, rtol=0)


def test_groups_do_not_mix(generator):
    rewards = torch.rand(8, generator=generator)
    both = group_advantages(rewards, 4)
    torch.testing.assert_close(both[:4], group_advantages(rewards[:4], 4))


def test_a_group_of_equal_rewards_gives_0():
    assert (group_advantages(torch.full((16,), 0.1), 16) == 0).all()
    with pytest.raises(ConfigError, match="groups of 3"):
        group_advantages(torch.ones(8), 3)


def policy(generator, shift=0.0):
    mean = torch.randn(4, 3, 5, generator=generator)
    x_next = mean + 0.5 * torch.randn(4, 3, 5, generator=generator)
    new = Gaussian((mean + shift * (x_next - mean)).requires_grad_(), torch.tensor(0.5))
    return new, Gaussian(mean, torch.tensor(0.5)).log_prob(x_next), x_next


def test_grpo_at_ratio_1_is_the_policy_gradient(generator):
    new, old_log_prob, x_next = policy(generator)
    advantages = torch.tensor([1.0, -1.0, 0.5, 0.0])
    loss, metrics = Grpo(clip=1e-4)(new, old_log_prob, x_next, advantages)
    torch.testing.assert_close(loss, -advantages)
    assert metrics["ratio"] == 1 and metrics["clip_fraction"] == 0
    expected = gradient(-(advantages * new.log_prob(x_next) / 15), new.mean)
    torch.testing.assert_close(gradient(loss, new.mean), expected)


def test_grpo_clips_what_has_moved_far_enough(generator):
    """The ratio has grown: no gradient where that was wanted, a full one where it was not."""
    new, old_log_prob, x_next = policy(generator, shift=0.5)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss, metrics = Grpo(clip=1e-4)(new, old_log_prob, x_next, advantages)
    moved = gradient(loss, new.mean).flatten(1).abs().sum(1) > 0
    assert moved.tolist() == [False, True, False, True]
    assert metrics["clip_fraction"] == 1 and metrics["ratio"] > 1


def test_the_kl_of_grpo_is_the_kl_per_element(generator):
    new, old_log_prob, x_next = policy(generator)
    reference = new.mean.detach() + 0.3
    advantages = torch.zeros(4)
    loss, metrics = Grpo(clip=1e-4, kl=0.04)(new, old_log_prob, x_next, advantages, reference)
    kl = new.kl(Gaussian(reference, new.std)) / 15
    torch.testing.assert_close(loss, 0.04 * kl)
    torch.testing.assert_close(metrics["kl"], kl.detach().mean())
    with pytest.raises(ConfigError, match="reference"):
        Grpo(clip=1e-4, kl=0.04)(new, old_log_prob, x_next, advantages)


def test_flow_matching_of_the_exact_field_is_the_conditional_variance(gaussian_flow, generator):
    """`Var(eps - x_0 | x_t) = s^2 / V(t)`, and a field that is off by `d` adds `d^2`."""
    n, flow = 100_000, gaussian_flow(1.5, 0.6)
    x0 = 1.5 + 0.6 * torch.randn(n, 1, generator=generator)
    eps = torch.randn(n, 1, generator=generator)
    t = torch.full((n,), 0.4)
    cond = Condition({"text": torch.zeros(n, 1)})

    def exact(x, t, cond):
        return flow(x, t[:, None], cond)

    loss, _ = FlowMatching()(exact, x0, cond, t, eps)
    assert (loss.mean() - 0.36 / flow.variance(torch.tensor(0.4))).abs() < 4 * loss.std() / n**0.5
    worse, _ = FlowMatching()(lambda *args: exact(*args) + 0.5, x0, cond, t, eps)
    assert (worse.mean() - loss.mean() - 0.25).abs() < 0.01


@pytest.mark.parametrize(
    "call",
    [
        lambda v, row: ReverseKL()(v, v, row[:, None]),
        lambda v, row: DetachedSurrogate()(v, v, 1.0, row[:, None], row),
        lambda v, row: SampledLogRatio()(row[None], row[:, None]),
        lambda v, row: Grpo()(Gaussian(v, torch.tensor(1.0)), row, v, row[:, None]),
    ],
)
def test_no_loss_broadcasts_a_column_against_a_row(call):
    with pytest.raises((TypeCheckError, AssertionError)):
        call(torch.ones(3, 2), torch.ones(3))


@pytest.mark.parametrize("make", [lambda: Grpo(clip=0.0), lambda: Grpo(kl=-1.0), lambda: DetachedSurrogate(clip=-1.0)])
def test_settings_of_losses_out_of_range_are_refused(make):
    with pytest.raises(ConfigError, match="clip"):
        make()
