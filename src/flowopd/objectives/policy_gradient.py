"""The honest policy gradient of the reverse KL: unbiased like the closed form, with more variance.

    grad E_S[log pi_S - log pi_T] = E_S[sum_i grad log pi_S,i  sum_{j >= i} (log pi_S,j - log pi_T,j)]

The sum to go is the gradient of the KL of whole trajectories; its first term alone, `j = i`, is the closed
form's gradient, which holds the visited states fixed.
"""

from dataclasses import dataclass

from flowopd.shapes import Metrics, PerSample, PerStepSample


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
            advantage = advantage.flip(0).cumsum(0).flip(0)
        return -(advantage * log_prob_student).sum(0), metrics
