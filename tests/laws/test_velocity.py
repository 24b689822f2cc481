"""Laws of the velocity: predictions that invert each other, and what guidance costs."""

import pytest
import torch

from flowopd.errors import ConfigError
from flowopd.velocity import VelocityField, eps_of, guided, score_of, x0_of


class Counting:
    """Its velocity is the condition's mean, so that it tells rows apart; it counts calls and rows."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, x, t, cond):
        self.rows.append(len(x))
        assert len(x) == len(cond) and t.shape in {(), (len(x),)}
        return x + t.reshape(-1, 1) + cond["text"].mean(1, keepdim=True)


@pytest.mark.parametrize("t", [torch.tensor(0.3), torch.tensor([0.1, 0.5, 1.0])])
def test_predictions_invert_the_path(t, generator):
    x0, eps = (torch.randn(3, 2, 4, generator=generator) for _ in range(2))
    u = t.reshape(-1, 1, 1)
    x, v = (1 - u) * x0 + u * eps, eps - x0
    torch.testing.assert_close(x0_of(x, v, t), x0)
    torch.testing.assert_close(eps_of(x, v, t), eps)
    torch.testing.assert_close(score_of(x, v, t), -eps / u)


def test_the_score_is_that_of_the_marginal(gaussian_flow, condition):
    """By differentiating the log-density of a Gaussian flow's marginal."""
    flow, t = gaussian_flow(1.5, 0.6), torch.tensor(0.4)
    x = torch.linspace(-1, 3, 5).unsqueeze(1).requires_grad_()
    density = torch.distributions.Normal(flow.mean(t), flow.variance(t).sqrt())
    (score,) = torch.autograd.grad(density.log_prob(x).sum(), x)
    torch.testing.assert_close(score_of(x, flow(x, t, condition(5)), t), score)


def test_guidance_1_is_the_field_itself(condition):
    field = Counting()
    one = guided(field, 1.0, condition(1))
    assert one is field
    one(torch.zeros(4, 2), torch.tensor(0.5), condition(4))
    assert field.rows == [4]


@pytest.mark.parametrize("t", [torch.tensor(0.5), torch.full((4,), 0.5)])
def test_guidance_is_one_call_of_twice_the_rows(t, condition):
    field, x, cond, null = Counting(), torch.ones(4, 2), condition(4), condition(1)
    v = guided(field, 4.5, null)(x, t, cond)
    assert field.rows == [8]
    v_cond, v_null = field(x, t, cond), field(x, t, null.expand(4))
    torch.testing.assert_close(v, v_null + 4.5 * (v_cond - v_null))


def test_guidance_0_is_unconditional(condition):
    field, x, null = Counting(), torch.ones(4, 2), condition(1)
    v = guided(field, 0.0, null)(x, torch.tensor(0.5), condition(4))
    torch.testing.assert_close(v, field(x, torch.tensor(0.5), null.expand(4)))


def test_guidance_subtracts_in_float32(condition):
    def coarse(x, t, cond):
        return torch.cat([torch.full((2, 1), 1.0078125), torch.full((2, 1), 1.0)]).bfloat16()

    v = guided(coarse, 1.5, condition(1))(torch.ones(2, 1), torch.tensor(0.5), condition(2))
    assert v.dtype == torch.float32 and (v == 1.01171875).all()


def test_guidance_that_cannot_work_is_refused(condition):
    with pytest.raises(ConfigError, match="negative"):
        guided(Counting(), -1.0, condition(1))
    with pytest.raises(ConfigError, match="one row"):
        guided(Counting(), 2.0, condition(3))


def test_networks_and_guided_fields_are_velocity_fields(tiny_net, condition):
    assert isinstance(tiny_net(0), VelocityField)
    assert isinstance(guided(tiny_net(0), 2.0, condition(1)), VelocityField)
