"""What judges pictures: one file a reward, found by name in the registry."""

from flowopd.rewards.base import Reward, Scores
from flowopd.rewards.registry import REWARDS, make_reward

__all__ = ["REWARDS", "Reward", "Scores", "make_reward"]
