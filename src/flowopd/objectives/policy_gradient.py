"""The honest policy gradient of the reverse KL: unbiased like the closed form, with more variance.

    grad E_S[log pi_S - log pi_T] = E_S[sum_i grad log pi_S,i  sum_{j >= i} (log pi_S,j - log pi_T,j)]

The sum to go is the gradient of the KL of whole trajectories; its first term alone, `j = i`, is the closed
form's gradient, which holds the visited states fixed. What is subtracted from a sum to go and does not depend on its
own sample, a baseline, changes no expectation.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from flowopd.shapes import Metrics, PerSample, PerStepSample


def to_go(rewards: PerStepSample) -> PerStepSample:
    """`sum_{j >= i} r_j` at each step, from the rewards (N, B) of the steps."""
    return rewards.flip(0).cumsum(0).flip(0)


def leave_one_out(returns: PerStepSample, groups: Sequence[Hashable]) -> PerStepSample:
    """A baseline (N, B): at each step the mean return of the other samples of a sample's group, 0 where it is alone.

    `groups` names the group of each of the B samples. It lessens the variance where a group's returns are alike.
    """
    numbers = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    number = torch.tensor([numbers[group] for group in groups])
    others = (number[:, None] == number[None, :]).to(returns).fill_diagonal_(0)
    return returns @ others / others.sum(0).clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class SampledLogRatio:
    """`loss = -sum_i A_i log pi_S,i`, `A_i = sg(log pi_T,i - log pi_S,i)`, or its sum to go."""

    to_go: bool = False

    def __call__(self, log_prob_student: PerStepSample, log_prob_teacher: PerStepSample) -> tuple[PerSample, Metrics]:
        """Loss (B,) from the log-probabilities (N, B) of the student's own steps, summed over D."""
        assert log_prob_teacher.shape == log_prob_student.shape
        advantage = (log_prob_teacher - log_prob_student).detach()
        metrics = {"log_ratio": advantage.mean()}
        if self.to_go:
            advantage = to_go(advantage)
        return -(advantage * log_prob_student).sum(0), metrics
