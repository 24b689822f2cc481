"""On-policy distillation: the student walks, each prompt's expert says where it would have gone (2605.08063)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from flowopd.checkpoint import Checkpoints
from flowopd.configs import DistillConfig
from flowopd.durable import write_folder
from flowopd.errors import ConfigError
from flowopd.lora_file import LoraFile, diffusers_lora_files, lora_files, read_lora, sha256_of
from flowopd.nonfinite import Plain, View
from flowopd.processes import only_main
from flowopd.provenance import record
from flowopd.session import BASE, Session
from flowopd.stages.guard import Guard
from flowopd.stages.monitor import Trained
from flowopd.stages.router import routes_of
from flowopd.stages.updates import DistillUpdate, Place, distillation, update_kind
from flowopd.step import Distillation
from flowopd.tracking import warn
from flowopd.train import Trainer
from flowopd.velocity import VelocityField
from flowopd.wordings import with_wordings

STUDENT = "student"


def distill(session: Session) -> Path:
    """Train the student of a recipe; returns its adapter's folder, OUT/student.

    Raises ConfigError if the recipe has no `distill`, or nothing is left to learn from; DataError for a label
    without a route.
    """
    config = _config(session)
    prompts = session.training_prompts()
    every = [prompt for group in prompts.values() for prompt in group]
    session.route([prompt.label for prompt in every])
    teachers = session.load_teachers() if config.distillation else []
    if config.anchor and config.anchor.model != BASE:
        session.load_teachers([config.anchor.model])
    if config.reworded and not any(prompt.wordings for prompt in every):
        warn("distill.reworded is set, and no training prompt has other `wordings`; give some, or leave it out")
    for name in _idle(session, config, list(prompts)):
        warn(f"teacher {name} has no route and teaches nothing; give it a label in `routes`, or leave it out")
    conditioning = session.encode(with_wordings(every))
    route, facts = routes_of(session, every, conditioning)
    session.create(STUDENT, config.adapter, _cold_start(session))
    record(session, "distill")

    def made(view: View, micro_batch: int) -> DistillUpdate:
        sized, place = config.model_copy(update={"micro_batch": micro_batch}), Place.of(session)
        lesson = lesson_of(session, config, teachers, view)
        return update_kind(sized)(sized, place, lesson, route, prompts, view.conditioning)

    trained = Trained(STUDENT, config.sampling, config.micro_batch, every, conditioning)
    watch = Guard(session, trained, repeat=lambda view: made(view, 1))
    trainer = Trainer(session.adapters.parameters(STUDENT), config.optim, watch)
    update = made(Plain(conditioning), config.micro_batch)
    checkpoints = Checkpoints(session.out / "checkpoints" / "distill", _identity(session))
    tracker = session.tracker("distill", config.optim.updates, config.samples_per_label * len(prompts))
    with session.adapters.using(STUDENT):
        trainer.run(lambda step: update(step) | ({} if step else facts), tracker, checkpoints)
    student = session.adapters.lora(STUDENT)
    folder = session.out / STUDENT
    files = {**diffusers_lora_files(student), **lora_files(student, session.recipe.base)}
    only_main(lambda: write_folder(folder, files))
    session.adapters.remove(STUDENT)
    return folder


def _config(session: Session) -> DistillConfig:
    config = session.recipe.distill
    if config is None:
        raise ConfigError("the recipe has no `distill`; add one, or run another stage")
    if not config.distillation and not (config.anchor and config.anchor.weight > 0):
        raise ConfigError("distill.distillation is off and there is no anchor; nothing is left to learn from")
    return config


def _idle(session: Session, config: DistillConfig, labels: Sequence[str]) -> list[str]:
    """The teachers that no label is routed to, and that are not the anchor either."""
    if session.own.router is not None or not config.distillation:
        return []
    taught = session.router(labels)(session.routed(labels)).sum(0).tolist()
    held = config.anchor.model if config.anchor else None
    return [name for name, weight in zip(session.recipe.teachers, taught, strict=True) if not weight and name != held]


def lesson_of(session: Session, config: DistillConfig, teachers: Sequence[str], view: View) -> Distillation:
    """The student and the frozen models of a session, all loaded, taught as these settings say."""
    sampling, anchor = config.sampling, config.anchor

    @cache
    def frozen(name: str, own: float | None = None) -> VelocityField:
        """One field for one name and guidance, so that a teacher that is the anchor too is known as one."""
        if own is None:
            return frozen(name, session.guidance(name, sampling.guidance))
        role = "teacher" if name in teachers else "anchor"
        return view.field(f"{role} {name}", session.field(name, own, view.conditioning))

    return distillation(
        config,
        session.model.grid(sampling.steps),
        student=view.field("the student", session.field(STUDENT, sampling.guidance, view.conditioning)),
        teachers=[frozen(name) for name in teachers],
        anchor=frozen(anchor.model, anchor.guidance) if anchor and anchor.weight > 0 else None,
        objective=session.own.objective,
    )


def _cold_start(session: Session) -> LoraFile | None:
    """The adapter that the cold start left, if the recipe has one."""
    return read_lora(session.out / "coldstart") if session.recipe.coldstart else None


def _identity(session: Session) -> dict[str, object]:
    """What the trained weights depend on: the recipe's part, and the content of every file that is read."""
    recipe, config = session.recipe, _config(session)
    named = list(recipe.teachers) if config.distillation else []
    anchor = [config.anchor.model] if config.anchor and config.anchor.model != BASE else []
    return {
        **recipe.identity("routes", "route_by", "coldstart", "distill"),
        **session.own.identity(),
        "sha256": session.hashes(list(dict.fromkeys([*named, *anchor]))),
        "guidance": {name: recipe.teachers[name].guidance for name in named},
        "sha256_prompts": session.training_hashes(),
        "sha256_coldstart": sha256_of(session.out / "coldstart") if recipe.coldstart else None,
    }
