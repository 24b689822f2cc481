"""Where the student starts: the experts merged, or fine-tuned on images that the experts drew."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowopd.checkpoint import Checkpoints
from flowopd.configs import DistillConfig, MergeConfig, SftConfig
from flowopd.durable import write_folder
from flowopd.errors import ConfigError
from flowopd.identity import lasting
from flowopd.lora_file import lora_files, read_lora
from flowopd.merge import merge
from flowopd.noise import seed_of
from flowopd.objectives import FlowMatching
from flowopd.processes import only_main, own_rows, whole
from flowopd.sampling import Batch, draw_latents
from flowopd.schedule import logit_normal
from flowopd.session import Session
from flowopd.train import Trainer
from flowopd.types import Condition

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
    session.load_teachers()
    loras = {name: read_lora(session.teacher_folder(name)) for name in session.recipe.teachers}
    merged = merge(loras, config.weights, config.rank)
    folder = session.out / STARTED
    facts = {"relative_error": merged.relative_error, "interference": merged.interference.as_dict()}
    files = {**lora_files(merged.lora, session.recipe.base), "merge.json": json.dumps(facts, indent=1).encode()}
    only_main(lambda: write_folder(folder, files))
    return folder


def fine_tune(session: Session, config: SftConfig) -> Path:
    """Flow matching on latents that each expert sampled for the prompts that are routed to it."""
    latents, cond = _expert_samples(session, config)
    shape = (session.recipe.distill or DistillConfig()).adapter
    session.create(STARTED, shape)
    trainer = Trainer(session.adapters.parameters(STARTED), config.optim)
    session.adapters.check_trainable(trainer.parameters, STARTED)
    identity = {
        **session.recipe.identity("coldstart", "routes"),
        "adapter": lasting(shape),
        "guidance": {name: teacher.guidance for name, teacher in session.recipe.teachers.items()},
        "sha256": session.hashes(list(session.recipe.teachers)),
        "sha256_prompts": session.training_hashes(),
    }
    field = session.adapters.field(STARTED, session.model.make_field)

    def update(step: int) -> dict[str, float]:
        generator = torch.Generator().manual_seed(seed_of(session.recipe.seed, "sft", step))
        drawn = torch.randint(len(latents), (config.batch,), generator=generator)
        t = logit_normal(config.batch, generator)
        eps = torch.randn((config.batch, *latents.shape[1:]), generator=generator)
        rows, losses = own_rows(config.batch), [torch.empty(0)]
        for part in torch.arange(config.batch)[rows].split(config.micro_batch):
            if len(part):
                x0, here = latents[drawn[part]], cond.rows(drawn[part])
                loss, _ = FlowMatching()(field, x0, here, t[part].to(x0.device), eps[part].to(x0.device))
                (loss.sum() / config.batch).backward()
                losses.append(loss.detach().cpu())
        return {"loss": float(whole(torch.cat(losses), rows, config.batch).mean())}

    with session.adapters.using(STARTED):
        checkpoints = Checkpoints(session.out / "checkpoints" / "sft", identity)
        trainer.run(update, session.tracker("sft", config.optim.updates, config.batch), checkpoints)
    folder = session.out / STARTED
    files = lora_files(session.adapters.lora(STARTED), session.recipe.base)
    only_main(lambda: write_folder(folder, files))
    return folder


def _expert_samples(session: Session, config: SftConfig) -> tuple[Tensor, Condition]:
    """Latents (M, C, H, W) and their conditions; each label's prompts are drawn by the teacher of its route."""
    session.load_teachers()
    routes = {label: strongest(session, label) for label in session.recipe.prompts}
    prompts = {label: session.prompts(label, "train") for label in routes}
    conditioning = session.encode(prompt for group in prompts.values() for prompt in group)
    sampling = config.sampling
    each = -(-config.images // len(routes))
    grid, shape = session.model.grid(sampling.steps), session.latent_shape()
    parts = []
    for label, teacher in routes.items():
        rng = np.random.default_rng(seed_of(session.recipe.seed, "sft", label))
        texts = [prompts[label][i].text for i in rng.integers(0, len(prompts[label]), each)]
        seeds = tuple(seed_of(session.recipe.seed, "sft", label, i) for i in range(each))
        field = session.field(teacher, session.guidance(teacher, sampling.guidance), conditioning)
        rows, cond = own_rows(each, config.micro_batch), conditioning(texts)
        batch = Batch(cond.rows(rows), seeds[rows])
        latents = draw_latents(field, sampling.dynamics(), grid, batch, shape, config.micro_batch)
        parts.append((whole(latents, rows, each).to(session.model.device), cond))
    return torch.cat([latents for latents, _ in parts]), Condition.cat(*(cond for _, cond in parts))


def strongest(session: Session, label: str) -> str:
    """The teacher with the largest weight in a label's route."""
    teachers = list(session.recipe.teachers)
    return teachers[int(session.router([label])([label])[0].argmax())]
