"""Flow-GRPO (2505.05470): group-relative advantages and PPO's clip on the ratio of transitions.

Log-probabilities enter as sums over D, as `Gaussian.log_prob` gives them. The ratio is of their MEAN over D,
as in the field's code, hence clip ranges of 1e-4 and smaller.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowopd.errors import ConfigError
from flowopd.gaussian import Gaussian
from flowopd.objectives.gap import squared_gap
from flowopd.shapes import Batch, Metrics, PerSample


def group_advantages(rewards: PerSample, group: int, eps: float = 1e-4) -> PerSample:
    """`(reward - mean) / (std + eps)` within consecutive groups of `group` samples of one prompt.

    A group of equal rewards gives 0. Raises ConfigError unless `group` >= 2 divides the number of rewards.
    """
    if group < 2 or len(rewards) % group:
        raise ConfigError(f"groups of {group} do not split {len(rewards)} rewards; use a divisor of at least 2")
    grouped = rewards.reshape(-1, group)
    advantages = (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, correction=0, keepdim=True) + eps)
    varied = grouped.amax(1, keepdim=True) > grouped.amin(1, keepdim=True)
    return torch.where(varied, advantages, 0.0).flatten()


def transition_ratio(new: Gaussian, old_log_prob: PerSample, x_next: Batch) -> PerSample:
    """`rho`, the ratio (B,) of the densities of `x_next` under `new` and as it was drawn, per latent element."""
    return ((new.log_prob(x_next) - old_log_prob.detach()) / x_next[0].numel()).exp()


@dataclass(frozen=True, kw_only=True)
class Grpo:
    """`loss = -min(rho A, clip(rho, 1 - clip, 1 + clip) A) + kl * KL(new || reference) / D`.

    Raises ConfigError unless `clip` > 0 and `kl` >= 0.
    """

    clip: float = 1e-4
    kl: float = 0.0

    def __post_init__(self) -> None:
        if not (self.clip > 0 and self.kl >= 0):
            raise ConfigError(f"Grpo needs clip > 0 and kl >= 0, got clip = {self.clip} and kl = {self.kl}")

    def __call__(
        self,
        new: Gaussian,
        old_log_prob: PerSample,
        x_next: Batch,
        advantages: PerSample,
        reference: Batch | None = None,
    ) -> tuple[PerSample, Metrics]:
        """Loss (B,) of transitions `new` that should make `x_next` likelier where `advantages` are positive.

        `old_log_prob` (B,) is the sum over D under the policy that drew `x_next`; `reference` (B, *shape)
        are the means of the reference's transitions. Raises ConfigError if `kl` > 0 without a reference.
        """
        if reference is None and self.kl > 0:
            raise ConfigError(f"kl = {self.kl} needs the means of a reference; pass them, or set kl to 0")
        rho = transition_ratio(new, old_log_prob, x_next)
        assert rho.shape == advantages.shape
        clipped = rho.clamp(1 - self.clip, 1 + self.clip)
        surrogate = -torch.minimum(rho * advantages, clipped * advantages)
        kl = torch.zeros_like(rho) if reference is None else _mean_kl(new, reference)
        metrics = {
            "ratio": rho.detach().mean(),
            "clip_fraction": ((rho - 1).abs() > self.clip).float().mean(),
            "kl": kl.detach().mean(),
        }
        return surrogate + self.kl * kl, metrics


def _mean_kl(new: Gaussian, reference: Tensor) -> Tensor:
    return squared_gap(new.mean, reference) / (2 * new.std.square())
