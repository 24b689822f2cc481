"""Laws of the time grids: the grid of diffusers, and shifts that undo each other."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from flowopd.errors import ConfigError
from flowopd.schedule import check_grid, logit_normal, shift_sigma, sigma_grid


@pytest.mark.parametrize("steps", [1, 2, 10, 28, 40])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_the_grid_is_that_of_diffusers(steps, shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, num_train_timesteps=1000)
    scheduler.set_timesteps(steps)
    grid = sigma_grid(steps, shift)
    assert grid.dtype == torch.float32
    torch.testing.assert_close(grid, scheduler.sigmas, rtol=0, atol=1e-6)


def test_the_published_grid():
    expected = [1, 0.960, 0.913, 0.858, 0.790, 0.707, 0.602, 0.465, 0.278, 0.009, 0]
    torch.testing.assert_close(sigma_grid(10, 3.0), torch.tensor(expected), rtol=0, atol=6e-4)


def test_the_inverse_shift_undoes_the_shift():
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(shift_sigma(shift_sigma(u, 3.0), 1 / 3), u)
    assert torch.equal(shift_sigma(u, 1.0), u)


def test_logit_normal_times(generator):
    t = logit_normal(50_000, generator, mean=0.5, std=1.0)
    assert t.min() > 0 and t.max() < 1
    assert abs(t.median() - torch.sigmoid(torch.tensor(0.5))) < 0.01
    assert abs(torch.logit(t).std() - 1.0) < 0.02
    again = logit_normal(50_000, torch.Generator().manual_seed(0), mean=0.5, std=1.0)
    assert torch.equal(t, again)


@pytest.mark.parametrize("grid", [[1.0], [0.5, 0.5], [0.2, 0.7], [1.5, 0.0], [0.5, -0.1], [1.0, float("nan")]])
def test_a_grid_that_does_not_fall_within_0_and_1_is_refused(grid):
    with pytest.raises(ConfigError, match="fall strictly"):
        check_grid(torch.tensor(grid))


def test_settings_that_cannot_work_are_refused(generator):
    for call in (
        lambda: sigma_grid(0),
        lambda: sigma_grid(10, 0.0),
        lambda: logit_normal(1, generator, std=0.0),
    ):
        with pytest.raises(ConfigError):
            call()
