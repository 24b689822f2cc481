"""On-policy distillation for flow-matching text-to-image models: several experts in, one model out.

    from flowopd import load_recipe, run
    results = run(load_recipe("recipes/mini-demo.yaml"), "runs/demo")

or, without a recipe, `Distiller(base, teachers, prompts).train()`; `FieldDistiller` teaches fields of one's own.
Names are imported when they are first used, since torch and the model libraries take seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowopd.adapters import Adapters
    from flowopd.configs import DistillConfig
    from flowopd.distiller import Distiller
    from flowopd.dynamics import Cps, FlowSde, Ode
    from flowopd.errors import CheckpointError, ConfigError, DataError, FlowOpdError, Interrupted, NumericsError
    from flowopd.fields import FieldDistiller
    from flowopd.gaussian import Gaussian
    from flowopd.models import open_model
    from flowopd.objectives import Anchor, FlowMatching, Grpo, ReverseKL, SampledLogRatio
    from flowopd.pipeline import open_run, run
    from flowopd.prompts import Prompt, read_prompts
    from flowopd.recipe import Recipe, load_recipe, make_recipe
    from flowopd.results import Results
    from flowopd.rewards import Reward, Scores, make_reward
    from flowopd.routing import LabelRouter
    from flowopd.session import Session
    from flowopd.stages.coldstart import cold_start
    from flowopd.stages.distill import distill
    from flowopd.stages.doctor import doctor
    from flowopd.stages.evaluate import evaluate
    from flowopd.stages.export import export
    from flowopd.stages.report.page import write_report
    from flowopd.stages.teacher import train_teacher
    from flowopd.types import Condition, Step
    from flowopd.velocity import VelocityField, guided

_HOMES = {
    "adapters": ("Adapters",),
    "configs": ("DistillConfig",),
    "distiller": ("Distiller",),
    "dynamics": ("Cps", "FlowSde", "Ode"),
    "errors": ("CheckpointError", "ConfigError", "DataError", "FlowOpdError", "Interrupted", "NumericsError"),
    "fields": ("FieldDistiller",),
    "gaussian": ("Gaussian",),
    "models": ("open_model",),
    "objectives": ("Anchor", "FlowMatching", "Grpo", "ReverseKL", "SampledLogRatio"),
    "pipeline": ("open_run", "run"),
    "prompts": ("Prompt", "read_prompts"),
    "recipe": ("Recipe", "load_recipe", "make_recipe"),
    "results": ("Results",),
    "rewards": ("Reward", "Scores", "make_reward"),
    "routing": ("LabelRouter",),
    "session": ("Session",),
    "stages.coldstart": ("cold_start",),
    "stages.distill": ("distill",),
    "stages.doctor": ("doctor",),
    "stages.evaluate": ("evaluate",),
    "stages.export": ("export",),
    "stages.report.page": ("write_report",),
    "stages.teacher": ("train_teacher",),
    "types": ("Condition", "Step"),
    "velocity": ("VelocityField", "guided"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Adapters",
    "Anchor",
    "CheckpointError",
    "Condition",
    "ConfigError",
    "Cps",
    "DataError",
    "DistillConfig",
    "Distiller",
    "FieldDistiller",
    "FlowMatching",
    "FlowOpdError",
    "FlowSde",
    "Gaussian",
    "Grpo",
    "Interrupted",
    "LabelRouter",
    "NumericsError",
    "Ode",
    "Prompt",
    "Recipe",
    "Results",
    "ReverseKL",
    "Reward",
    "SampledLogRatio",
    "Scores",
    "Session",
    "Step",
    "VelocityField",
    "cold_start",
    "distill",
    "doctor",
    "evaluate",
    "export",
    "guided",
    "load_recipe",
    "make_recipe",
    "make_reward",
    "open_model",
    "open_run",
    "read_prompts",
    "run",
    "train_teacher",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'flowopd' has no attribute {name!r}")
    return getattr(import_module(f"flowopd.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
