"""Where the student starts: the experts merged, or fine-tuned on images that the experts drew."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowopd.checkpoint import Checkpoints
from flowopd.conditioning import Conditioning
from flowopd.configs import DistillConfig, MergeConfig, SftConfig
from flowopd.durable import write_folder
from flowopd.errors import ConfigError, NumericsError
from flowopd.identity import lasting
from flowopd.lora_file import lora_files, read_lora
from flowopd.merge import merge
from flowopd.noise import seed_of
from flowopd.nonfinite import Plain, View
from flowopd.objectives import FlowMatching
from flowopd.processes import only_main, own_rows, whole
from flowopd.prompts import Prompt
from flowopd.provenance import record
from flowopd.sampling import Batch, draw_latents
from flowopd.schedule import logit_normal
from flowopd.session import Session
from flowopd.stages.guard import Guard
from flowopd.stages.monitor import Trained
from flowopd.train import Trainer

STARTED = "coldstart"


def cold_start(session: Session) -> Path:
    """Make the cold start of the recipe; returns its adapter's folder, OUT/coldstart.

    Raises ConfigError if the recipe has none.
    """
    config = session.recipe.coldstart
    if config is None:
        raise ConfigError("the recipe has no `coldstart`; add one of kind merge or sft")
    return merge_teachers(session, config) if isinstance(config, MergeConfig) else fine_tune(session, config)


def merge_teachers(session: Session, config: MergeConfig) -> Path:
    """The mean of the experts' weight changes, with `merge.json`: its error and the experts' interference.

    Raises CheckpointError for an expert that does not fit the base.
    """
    record(session, STARTED, anew=True)
    session.load_teachers()
    loras = {name: read_lora(session.teacher_folder(name)) for name in session.recipe.teachers}
    merged = merge(loras, config.weights, config.rank)
    folder = session.out / STARTED
    facts = {"relative_error": merged.relative_error, "interference": merged.interference.as_dict()}
    files = {**lora_files(merged.lora, session.recipe.base), "merge.json": json.dumps(facts, indent=1).encode()}
    only_main(lambda: write_folder(folder, files))
    return folder


def fine_tune(session: Session, config: SftConfig) -> Path:
    """Flow matching on latents that each expert sampled for the prompts of the labels that are routed to it."""
    record(session, STARTED)
    session.load_teachers()
    prompts = {label: session.prompts(label, "train") for label in session.routed(session.recipe.trained_labels())}
    every = [prompt for group in prompts.values() for prompt in group]
    conditioning = session.encode(every)
    samples = _expert_samples(session, config, prompts, conditioning)
    shape = (session.recipe.distill or DistillConfig()).adapter
    session.create(STARTED, shape)
    single = config.model_copy(update={"micro_batch": 1})
    trained = Trained(STARTED, config.sampling, config.micro_batch, every, conditioning)
    watch = Guard(session, trained, repeat=lambda view: _Update(session, single, samples, view))
    trainer = Trainer(session.adapters.parameters(STARTED), config.optim, watch)
    identity = {
        **session.recipe.identity("coldstart", "routes", "route_by"),
        "adapter": lasting(shape),
        "guidance": {name: teacher.guidance for name, teacher in session.recipe.teachers.items()},
        "sha256": session.hashes(list(session.recipe.teachers)),
        "sha256_prompts": session.training_hashes(),
    }
    with session.adapters.using(STARTED):
        checkpoints = Checkpoints(session.out / "checkpoints" / "sft", identity)
        update = _Update(session, config, samples, Plain(conditioning))
        trainer.run(update, session.tracker("sft", config.optim.updates, config.batch), checkpoints)
    folder = session.out / STARTED
    files = lora_files(session.adapters.lora(STARTED), session.recipe.base)
    only_main(lambda: write_folder(folder, files))
    session.adapters.remove(STARTED)
    return folder


class _Update:
    """One update of flow matching, a function of the seed and the step alone; each process takes its own rows."""

    def __init__(self, session: Session, config: SftConfig, samples: tuple[Tensor, Sequence[str]], view: View) -> None:
        self.seed, self.config, self.conditioning = session.recipe.seed, config, view.conditioning
        self.latents, self.texts = samples
        field = session.adapters.field(STARTED, session.model.make_field)
        self.field = view.field("the student", field)

    def __call__(self, step: int) -> dict[str, float]:
        batch, latents = self.config.batch, self.latents
        generator = torch.Generator().manual_seed(seed_of(self.seed, "sft", step))
        drawn = torch.randint(len(latents), (batch,), generator=generator)
        t = logit_normal(batch, generator)
        eps = torch.randn((batch, *latents.shape[1:]), generator=generator)
        rows, losses = own_rows(batch), [torch.empty(0)]
        cond = self.conditioning([self.texts[i] for i in drawn[rows].tolist()])
        for own in torch.arange(len(drawn[rows])).split(self.config.micro_batch):
            if len(own):
                part = own + rows.start
                x0, here = latents[drawn[part]], cond.rows(own.to(latents.device))
                loss, _ = FlowMatching()(self.field, x0, here, t[part].to(x0.device), eps[part].to(x0.device))
                (loss.sum() / batch).backward()
                losses.append(loss.detach().cpu())
        return {"loss": float(whole(torch.cat(losses), rows, batch).mean())}


def _expert_samples(
    session: Session, config: SftConfig, prompts: Mapping[str, Sequence[Prompt]], conditioning: Conditioning
) -> tuple[Tensor, list[str]]:
    """Latents (M, C, H, W) and their prompts; each label's are drawn by the teacher of its route.

    Raises NumericsError for latents that are not finite, naming the teacher.
    """
    sampling = config.sampling
    each = -(-config.images // len(prompts))
    grid, shape = session.model.grid(sampling.steps), session.latent_shape()
    parts, drawn_for = [], []
    for label, group in prompts.items():
        teacher = strongest(session, label)
        rng = np.random.default_rng(seed_of(session.recipe.seed, "sft", label))
        texts = [group[i].text for i in rng.integers(0, len(group), each)]
        seeds = tuple(seed_of(session.recipe.seed, "sft", label, i) for i in range(each))
        field = session.field(teacher, session.guidance(teacher, sampling.guidance), conditioning)
        rows = own_rows(each, config.micro_batch)
        batch = Batch(conditioning(texts[rows]), seeds[rows])
        latents = whole(draw_latents(field, sampling.dynamics(), grid, batch, shape, config.micro_batch), rows, each)
        _refuse_broken(latents, texts, teacher)
        parts.append(latents.to(session.model.device))
        drawn_for += texts
    return torch.cat(parts), drawn_for


def _refuse_broken(latents: Tensor, texts: Sequence[str], teacher: str) -> None:
    broken = (~latents.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if broken:
        raise NumericsError(
            f"teacher {teacher} drew image {broken[0]} of {len(texts)}, prompt {texts[broken[0]]!r}, with values that "
            "are not finite; use a wider dtype, or leave this teacher out"
        )


def strongest(session: Session, label: str) -> str:
    """The teacher with the largest weight in a label's route."""
    teachers = list(session.recipe.teachers)
    return teachers[int(session.router([label])([label])[0].argmax())]
