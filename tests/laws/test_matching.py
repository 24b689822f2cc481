"""Advantage-weighted matching: what its gradient is, and that it moves samples towards better ones."""

import pytest
import torch

from flowopd.dynamics import Ode
from flowopd.errors import ConfigError
from flowopd.noise import Noise
from flowopd.objectives import AdvantageMatching, FlowMatching, group_advantages
from flowopd.rollout import sample
from flowopd.schedule import sigma_grid


def gradient(loss, net):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss.sum(), list(net.parameters()))])


def data(condition, n=4):
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, n, 3, 4, 4, generator=g).unbind(0)
    return x0, condition(n), torch.rand(n, generator=g), eps


def test_the_loss_is_that_of_flow_matching_times_the_advantage(tiny_net, condition):
    net, advantages = tiny_net(0), torch.tensor([1.0, -2.0, 0.5, 0.0])
    loss, _ = AdvantageMatching()(net, *data(condition), advantages)
    torch.testing.assert_close(loss, advantages * FlowMatching()(net, *data(condition))[0])


def test_at_the_old_policy_the_gradient_is_that_of_diffusion_nft(tiny_net, condition):
    """2509.16117: the gradient of r |(1-b) v_old + b v - u|^2 + (1-r) |(1+b) v_old - b v - u|^2, with A = 2 r - 1."""
    net, b, r = tiny_net(0), 0.3, torch.tensor([0.9, 0.2, 0.5, 1.0])
    x0, cond, t, eps = data(condition)
    x_t = (1 - t.reshape(-1, 1, 1, 1)) * x0 + t.reshape(-1, 1, 1, 1) * eps
    v, u = net(x_t, t, cond), eps - x0
    old = v.detach()
    plus, minus = ((v_ - u).square().flatten(1).mean(1) for v_ in ((1 - b) * old + b * v, (1 + b) * old - b * v))
    nft = gradient(r * plus + (1 - r) * minus, net)
    ours, _ = AdvantageMatching()(net, x0, cond, t, eps, 2 * r - 1)
    torch.testing.assert_close(gradient(ours, net), nft / b)


def test_the_kl_pulls_towards_the_reference(tiny_net, condition):
    net, reference = tiny_net(0), tiny_net(1)
    loss, metrics = AdvantageMatching(kl=0.5)(net, *data(condition), torch.zeros(4), reference)
    torch.testing.assert_close(loss.mean(), 0.5 * metrics["kl"])
    assert loss.min() > 0
    with pytest.raises(ConfigError, match="reference"):
        AdvantageMatching(kl=0.5)(net, *data(condition), torch.zeros(4))


def test_samples_move_to_what_is_rewarded(condition):
    """A field `a x + b` that starts at N(0, 1) learns to draw larger numbers."""
    offset = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([offset], lr=0.2)
    cond, grid = condition(64), sigma_grid(8, 1.0)

    def field(x, t, cond):
        t = t.reshape(-1, 1)
        return (2 * t - 1) / ((1 - t).square() + t.square()) * x - offset

    means = []
    for step in range(20):
        noise = Noise(range(64 * step, 64 * step + 64))
        x0 = sample(field, Ode(), noise.initial((2,)), grid, cond, noise).detach()
        means.append(x0.mean())
        t, eps = torch.rand(64, generator=torch.Generator().manual_seed(step)), Noise(range(64)).step(step, (2,))
        optimizer.zero_grad()
        AdvantageMatching()(field, x0, cond, t, eps, group_advantages(x0.mean(1), 64))[0].mean().backward()
        optimizer.step()
    assert means[-1] > means[0] + 0.5
