"""Laws of the transition: torch's own Gaussian, Monte Carlo, and float32 where bf16 would lose the answer."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from flowopd.errors import ConfigError
from flowopd.gaussian import Gaussian, widen


def pair(generator, std=0.3, shape=(5, 3, 4, 4)):
    student, teacher = (torch.randn(shape, generator=generator) for _ in range(2))
    return Gaussian(student, torch.tensor(std)), Gaussian(teacher, torch.tensor(std))


def reference(gaussian):
    return Independent(Normal(gaussian.mean, gaussian.std), gaussian.mean.ndim - 1)


def test_log_prob_is_that_of_torch(generator):
    student, teacher = pair(generator)
    torch.testing.assert_close(student.log_prob(teacher.mean), reference(student).log_prob(teacher.mean))


def test_kl_is_that_of_torch(generator):
    student, teacher = pair(generator)
    torch.testing.assert_close(student.kl(teacher), kl_divergence(reference(student), reference(teacher)))


def test_kl_is_the_mean_log_ratio_of_samples(generator):
    n = 100_000
    mean = torch.tensor([[0.2, -0.4]], dtype=torch.float64).expand(n, 2)
    student, teacher = Gaussian(mean, torch.tensor(0.5)), Gaussian(mean + 0.3, torch.tensor(0.5))
    x = student.sample(torch.randn(n, 2, generator=generator, dtype=torch.float64))
    ratio = reference(student).log_prob(x) - reference(teacher).log_prob(x)
    error = (ratio.mean() - student.kl(teacher)[0]).abs()
    assert error < 4 * ratio.std() / n**0.5


def test_samples_have_the_mean_and_the_std(generator):
    gaussian = Gaussian(torch.full((100_000, 1), 2.0), torch.tensor(0.3))
    x = gaussian.sample(torch.randn(100_000, 1, generator=generator))
    assert abs(x.mean() - 2.0) < 0.005 and abs(x.std() - 0.3) < 0.005


def test_kl_is_zero_only_to_itself(generator):
    student, teacher = pair(generator)
    assert (student.kl(student) == 0).all() and (student.kl(teacher) > 0).all()


def test_bf16_means_are_widened_before_they_are_subtracted(generator):
    mean = torch.randn(2, 512, generator=generator).bfloat16()
    close = mean + 0.01 * mean.abs()
    kl = Gaussian(mean, torch.tensor(1.0)).kl(Gaussian(close, torch.tensor(1.0)))
    exact = (mean.double() - close.double()).square().sum(1) / 2
    assert kl.dtype == torch.float32
    torch.testing.assert_close(kl.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_widening_never_narrows(given, kept):
    assert widen(torch.ones(2, dtype=given)).dtype == kept


def test_a_step_without_noise_has_no_density(generator):
    student, teacher = pair(generator, std=0.0)
    with pytest.raises(ConfigError, match=r"ODE.*`ode` or `velocity`"):
        student.kl(teacher)
    with pytest.raises(ConfigError, match="log-probability"):
        student.log_prob(teacher.mean)


def test_kl_between_different_stds_is_refused(generator):
    student, _ = pair(generator, std=0.3)
    _, teacher = pair(generator, std=0.4)
    with pytest.raises(ConfigError, match="one std"):
        student.kl(teacher)
