"""Laws of the noise: a row belongs to its seed, and starts where diffusers would."""

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from flowopd.errors import ConfigError
from flowopd.noise import Noise, seed_of

SHAPE = (2, 3, 3)


@pytest.mark.parametrize("draw", [lambda n: n.initial(SHAPE), lambda n: n.step(4, SHAPE)])
def test_rows_do_not_depend_on_their_batch(draw):
    whole = draw(Noise([7, 8, 9, 10]))
    assert torch.equal(whole[1:3], draw(Noise([8, 9])))
    assert torch.equal(whole.flip(0), draw(Noise([10, 9, 8, 7])))


def test_noise_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    Noise([1]).step(0, SHAPE)
    assert torch.equal(before, torch.get_rng_state())


def test_rows_differ_between_seeds_and_steps():
    noise = Noise([0, 1])
    draws = [noise.initial(SHAPE), noise.step(0, SHAPE), noise.step(1, SHAPE)]
    rows = torch.cat(draws).flatten(1)
    assert len(torch.unique(rows, dim=0)) == 6


def test_the_start_is_that_of_diffusers():
    seeds = [3, 12345]
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    assert torch.equal(Noise(seeds).initial(SHAPE), randn_tensor((2, *SHAPE), generator=generators))


def test_noise_is_standard_normal_across_seeds():
    x = Noise(range(2000)).step(3, (16,))
    assert x.dtype == torch.float32 and x.device.type == "cpu"
    assert x.mean().abs() < 0.02 and (x.std() - 1).abs() < 0.02
    assert (x.T.corrcoef() - torch.eye(16)).abs().max() < 0.12


def test_seeds_are_stable_and_distinct():
    assert seed_of(0, "initial") == seed_of(0, "initial")
    assert len({seed_of(i, part) for i in range(100) for part in (0, 1, "0", "a", "b")}) == 500
    assert seed_of("ab", "c") != seed_of("a", "bc")
    assert all(0 <= seed_of(i) < 2**63 for i in range(1000))


def test_seeds_are_pinned():
    """Runs are replayed from their seeds, so another value is another set of results."""
    assert seed_of(0, 1) == 8566881351708354045


def test_noise_without_seeds_is_refused():
    with pytest.raises(ConfigError, match="seed"):
        Noise([])
