"""What a distillation will take, from configs alone: parameters, memory by part, work and time of an update, traps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from flowopd.adapters import Adapters
from flowopd.errors import ConfigError
from flowopd.hub import located
from flowopd.lora_file import read_lora
from flowopd.models.footprint import Footprint, footprint
from flowopd.objectives.weighting import step_weights
from flowopd.recipe import DistillConfig, Recipe
from flowopd.session import Session
from flowopd.stages.distill import STUDENT, query_rule

GIB = 2**30
FP32 = 4
"""Bytes of a number of the student: its weights, gradient, average and AdamW's two moments are in full precision."""

MOMENTS = 2


@dataclass(frozen=True)
class Gpu:
    """Memory in GiB, and dense matrix products in bf16, in floating-point operations a second."""

    memory: float
    flops: float


GPUS: Mapping[str, Gpu] = {
    "rtx3090": Gpu(24, 71e12),
    "rtx4090": Gpu(24, 165e12),
    "a10": Gpu(24, 125e12),
    "l40s": Gpu(48, 362e12),
    "a100-40gb": Gpu(40, 312e12),
    "a100-80gb": Gpu(80, 312e12),
    "h100": Gpu(80, 989e12),
    "h200": Gpu(141, 989e12),
}
"""As their makers' data sheets have them."""

UTILISATION = 0.4
"""Share of a GPU's peak that training transformers usually reaches."""


@dataclass(frozen=True)
class Plan:
    """The plan of a recipe's distillation; `forwards_per_update` counts rows, guided ones twice."""

    trainable_parameters: int
    base_parameters: int
    memory_gib: dict[str, float]
    forwards_per_update: dict[str, int]
    flops_per_update: float
    seconds_per_update: float
    warnings: list[str]


def plan(session: Session, gpu: str = "a100-80gb", flops: float | None = None) -> Plan:
    """The plan for one GPU of GPUS, or for a machine of so many floating-point operations a second.

    Raises ConfigError if the recipe has no `distill` or asks for more steps than there are, the GPU is not known, or
    the rate is not positive.
    """
    recipe = session.recipe
    config = recipe.distill
    if config is None:
        raise ConfigError("the recipe has no `distill`; add one, or plan another recipe")
    if gpu not in GPUS:
        raise ConfigError(f"there is no GPU {gpu!r}; known: {', '.join(GPUS)}, or give a rate with --flops")
    if flops is not None and not flops > 0:
        raise ConfigError(f"a rate of {flops:g} floating-point operations a second cannot be; give a positive one")
    skeleton = session.model.skeleton()
    base = sum(p.numel() for p in skeleton.parameters())
    adapters = Adapters(skeleton)
    targets = config.adapter.targets or session.model.targets
    adapters.create(STUDENT, config.adapter.rank, config.adapter.alpha, targets, seed=recipe.seed)
    trained = sum(p.numel() for p in adapters.parameters(STUDENT).values())
    size = getattr(torch, recipe.dtype).itemsize
    warnings: list[str] = []
    teachers = sum(_teacher_parameters(session, name, trained, warnings) for name in recipe.teachers)
    rows, work = _measure(session, adapters, config)
    forwards = _forwards(session, config)
    rate = flops or UTILISATION * GPUS[gpu].flops
    memory = _memory(base, teachers, trained, size, config, work)
    total = _flops(forwards, work, rows)
    if memory["total"] > GPUS[gpu].memory and flops is None:
        warnings.append(
            f"{memory['total']:.1f} GiB do not fit in the {GPUS[gpu].memory} GiB of {gpu}: lower micro_batch"
        )
    return Plan(trained, base, memory, forwards, total, total / rate, [*warnings, *_traps(session, config)])


def _teacher_parameters(session: Session, name: str, guess: int, warnings: list[str]) -> int:
    """Numbers in a teacher's adapter; where its file is not here, those of one shaped like the student's."""
    adapter = session.recipe.teachers[name].adapter
    if adapter is None or not located(adapter).exists():
        warnings.append(f"teacher {name} is not here to be measured; taken to be as large as the student's adapter")
        return guess
    lora = read_lora(session.teacher_folder(name))
    return sum(factors.a.numel() + factors.b.numel() for factors in lora.modules.values())


def _measure(session: Session, adapters: Adapters, config: DistillConfig) -> tuple[int, Footprint]:
    """Rows of one micro-batch, guidance included, and the footprint of the student's forward and backward on them."""
    rows = min(config.micro_batch, _batch(session.recipe, config)) * _rows(config.sampling.guidance)
    x = torch.empty(rows, *session.latent_shape(), device="meta")
    with adapters.using(STUDENT):
        field = session.model.make_field(adapters.transformer)
        dtype = getattr(torch, session.recipe.dtype)
        return rows, footprint(field, adapters.transformer, x, session.model.blank(rows), dtype)


def _batch(recipe: Recipe, config: DistillConfig) -> int:
    return config.samples_per_label * len(recipe.prompts)


def _rows(guidance: float) -> int:
    """Rows of a forward for one sample."""
    return 1 if guidance == 1 else 2


def _queried(config: DistillConfig) -> int:
    """Steps of a rollout that are trained, by the rule that will draw them."""
    return len(query_rule(config.query).draw(config.sampling.steps, torch.Generator()).indices)


def _forwards(session: Session, config: DistillConfig) -> dict[str, int]:
    """Rows that pass through the transformer in one update, by role; `backward` is the student's with a gradient."""
    labels, steps, queried = list(session.recipe.prompts), config.sampling.steps, _queried(config)
    student = _batch(session.recipe, config) * _rows(config.sampling.guidance)
    scales = {name: session.guidance(name, config.sampling.guidance) for name in session.recipe.teachers}
    taught = held = 0
    for route in session.router(labels)(labels):
        own = {name: scales[name] for name, weight in zip(scales, route.tolist(), strict=True) if weight}
        taught += sum(_rows(scale) for scale in own.values()) if config.distillation else 0
        held += _anchor_rows(config, scales, own if config.distillation else {})
    each = config.samples_per_label * queried
    return {
        "student": student * steps,
        "teacher": taught * each,
        "anchor": held * each,
        "backward": student * queried,
    }


def _anchor_rows(config: DistillConfig, scales: Mapping[str, float], own: Mapping[str, float]) -> int:
    """Rows that the anchor takes for a sample with these teachers of its own: none if it is one of them."""
    if config.anchor is None or config.anchor.weight == 0:
        return 0
    name, scale = config.anchor.model, config.anchor.guidance
    scale = scales.get(name, config.sampling.guidance) if scale is None else scale
    return 0 if own.get(name) == scale else _rows(scale)


def _memory(
    base: int, teachers: int, trained: int, size: int, config: DistillConfig, work: Footprint
) -> dict[str, float]:
    """GiB on the device by part; encoders are gone before training begins, and conditions wait on the CPU."""
    parts = {
        "base": base * size,
        "teachers": teachers * size,
        "student": trained * FP32,
        "gradient": trained * FP32,
        "optimizer": trained * FP32 * MOMENTS,
        "average": trained * FP32 if config.optim.ema else 0,
        "activations": work.kept,
    }
    return {name: value / GIB for name, value in {**parts, "total": sum(parts.values())}.items()}


def _flops(forwards: Mapping[str, int], work: Footprint, measured: int) -> float:
    """Of one update, from the work on `measured` rows."""
    through = forwards["student"] + forwards["teacher"] + forwards["anchor"]
    return (through * work.forward + forwards["backward"] * work.backward) / measured


LARGEST_SPREAD = 30.0
"""Of the weights of the steps, above which one step decides the loss."""


def _traps(session: Session, config: DistillConfig) -> list[str]:
    """What a recipe does that its author may not expect."""
    guidance, found = config.sampling.guidance, []
    for name in session.recipe.teachers:
        own = session.guidance(name, guidance)
        if own != guidance:
            found.append(f"teacher {name} is guided by {own:g}, the student by {guidance:g}: the student absorbs it")
    dynamics, grid = config.sampling.dynamics(), session.model.grid(config.sampling.steps)
    weights = step_weights(config.weighting, dynamics, grid)
    if weights.max() > LARGEST_SPREAD * weights.min():
        found.append(
            f"weighting {config.weighting} weighs step {int(weights.argmax())} "
            f"{float(weights.max() / weights.min()):.0f} times step {int(weights.argmin())}; `velocity` is even"
        )
    if session.recipe.dtype == "float16":
        found.append("float16 overflows in SD3.5's activations; take bfloat16")
    return found


def described(plan: Plan) -> str:
    """The plan in lines for people."""
    lines = [
        f"trained parameters    {plan.trainable_parameters:,} of {plan.base_parameters:,}",
        *(f"memory, {name:<13} {value:8.2f} GiB" for name, value in plan.memory_gib.items()),
        *(f"rows, {name:<15} {value:8,} an update" for name, value in plan.forwards_per_update.items()),
        f"work                  {plan.flops_per_update / 1e12:8.1f} TFLOP an update",
        f"time                  {plan.seconds_per_update:8.1f} s an update",
        *(f"note: {warning}" for warning in plan.warnings),
    ]
    return "\n".join(lines)
