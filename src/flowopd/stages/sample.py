"""Pictures from any model of a run: the rows there are, the same prompts and seeds for each."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from flowopd.conditioning import Conditioning
from flowopd.configs import EvaluateConfig, MetricConfig
from flowopd.durable import replace_picture, replace_text
from flowopd.errors import ConfigError
from flowopd.lora_file import LoraFile, read_lora, sha256_of
from flowopd.names import file_name, tile
from flowopd.noise import seed_of
from flowopd.processes import only_main, own_rows, wait
from flowopd.prompts import Prompt
from flowopd.results import BASE, GRPO_MIX, MERGE, SFT, STUDENT, TEACHER
from flowopd.sampling import Batch, SamplingConfig, draw_latents
from flowopd.session import Session
from flowopd.stages.checkpoints import CHECKPOINT, checkpoint_hash, checkpoint_lora, known_checkpoints, nearest
from flowopd.velocity import VelocityField

FOLDERS = {MERGE: "coldstart", SFT: "coldstart", GRPO_MIX: "grpo_mix", STUDENT: "student"}
"""Where a run keeps the adapters of its own models; what lies in `coldstart` goes by the name of its kind."""

SHOWN = 6
"""Checkpoints that a message names."""

LONGEST_NAME = 48
"""Characters of a prompt in the name of its picture."""

ROWS = 4
"""A matrix product of a multiple of so many rows rounds all of them alike, on any number of threads tried (1 to 16)."""


def available_models(session: Session, wanted: Sequence[str] | None = None) -> list[str]:
    """`base`, `teacher:NAME`, `merge` or `sft`, `grpo_mix` and `student`, as far as they exist, or those wanted.

    Wanted may be checkpoints too, `checkpoint:STAGE/STEP`. Raises ConfigError for a wanted one that does not exist.
    """
    teachers = [f"{TEACHER}{name}" for name in session.recipe.teachers]
    whole = sorted(row for row in teachers if session.whole_teacher(row.removeprefix(TEACHER)) is not None)
    there = [BASE, *whole, *(row for row in (*teachers, *FOLDERS) if adapter_folder(session, row) is not None)]
    if not wanted:
        return there
    kept = known_checkpoints(session.recipe, session.out)
    for model in wanted:
        if model not in (*there, *kept):
            near = nearest(model, kept)
            hint = f"; did you mean {near!r}?" if near else ""
            raise ConfigError(
                f"there is no model {model!r} here; there are: {', '.join([*there, *_shown(kept)])}{hint}"
            )
    return list(wanted)


def _shown(kept: Sequence[str]) -> Sequence[str]:
    """Some checkpoints' names, or the first and the last of many."""
    return kept if len(kept) <= SHOWN else [*kept[:1], "...", *kept[-1:]]


def adapter_folder(session: Session, model: str) -> Path | None:
    """Where the adapter of a row lies; None if there is none, as of the base and of whole teachers."""
    teacher = model.removeprefix(TEACHER)
    if model in FOLDERS and model != _other_start(session):
        folder = session.out / FOLDERS[model]
    elif model != teacher and teacher in session.recipe.teachers and session.whole_teacher(teacher) is None:
        folder = session.teacher_folder(teacher)
    else:
        return None
    return folder if folder.exists() else None


def _other_start(session: Session) -> str:
    """The kind of cold start that this run does not have."""
    start = session.recipe.coldstart
    return MERGE if start is not None and start.kind == SFT else SFT


def model_lora(session: Session, model: str) -> LoraFile | None:
    """The adapter of a row or a checkpoint; None if there is none, as of the base and of whole teachers.

    No other model is looked at. Raises CheckpointError if it cannot be read.
    """
    if model in known_checkpoints(session.recipe, session.out):
        return checkpoint_lora(session.recipe, session.out, model)
    folder = adapter_folder(session, model)
    return None if folder is None else read_lora(folder)


def model_field(session: Session, model: str, guidance: float, conditioning: Conditioning) -> VelocityField:
    """The guided velocity of a row or a checkpoint, its adapter loaded when it is first asked for.

    Of checkpoints one is loaded at a time: asking for another lets the field before go.
    """
    teacher = model.removeprefix(TEACHER)
    if model in FOLDERS or model.startswith(CHECKPOINT):
        return session.field(_loaded(session, model), guidance, conditioning)
    if model != BASE:
        session.load_teachers([teacher])
    return session.field(teacher, session.guidance(teacher, guidance), conditioning)


def _loaded(session: Session, model: str) -> str:
    """The name under which the adapter of one of the run's own models is loaded."""
    name, adapters = f"{model} of the run", session.adapters
    if name in adapters.names:
        return name
    if model.startswith(CHECKPOINT):
        lora = checkpoint_lora(session.recipe, session.out, model)
        for other in [other for other in adapters.names if other.startswith(CHECKPOINT)]:
            adapters.remove(other)
        adapters.load(name, lora, allow_zero=True)
    else:
        adapters.load(name, session.out / FOLDERS[model], allow_zero=True)
    return name


def own_weights(session: Session, models: Sequence[str]) -> dict[str, str]:
    """The SHA-256 of the weights of those models that a run made itself.

    Raises CheckpointError for a checkpoint that is not what was written.
    """
    out = session.out
    trained = {model: sha256_of(out / FOLDERS[model]) for model in models if model in FOLDERS}
    return trained | {model: checkpoint_hash(out, model) for model in models if model.startswith(CHECKPOINT)}


def plain_call(session: Session, model: str) -> dict[str, float]:
    """The options of the plain pipeline's call that draw as the run does; it takes a guidance below 1 as none."""
    recipe, sampling = session.recipe, session.recipe.drawing.sampling
    size = {"height": recipe.resolution, "width": recipe.resolution} if recipe.resolution else {}
    guidance = session.guidance(model.removeprefix(TEACHER), sampling.guidance)
    return {"num_inference_steps": sampling.steps, "guidance_scale": guidance, **size, **session.model.call_options}


def draw(
    session: Session,
    model: str,
    texts: Sequence[str],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    conditioning: Conditioning,
    micro_batch: int = 32,
) -> np.ndarray:
    """Pictures (B, H, W, 3) uint8; each depends on its model, prompt, seed and the sampling alone."""
    field = model_field(session, model, sampling.guidance, conditioning)
    return draw_by(session, field, texts, seeds, sampling, conditioning, micro_batch)


def draw_by(
    session: Session,
    field: VelocityField,
    texts: Sequence[str],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    conditioning: Conditioning,
    micro_batch: int = 32,
) -> np.ndarray:
    """Pictures (B, H, W, 3) uint8 by any velocity of the session's model, of which the device holds a micro-batch."""
    grid, shape, dynamics = session.model.grid(sampling.steps), session.latent_shape(), sampling.dynamics()
    pictures = []
    for first in range(0, len(texts), micro_batch):
        part = slice(first, first + micro_batch)
        batch = Batch(conditioning(texts[part]), tuple(seeds[part]))
        pictures.append(session.model.decode(draw_latents(field, dynamics, grid, batch, shape, micro_batch)))
    return np.concatenate(pictures)


def draw_to(session: Session, model: str, texts: Sequence[str], seed: int, folder: Path) -> list[Path]:
    """One picture of each prompt with the seed, as `PROMPT-SEED-MODEL.png` files, none of which may exist.

    They are drawn a micro-batch at a time, and lie there at once. Raises ConfigError if there is no such model, or a
    file is in the way.
    """
    available_models(session, [model])
    names = [f"{words(text)}-{seed}-{file_name(model)}" for text in texts]
    files = [folder / f"{name}{_again(names, i)}.png" for i, name in enumerate(names)]
    taken = [file for file in files if file.exists()]
    if taken:
        raise ConfigError(f"{taken[0]} exists; delete it, or choose another --seed, or another folder with --to")
    wait()
    config = session.recipe.drawing
    conditioning = session.encode([Prompt(text, "") for text in texts])
    rows = own_rows(len(texts))
    for first in range(rows.start, rows.stop, config.micro_batch):
        part = slice(first, min(first + config.micro_batch, rows.stop))
        mine = texts[part]
        pictures = draw(session, model, mine, [seed] * len(mine), config.sampling, conditioning, config.micro_batch)
        for file, picture in zip(files[part], pictures, strict=True):
            replace_picture(file, Image.fromarray(picture))
    wait()
    return files


def words(text: str) -> str:
    """A prompt's first letters and digits as a part of a file's name: `a-red-sign-that-says-k7`."""
    return "-".join(re.findall(r"[^\W_]+", text.lower()))[:LONGEST_NAME].strip("-") or "prompt"


def _again(names: Sequence[str], i: int) -> str:
    """What tells a name from the same one before it: `-2` for the second."""
    before = names[:i].count(names[i])
    return f"-{before + 1}" if before else ""


def draw_pictures(
    session: Session,
    model: str,
    prompts: Sequence[Prompt],
    config: EvaluateConfig,
    conditioning: Conditioning,
    rows: slice = slice(None),
) -> np.ndarray:
    """These rows of the evaluation's pictures (B * images_per_prompt, H, W, 3), maybe none; seeds tied to prompts."""
    many = repeated(prompts, config.images_per_prompt)
    seeds = [seed_of(config.seed, prompt.text, i % config.images_per_prompt) for i, prompt in enumerate(many)]
    texts = [prompt.text for prompt in many[rows]]
    if not texts:
        return np.empty((0, 0, 0, 3), np.uint8)
    size, seeds = even_batch(len(many), config.micro_batch), seeds[rows]
    lacking = -len(texts) % size
    filled = (texts + texts[:1] * lacking, seeds + seeds[:1] * lacking)
    return draw(session, model, *filled, config.sampling, conditioning, size)[: len(texts)]


def even_batch(n: int, most: int) -> int:
    """The size of the micro-batches of `n` pictures, alike: 1, 2 or whole fours, near what `most` needs: 12 for 34, 16.

    A picture's last bits depend on how many are drawn with it, not on which: so they depend on no order. Nor do they
    depend on its place: of five or ten rows MKL's threads round some otherwise than the rest, of whole fours none.
    """
    most = most - most % ROWS if most >= ROWS else min(most, 2)
    size = -(-n // -(-n // most)) if n else most
    return size if size <= 2 else size + -size % ROWS


def repeated(prompts: Sequence[Prompt], times: int) -> list[Prompt]:
    """Each prompt so many times in a row."""
    return [prompt for prompt in prompts for _ in range(times)]


def asked(metric: MetricConfig, config: EvaluateConfig) -> tuple[str, str]:
    """The label and the split of the prompts that a metric is taken on."""
    return metric.prompts, metric.split or config.split


def evaluation_prompts(session: Session, config: EvaluateConfig) -> dict[tuple[str, str], list[Prompt]]:
    """The prompts by every label and split that a metric names; `limit` of each, spread evenly over the file."""
    named = dict.fromkeys(asked(metric, config) for metric in config.metrics.values())
    return {(label, split): spread(session.prompts(label, split), config.limit or None) for label, split in named}


def metric_prompts(
    config: EvaluateConfig, prompts: Mapping[tuple[str, str], Sequence[Prompt]]
) -> dict[str, Sequence[Prompt]]:
    """The prompts of each metric, of those by label and split."""
    return {name: prompts[asked(metric, config)] for name, metric in config.metrics.items()}


def spread(prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """At most `limit` prompts, evenly spaced."""
    if limit is None or limit >= len(prompts):
        return list(prompts)
    return [prompts[i * len(prompts) // limit] for i in range(limit)]


def draw_wall(session: Session, config: EvaluateConfig) -> Path:
    """The same few prompts and seeds through every model but checkpoints, to OUT/samples, for the report."""
    each = session.recipe.samples.prompts_per_label
    prompts = [p for group in evaluation_prompts(session, config).values() for p in spread(group, each)]
    models = [model for model in available_models(session, config.models) if not model.startswith(CHECKPOINT)]
    folder = session.out / "samples"
    once = config.model_copy(update={"images_per_prompt": 1})
    conditioning = session.encode(prompts)
    rows = own_rows(len(prompts), even_batch(len(prompts), config.micro_batch))
    for model in models:
        for i, picture in enumerate(draw_pictures(session, model, prompts, once, conditioning, rows), rows.start):
            replace_picture(folder / tile(i, model), Image.fromarray(picture))
    wait()
    index = {"prompts": [prompt.text for prompt in prompts], "models": models}
    only_main(lambda: replace_text(folder / "index.json", json.dumps(index)))
    return folder
