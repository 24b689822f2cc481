"""CONTROL, not for training: a strictly detached dense reward in a PPO surrogate (2605.08063, v1 to v4).

The reward `r = -w mean_D (sg(v_S) - v_T)^2` depends on the state alone, hence
`E[r grad log pi(x'|x)] = r E[grad log pi(x'|x)] = 0`: there is no expected signal. It is kept to show that.
"""

from dataclasses import dataclass

import torch

from flowopd.errors import ConfigError
from flowopd.objectives.gap import squared_gap
from flowopd.shapes import Batch, Metrics, PerSample, Scalar


@dataclass(frozen=True, kw_only=True)
class DetachedSurrogate:
    """`loss = -min(rho r, clip(rho, 1 - clip, 1 + clip) r)`. Raises ConfigError unless `clip` > 0."""

    clip: float = 1e-4

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise ConfigError(f"the clip range must be positive, got {self.clip}; 1e-4 suits a mean over D")

    def __call__(
        self,
        v_student: Batch,
        v_teacher: Batch,
        weight: Scalar | PerSample | float,
        log_prob: PerSample,
        old_log_prob: PerSample,
    ) -> tuple[PerSample, Metrics]:
        """Loss (B,); the gradient is through `log_prob` (B,), which may be a sum or a mean over D."""
        reward = -weight * squared_gap(v_student.detach(), v_teacher)
        assert reward.shape == log_prob.shape == old_log_prob.shape
        rho = (log_prob - old_log_prob.detach()).exp()
        clipped = rho.clamp(1 - self.clip, 1 + self.clip)
        return -torch.minimum(rho * reward, clipped * reward), {"reward": reward.mean()}
