"""Losses: each is a frozen config whose call returns a loss a sample and its metrics."""

from flowopd.objectives.anchor import Anchor
from flowopd.objectives.detached_surrogate import DetachedSurrogate
from flowopd.objectives.flow_matching import FlowMatching
from flowopd.objectives.gap import squared_gap
from flowopd.objectives.grpo import Grpo, group_advantages, transition_ratio
from flowopd.objectives.matching import AdvantageMatching
from flowopd.objectives.policy_gradient import SampledLogRatio, leave_one_out, to_go
from flowopd.objectives.reverse_kl import ReverseKL
from flowopd.objectives.weighting import Weighting, step_weights

__all__ = [
    "AdvantageMatching",
    "Anchor",
    "DetachedSurrogate",
    "FlowMatching",
    "Grpo",
    "ReverseKL",
    "SampledLogRatio",
    "Weighting",
    "group_advantages",
    "leave_one_out",
    "squared_gap",
    "step_weights",
    "to_go",
    "transition_ratio",
]
