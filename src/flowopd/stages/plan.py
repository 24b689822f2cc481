"""What a training will take, from configs alone: parameters, memory by part, work and time of an update, traps."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import prod

import psutil
import torch

from flowopd.adapters import Adapters
from flowopd.configs import DistillConfig, MixConfig
from flowopd.errors import ConfigError
from flowopd.gpus import CPU, GPUS, Gpu, gpu_named
from flowopd.hub import PACKAGE, located
from flowopd.lora_file import read_lora
from flowopd.models.footprint import Footprint, footprint
from flowopd.objectives.weighting import step_weights
from flowopd.session import Session
from flowopd.stages.bench.timing import matmul_rate
from flowopd.stages.distill import STUDENT
from flowopd.stages.report.text import duration
from flowopd.stages.workload import Workload, workload

GIB = 2**30
FP32 = 4
"""Bytes of a number of the student: its weights, gradient, average and AdamW's two moments are in full precision."""

MOMENTS = 2

LIBRARIES = int(0.5 * GIB)
"""What torch and its libraries take before any model, in a process on a CPU or as a context on a GPU."""


PUBLISHED = "a100-80gb"
"""The GPU that a plan is for where there is none here."""

UTILISATION = 0.4
"""Share of a GPU's peak that training transformers usually reaches."""


@dataclass(frozen=True)
class Plan:
    """The plan of a recipe's trained stage on a machine; `forwards_per_update` counts rows, guided ones twice."""

    stage: str
    machine: str
    trainable_parameters: int
    base_parameters: int
    memory_gib: dict[str, float]
    forwards_per_update: dict[str, int]
    flops_per_update: float
    seconds_per_update: float
    updates: int
    warnings: list[str]


def plan(session: Session, gpu: str = PUBLISHED, flops: float | None = None, processes: int = 1) -> Plan:
    """The plan of the recipe's `distill`, or else its `grpo_mix`, for GPUs of GPUS, one a process, or machines of so
    many floating-point operations a second. Memory is that of one process.

    Raises ConfigError if the recipe has neither or asks for more steps than there are, the GPU is not known, or the
    rate or the number of processes is not positive.
    """
    gpu = gpu_named(gpu, otherwise=", or give a rate with --flops")
    if flops is not None and not flops > 0:
        raise ConfigError(f"a rate of {flops:g} floating-point operations a second cannot be; give a positive one")
    if processes < 1:
        raise ConfigError(f"{processes} processes cannot be; give 1 or more")
    work = workload(session).of_one(processes)
    adapters = _skeleton(session, work)
    trained = sum(p.numel() for p in adapters.parameters(STUDENT).values())
    base = sum(p.numel() for p in adapters.transformer.parameters()) - trained
    held = base + sum(b.numel() for b in adapters.transformer.buffers())
    warnings: list[str] = []
    teachers = sum(_teacher_parameters(session, name, trained, held, warnings) for name in work.teachers)
    one = _measure(session, work, adapters)
    memory = _memory(session, work, held, teachers, trained, one)
    machine = _this_cpu() if gpu == CPU else GPUS[gpu]
    rate = flops or UTILISATION * machine.flops
    total = processes * (work.forwards * one.forward + work.rows["backward"] * one.backward) / work.together
    if memory["total"] > machine.memory and flops is None:
        warnings.append(
            f"{memory['total']:.1f} GiB do not fit in the {machine.memory:.4g} GiB of {gpu}: lower micro_batch, set "
            f"gradient_checkpointing, or let `flowopd init --gpu {gpu}` write a recipe that fits"
        )
    warnings += _traps(session, work)
    rows = {role: round(count * processes) for role, count in work.rows.items()}
    peak = "the measured rate of this machine's processors" if gpu == CPU else f"the peak of {gpu}"
    named = f"{flops:g} operations a second" if flops else f"{UTILISATION:.0%} of {peak}"
    return Plan(
        work.stage,
        f"{processes} x {named}",
        trained,
        base,
        memory,
        rows,
        total,
        total / rate / processes,
        work.optim.updates,
        warnings,
    )


def hardware_here() -> str:
    """This machine's hardware by those names: the GPU nearest in memory, of several the one so named; or the CPU."""
    if not torch.cuda.is_available():
        return CPU
    name = re.sub(r"\W", "", torch.cuda.get_device_name()).lower()
    memory = torch.cuda.get_device_properties(0).total_memory / GIB
    return min(GPUS, key=lambda gpu: (abs(GPUS[gpu].memory - memory), gpu.split("-")[0] not in name))


def usual_hardware(base: str) -> str:
    """What a base is trained on where nobody says otherwise: the GPU here, or else a CPU for one that ships."""
    here = hardware_here()
    return here if here != CPU or base.startswith(PACKAGE) else PUBLISHED


def _this_cpu() -> Gpu:
    """This machine's memory and its measured rate of matrix products."""
    return Gpu(psutil.virtual_memory().total / GIB, matmul_rate(torch.device(CPU), torch.float32))


def _teacher_parameters(session: Session, name: str, trained: int, base: int, warnings: list[str]) -> int:
    """Numbers of a teacher that are in memory; an adapter that is not here is taken to be like the student's."""
    teacher = session.recipe.teachers[name]
    if teacher.transformer is not None:
        return 0 if teacher.offload else base
    if teacher.adapter is None or not located(teacher.adapter).exists():
        warnings.append(f"teacher {name} is not here to be measured; taken to be as large as the student's adapter")
        return trained
    lora = read_lora(session.teacher_folder(name))
    return sum(factors.a.numel() + factors.b.numel() for factors in lora.modules.values())


def _skeleton(session: Session, work: Workload) -> Adapters:
    """The base without weights, with the adapter that is trained."""
    adapters = Adapters(session.model.skeleton())
    targets = work.adapter.targets or session.model.targets
    adapters.create(STUDENT, work.adapter.rank, work.adapter.alpha, targets, seed=session.recipe.seed)
    return adapters


def _measure(session: Session, work: Workload, adapters: Adapters) -> Footprint:
    """The footprint of the trained model's forward and backward on the rows of a micro-batch.

    Where activations are recomputed, those of one block are there at a time, besides what is kept between blocks.
    """
    found = _passed(session, adapters, work.together)
    if not session.recipe.gradient_checkpointing:
        return found
    whole = _skeleton(session, work)
    whole.transformer.disable_gradient_checkpointing()
    block = _passed(session, whole, work.together).kept // len(whole.transformer.transformer_blocks)
    return replace(found, kept=found.kept + block)


def _passed(session: Session, adapters: Adapters, rows: int) -> Footprint:
    """The footprint of so many rows; the adapters' transformer is of no further use."""
    x = torch.empty(rows, *session.latent_shape(), device="meta")
    with adapters.using(STUDENT):
        field = session.model.make_field(adapters.transformer)
        dtype = getattr(torch, session.recipe.dtype)
        return footprint(field, adapters.transformer, x, session.model.blank(rows), dtype)


def _memory(
    session: Session, work: Workload, base: int, teachers: int, trained: int, one: Footprint
) -> dict[str, float]:
    """GiB on the device by part. The encoders are gone before training begins, so the total has the larger of both."""
    size = getattr(torch, session.recipe.dtype).itemsize
    latent = prod(session.latent_shape()) * FP32
    training = {
        "base": base * size,
        "teachers": teachers * size,
        "student": trained * FP32,
        "gradient": trained * FP32,
        "optimizer": trained * FP32 * MOMENTS,
        "average": trained * FP32 if work.optim.ema else 0,
        "activations": one.kept,
        "rollout": work.kept * latent,
        "cache": work.samples * session.condition_bytes(),
    }
    encoders = session.model.encoder_bytes()
    total = LIBRARIES + max(sum(training.values()), encoders)
    parts = {**training, "encoders": encoders, "libraries": LIBRARIES, "total": total}
    return {name: value / GIB for name, value in parts.items()}


RATIO_NOISE = 1e-6
"""How far from 1 rounding alone may put the ratio of two equal policies."""

LARGEST_SPREAD = 30.0
"""Of the weights of the steps, above which one step decides the loss."""


def _traps(session: Session, work: Workload) -> list[str]:
    """What a recipe does that its author may not expect."""
    found = ["float16 overflows in SD3.5's activations; take bfloat16"] if session.recipe.dtype == "float16" else []
    config = session.recipe.distill
    return found + (_distillation_traps(session, config) if config else _policy_traps(session.recipe.grpo_mix))


def _distillation_traps(session: Session, config: DistillConfig) -> list[str]:
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
    if session.recipe.judges and session.recipe.evaluate is None:
        found.append("judges are named, but distillation needs no reward and nothing is evaluated")
    return found


def _policy_traps(config: MixConfig | None) -> list[str]:
    """A ratio is exp of a mean over the latent's elements, so in fp32 it is 1 within about 1e-6."""
    if config is None or config.loss != "transitions" or config.clip > RATIO_NOISE:
        return []
    return [f"clip {config.clip:g} is below the noise of a ratio in fp32, {RATIO_NOISE:g}; raise it"]


def _part(name: str) -> str:
    """What a part of the memory is called; prompts are encoded before, and not while, a model is trained."""
    return "most at once" if name == "total" else name


def _memory_said(gib: float) -> str:
    return f"{gib:8.2f} GiB" if gib >= 1 else f"{1024 * gib:8.1f} MiB"


def described(plan: Plan) -> str:
    """The plan in lines for people."""
    lines = [
        f"stage                 {plan.stage}",
        f"trained parameters    {plan.trainable_parameters:,} of {plan.base_parameters:,}",
        *(f"memory, {_part(name):<13} {_memory_said(value)}" for name, value in plan.memory_gib.items()),
        *(f"rows, {name:<15} {value:8,} an update" for name, value in plan.forwards_per_update.items()),
        f"work                  {plan.flops_per_update / 1e12:8.1f} TFLOP an update",
        f"time                  {plan.seconds_per_update:8.3g} s an update, by {plan.machine}",
        f"in all                {plan.updates:8,} updates, {duration(plan.updates * plan.seconds_per_update)}",
        *(f"note: {warning}" for warning in plan.warnings),
    ]
    return "\n".join(lines)
