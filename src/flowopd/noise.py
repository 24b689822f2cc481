"""Noise that belongs to a sample: each row is a function of its seed and the step, never of its batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch

from flowopd.errors import ConfigError
from flowopd.shapes import Batch


def seed_of(*parts: int | str) -> int:
    """A seed in [0, 2^63) from any parts, the same on every machine and in every process."""
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class Noise:
    """Standard normal noise for the samples with these `seeds`, one a row, drawn on the CPU in float32.

    Raises ConfigError if there is no seed.
    """

    seeds: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", tuple(self.seeds))
        if not self.seeds:
            raise ConfigError("noise needs at least one seed, got none; give one seed a sample")

    def initial(self, shape: Sequence[int]) -> Batch:
        """The starting states (B, *shape): what a diffusers pipeline draws with this seed."""
        return _rows(self.seeds, shape)

    def step(self, i: int, shape: Sequence[int]) -> Batch:
        """The noise (B, *shape) of step `i`."""
        return _rows([seed_of(seed, i) for seed in self.seeds], shape)


def _rows(seeds: Sequence[int], shape: Sequence[int]) -> Batch:
    draws = [torch.randn((1, *shape), generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
    return torch.cat(draws)
