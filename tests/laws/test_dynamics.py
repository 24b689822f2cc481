"""Laws of the dynamics: formulas read from the papers, limits, weights, and the marginals they keep.

On a Gaussian flow every transition is affine in the state, so mean and variance of the states after any
number of steps are known without sampling.
"""

import math
from itertools import pairwise

import pytest
import torch

from flowopd.dynamics import Cps, FlowSde, Ode, per_step, windowed
from flowopd.errors import ConfigError
from flowopd.objectives import step_weights
from flowopd.schedule import sigma_grid
from flowopd.velocity import eps_of, score_of, x0_of

T, S = torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)


def states(generator):
    return (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))


def moments_after(dynamics, flow, start, end, steps):
    """Errors of the mean and the variance at `end`, from the exact marginal at `start`."""
    grid = torch.linspace(start, end, steps + 1, dtype=torch.float64)
    mean, variance = flow.mean(grid[0]), flow.variance(grid[0])
    for t, t_next in pairwise(grid):
        step, (slope, offset) = dynamics.coefficients(t, t_next), flow.line(t)
        gain = step.x + step.v * slope
        mean, variance = gain * mean + step.v * offset, gain**2 * variance + step.std**2
    return float(mean - flow.mean(grid[-1])), float(variance - flow.variance(grid[-1]))


def order(dynamics, flow, start, end, steps=64):
    """Measured order of the variance's error; `dynamics` is a function of the number of steps."""
    errors = [abs(moments_after(dynamics(n), flow, start, end, n)[1]) for n in (steps, 4 * steps)]
    return math.log(errors[0] / errors[1], 4)


def test_ode_is_the_step_of_euler(generator):
    x, v = states(generator)
    step = Ode().transition(x, v, T, S)
    torch.testing.assert_close(step.mean, x + v * (S - T))
    assert step.std == 0


def test_flow_sde_is_drift_plus_score(generator):
    """`mean = x + (v - sigma^2/2 score) dt`, `std = sigma sqrt(-dt)`."""
    x, v = states(generator)
    step = FlowSde(a=0.7).transition(x, v, T, S)
    sigma = 0.7 * (T / (1 - T)).sqrt()
    torch.testing.assert_close(step.mean, x + (v - sigma**2 / 2 * score_of(x, v, T)) * (S - T))
    torch.testing.assert_close(step.std, sigma * (T - S).sqrt())


def test_flow_sde_reads_the_next_time_at_pure_noise():
    one = torch.ones_like(T)
    step = FlowSde(a=0.7).coefficients(one, S)
    torch.testing.assert_close(step.std, 0.7 * (one / (1 - S)).sqrt() * (1 - S).sqrt())


def test_cps_keeps_the_coefficients_of_the_predictions(generator):
    x, v = states(generator)
    step = Cps(eta=0.6).transition(x, v, T, S)
    q = S * math.sin(0.6 * math.pi / 2)
    torch.testing.assert_close(step.mean, (1 - S) * x0_of(x, v, T) + (S**2 - q**2).sqrt() * eps_of(x, v, T))
    torch.testing.assert_close(step.std, q)


@pytest.mark.parametrize("faint", [FlowSde(a=1e-6), Cps(eta=1e-6)])
def test_without_noise_every_dynamics_is_the_ode(faint, generator):
    x, v = states(generator)
    torch.testing.assert_close(faint.transition(x, v, T, S).mean, Ode().transition(x, v, T, S).mean)


@pytest.mark.parametrize("dynamics", [Ode(), FlowSde(a=0.7), Cps(eta=0.7)])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_every_step_of_a_grid_is_finite(dynamics, steps):
    grid = sigma_grid(steps)
    for t, t_next in pairwise(grid):
        step = dynamics.coefficients(t, t_next)
        assert all(bool(part.isfinite()) for part in (step.x, step.v, step.std))


@pytest.mark.parametrize("dynamics", [FlowSde(a=0.7), Cps(eta=0.7)])
def test_kl_weight_is_the_kl_per_squared_gap(dynamics, generator):
    x, v = states(generator)
    u = v + 0.1
    kl = dynamics.transition(x, v, T, S).kl(dynamics.transition(x, u, T, S))
    torch.testing.assert_close(kl, dynamics.kl_weight(T, S) * (v - u).square().sum(1))


@pytest.mark.parametrize("a", [0.3, 0.7, 1.2])
def test_flow_sde_weight_in_closed_form(a):
    """`w(t) = (1 + a^2/2)^2 / (2 a^2) |dt| (1-t)/t` for t < 1."""
    for t, t_next in [(T, S), (S, S / 2), (S / 10, 0 * S)]:
        expected = (1 + a**2 / 2) ** 2 / (2 * a**2) * (t - t_next) * (1 - t) / t
        torch.testing.assert_close(FlowSde(a=a).kl_weight(t, t_next), expected)


@pytest.mark.parametrize(("weighting", "ninth", "first_five"), [("kl", 64, 3.8), ("ode", 47, 12), ("velocity", 11, 56)])
def test_published_shares_of_the_weight(weighting, ninth, first_five):
    """Shift 3, 10 steps of which nine are trained, a = 0.7; in per cent."""
    weights = step_weights(weighting, FlowSde(a=0.7), sigma_grid(10)[:10])
    shares = 100 * weights / weights.sum()
    assert abs(shares[8] - ninth) < 0.5
    assert abs(shares[:5].sum() - first_five) < 0.5


@pytest.mark.parametrize("dynamics", [lambda n: Ode(), lambda n: FlowSde(a=0.7), lambda n: Cps(eta=2 / math.sqrt(n))])
def test_the_marginals_are_kept_with_order_1(dynamics, gaussian_flow):
    """For Cps the fresh noise of a step has to shrink with the step."""
    flow = gaussian_flow(1.5, 0.6)
    assert 0.85 < order(dynamics, flow, 0.9, 0.0) < 1.1
    assert abs(moments_after(dynamics(256), flow, 0.9, 0.0, 256)[0]) < 1e-12


def test_flow_sde_from_pure_noise_has_order_a_squared(gaussian_flow):
    flow = gaussian_flow(1.5, 0.6)
    assert 0.3 < order(lambda n: FlowSde(a=0.7), flow, 1.0, 0.0, steps=1024) < 0.55
    assert 0.85 < order(lambda n: FlowSde(a=1.6), flow, 1.0, 0.0) < 1.3


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_cps_is_exact_for_a_single_point(eta, steps, gaussian_flow):
    mean, variance = moments_after(Cps(eta=eta), gaussian_flow(1.5, 0.0), 1.0, 0.2, steps)
    assert abs(mean) < 1e-12 and abs(variance) < 1e-12


def test_cps_with_a_fixed_eta_narrows_the_marginals(gaussian_flow):
    """It replaces noise before the predictions have caught up, and more steps don't mend it."""
    flow = gaussian_flow(1.5, 0.6)
    _, coarse = moments_after(Cps(eta=0.5), flow, 0.9, 0.0, 512)
    _, fine = moments_after(Cps(eta=0.5), flow, 0.9, 0.0, 1024)
    assert fine < -0.05 and abs(coarse - fine) < 0.05 * abs(fine)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FlowSde(a=0.0),
        lambda: FlowSde(a=-1.0),
        lambda: FlowSde(a=math.inf),
        lambda: Cps(eta=0.0),
        lambda: Cps(eta=1.1),
    ],
)
def test_noise_levels_out_of_range_are_refused(make):
    with pytest.raises(ConfigError, match="noise level"):
        make()


def test_the_kl_of_a_step_without_noise_is_refused():
    for dynamics, t_next in [(Ode(), S), (Cps(eta=0.7), 0 * S)]:
        with pytest.raises(ConfigError, match=r"without noise.*`ode`"):
            dynamics.kl_weight(T, t_next)


def test_a_window_is_stochastic_only_inside():
    steps = windowed(FlowSde(a=0.7), steps=6, start=1, length=2)
    assert [one.stochastic for one in steps] == [False, True, True, False, False, False]
    for start, length in [(-1, 2), (5, 2), (0, -1)]:
        with pytest.raises(ConfigError, match="window"):
            windowed(FlowSde(a=0.7), 6, start, length)


def test_one_dynamics_serves_all_steps():
    assert per_step(Ode(), 3) == [Ode()] * 3
    with pytest.raises(ConfigError, match="2 dynamics for 3 steps"):
        per_step([Ode(), Ode()], 3)
