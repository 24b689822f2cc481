"""Prompts in other words: the student reads one wording while its expert reads the prompt.

So the student learns what its expert does for the prompt it knows best, however somebody else puts it; or, where the
prompt is a long one and its wordings are short, to do for the short ones what the long one asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from flowopd.noise import seed_of
from flowopd.prompts import Prompt


def with_wordings(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The prompts, and each of their wordings as a prompt of its label."""
    return [each for prompt in prompts for each in (prompt, *(Prompt(text, prompt.label) for text in prompt.wordings))]


def read_by_student(prompts: Sequence[Prompt], share: float | None, *seed: int | str) -> list[str]:
    """What the student reads of each prompt: one of its wordings with probability `share`, in [0, 1], else the prompt.

    None draws evenly from prompt and wordings. A function of the seed and of the prompt's place.
    """
    return [_read(prompt, share, seed_of(*seed, i)) for i, prompt in enumerate(prompts)]


def _read(prompt: Prompt, share: float | None, seed: int) -> str:
    rng, wordings = np.random.default_rng(seed), prompt.wordings
    if not wordings:
        return prompt.text
    share = len(wordings) / (1 + len(wordings)) if share is None else share
    return wordings[rng.integers(len(wordings))] if rng.random() < share else prompt.text
