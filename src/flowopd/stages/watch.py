"""Stops training on a reward that says nothing: a broken judge, not a hard task, is what most of them come from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flowopd.errors import NumericsError
from flowopd.prompts import Prompt

BEST = 1.0
"""The top of a reward's range, which a detail may not have."""

PROMPTS = 4
"""Prompts that an update of patience stands for: some are easy, and a few of them in a row say nothing of a judge."""

CAUSES = {
    0.0: ": none of them is right, or the judge is broken; run `flowopd doctor`, take easier prompts",
    BEST: ", its best: the task is solved, or the judge says yes to all; run `flowopd doctor`, take harder prompts",
}
"""What a reward at one end of its range comes from besides a broken judge; the mend."""


class RewardWatch:
    """Looks at the rewards of every update before anything is learnt from them.

    The names of the reward, of its prompts' label and of its detail, if that is trained on, go into errors. `patience`
    is how many updates in a row, of PROMPTS prompts or more, may have one and the same reward for all their pictures;
    the last of them stops the run. None is any number. A reward that is not `alone`, and has given other ones before,
    may give all pictures its best: a task of several is solved, and the others go on. The best of a detail is the
    highest that it gave while it told pictures apart.
    """

    def __init__(
        self, reward: str, label: str, patience: int | None, detail: str | None = None, alone: bool = True
    ) -> None:
        self._what = f"{f'detail {detail!r} of ' if detail else ''}reward {reward!r} for the prompts of {label!r}"
        self._patience, self._causes = patience, {} if detail else CAUSES
        self._value, self._updates, self._prompts = 0.0, 0, 0
        self._alone, self._highest = alone, -np.inf

    def __call__(self, step: int, rewards: np.ndarray, prompts: Sequence[Prompt]) -> None:
        """Take the rewards (N,) of update `step`, all processes' together, and their N prompts.

        Raises NumericsError for one that is not finite, and for a reward that told no picture from another for too
        long.
        """
        check_finite(f"{self._what} in update {step}", rewards, prompts)
        value = float(rewards[0])
        tells_apart = bool((rewards != value).any())
        if tells_apart or value != self._value:
            self._updates = self._prompts = 0
        self._value = value
        if tells_apart:
            self._highest = max(self._highest, float(rewards.max()))
            return
        self._updates += 1
        self._prompts += len({prompt.text for prompt in prompts})
        first = step - self._updates + 1
        is_solved = not self._alone and first > 0 and self._is_best(value)
        if self._is_over() and not is_solved:
            cause = self._causes.get(value, ": nothing is learnt from that; run `flowopd doctor`")
            raise NumericsError(
                f"{self._what} gave {value:g} to all {len(rewards)} pictures of each of the updates "
                f"{first} to {step}{cause}, or set watch.patience=null to go on"
            )

    def _is_best(self, value: float) -> bool:
        return value == BEST if self._causes else -np.inf < self._highest <= value

    def _is_over(self) -> bool:
        patience = self._patience
        return patience is not None and self._updates >= patience and self._prompts >= PROMPTS * patience


def check_finite(what: str, values: np.ndarray, prompts: Sequence[Prompt]) -> None:
    """Raises NumericsError, naming `what` gave them, picture and prompt, unless all scores (N,) are finite."""
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        first = int(wrong[0])
        raise NumericsError(
            f"{what} gave {float(values[first])} to picture {first} of {len(values)}, prompt "
            f"{prompts[first].text!r}; run `flowopd doctor`"
        )
