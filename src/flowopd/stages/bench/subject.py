"""What an update is measured on: a model with a student and random teachers, a batch, and the update itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowopd.adapters import Adapters
from flowopd.crews import Task
from flowopd.dynamics import FlowSde
from flowopd.errors import ConfigError
from flowopd.lora_file import Factors, LoraFile
from flowopd.models import Model, open_model
from flowopd.models.random_sd3 import RandomSd3
from flowopd.noise import seed_of
from flowopd.objectives import Anchor
from flowopd.objectives.weighting import step_weights
from flowopd.queries import places
from flowopd.sampling import Batch
from flowopd.schedules import Schedule, fused, replay
from flowopd.stages.bench.counting import Counted, Ledger, Plain, clock
from flowopd.stages.bench.naive import naive
from flowopd.stages.bench.settings import BenchConfig
from flowopd.step import ESTIMATORS, Distillation
from flowopd.train import TrainConfig, Trainer
from flowopd.types import Condition
from flowopd.velocity import VelocityField, guided

SCHEDULES: Mapping[str, Schedule] = {"fused": fused, "replay": replay, "naive": naive}

MODELS: Mapping[str, Callable[..., Model]] = {
    "mini": lambda **options: open_model("package:mini/base", **options),
    "small": lambda **options: RandomSd3(**options),
}

STUDENT = "student"
EFFECT = 0.02
"""Standard deviation of the random teachers' B."""


@dataclass(frozen=True, eq=False)
class Subject:
    """Everything that is in memory while updates are measured; `null` is the condition of no prompt, one row."""

    model: Model
    adapters: Adapters
    teachers: tuple[str, ...]
    trainer: Trainer
    batch: Batch
    null: Condition
    shape: tuple[int, int, int]


def bare_model(config: BenchConfig) -> Model:
    """The model by name or preset. Raises CheckpointError if there is none of that name."""
    options = {"device": config.device, "dtype": getattr(torch, config.dtype)}
    return MODELS[config.preset](**options) if config.model is None else open_model(config.model, **options)


def untaught(config: BenchConfig, model: Model) -> Subject:
    """A student on the model, with random texts as conditions; no text encoder is loaded."""
    adapters = Adapters(model.transformer)
    adapters.create(STUDENT, config.rank, 2.0 * config.rank, model.targets, seed=0)
    cond = _random(model.blank(config.batch + 1)).to(model.device, model.dtype)
    trainer = Trainer(adapters.parameters(STUDENT), TrainConfig())
    shape = _shape(model, config)
    batch = Batch(cond.rows(slice(config.batch)), tuple(range(config.batch)))
    return Subject(model, adapters, (), trainer, batch, cond.rows([config.batch]), shape)


def with_teachers(subject: Subject, count: int) -> Subject:
    """With so many random adapters in all, shaped as the student's."""
    like = subject.adapters.lora(STUDENT)
    names = tuple(f"teacher-{k}" for k in range(count))
    for k, name in list(enumerate(names))[len(subject.teachers) :]:
        draw = torch.Generator().manual_seed(k)
        modules = {
            key: Factors(f.a, torch.randn(f.b.shape, generator=draw).mul_(EFFECT), f.scale)
            for key, f in like.modules.items()
        }
        subject.adapters.load(name, LoraFile(like.config, modules))
    return replace(subject, teachers=names)


def update_of(subject: Subject, config: BenchConfig, ledger: Ledger) -> Callable[[int], Tensor]:
    """Update i of a schedule: gradient, step of the optimiser, average; returns the gaps, on the CPU."""
    d, schedule = _distillation(subject, config, ledger), SCHEDULES[config.schedule]
    owners = torch.arange(config.batch) % len(subject.teachers)
    routes = torch.eye(len(subject.teachers))[owners]
    task = Task(subject.batch, routes, subject.shape, size=config.batch)

    def update(i: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed_of("bench", i))
        plan = [config.rule.at(place, config.steps) for place in places(config.batch, draw)]
        with subject.adapters.using(STUDENT):
            gaps = schedule(d, task, plan)
        subject.trainer.step(i)
        return gaps.cpu()

    return update


def new_ledger(subject: Subject) -> Ledger:
    """A ledger that sees the student's backwards."""
    ledger = Ledger(clock(subject.model.device))
    ledger.watch(subject.adapters.parameters(STUDENT).values())
    return ledger


def _distillation(subject: Subject, config: BenchConfig, ledger: Ledger) -> Distillation:
    dynamics, grid = [FlowSde()] * config.steps, subject.model.grid(config.steps)

    def field(name: str | None, role: str, scale: float) -> VelocityField:
        plain = Plain(subject.adapters.field(name, subject.model.make_field), role, ledger)
        return Counted(guided(plain, scale, subject.null), role, ledger)

    return Distillation(
        student=field(STUDENT, "student", config.own_guidance),
        teachers=[field(name, "teacher", config.guidance) for name in subject.teachers],
        anchor_field=field(None, "anchor", config.guidance) if config.anchor else None,
        anchor=Anchor(),
        dynamics=dynamics,
        grid=grid,
        weights=step_weights("velocity", dynamics, grid),
        estimate=ESTIMATORS["closed_form"],
    )


def _random(blank: Condition) -> Condition:
    draw = torch.Generator().manual_seed(0)
    return Condition({name: torch.randn(x.shape, generator=draw) for name, x in blank.tensors.items()})


def _shape(model: Model, config: BenchConfig) -> tuple[int, int, int]:
    channels, *own = model.latent_shape()
    if config.patches is None:
        return channels, own[0], own[1]
    settings = model.transformer.config
    if config.patches > settings.pos_embed_max_size:
        raise ConfigError(
            f"{config.patches} patches along a side are more than the model has places for; "
            f"give at most {settings.pos_embed_max_size}"
        )
    side = config.patches * settings.patch_size
    return channels, side, side
