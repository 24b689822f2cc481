"""What the stages of one run share: the base with its adapters, the encoded prompts, the folder, the seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from flowopd import conditioning
from flowopd.adapters import Adapters
from flowopd.conditioning import Conditioning
from flowopd.configs import AdapterConfig
from flowopd.errors import ConfigError, FlowOpdError
from flowopd.hub import fetched_folder, located
from flowopd.lora_file import LoraFile, sha256_of
from flowopd.models import Model, Source, open_model
from flowopd.processes import own_rows, state, wait
from flowopd.prompts import DATASET, Prompt, read_prompts, sha256_of_prompts
from flowopd.recipe import Recipe
from flowopd.rewards import Reward, make_reward
from flowopd.rewards.registry import check_device
from flowopd.routing import LabelRouter, checked
from flowopd.shapes import Routes
from flowopd.step import Estimator
from flowopd.tracking import OnUpdate, Tracker, show_picture, warn
from flowopd.velocity import VelocityField, guided

BASE = "base"
"""The name of the bare base wherever models are named."""


Router = Callable[[Sequence[Prompt]], Routes]
"""Prompts (B) to weights over the teachers (B, K), rows not negative with sum 1."""


@dataclass(frozen=True)
class Own:
    """What a caller brings, in Python, in place of what a recipe's words stand for; None is the recipe's.

    `router` replaces `routes`, `objective` the loss of `distill.loss` (see `step.Estimator`); `on_update` hears of
    every update of a trained stage, and may end it.
    """

    router: Router | None = None
    objective: Estimator | None = None
    on_update: OnUpdate | None = None

    def identity(self) -> dict[str, str]:
        """The names of what changes a trained model, as far as it is brought."""
        brought = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "on_update"}
        return {name: code_name(thing) for name, thing in brought.items() if thing is not None}


def checked_router(router: Router, teachers: int) -> Router:
    """A router whose answers are checked; see `routing.checked`."""
    return lambda prompts: checked(router(prompts), len(prompts), teachers)


def code_name(thing: object) -> str:
    """The name by which Python code is known: its own, or that of its class."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"  # type: ignore[attr-defined]


class Session:
    """One run of a recipe in the folder `out`, with what its caller brings."""

    def __init__(self, recipe: Recipe, out: Path, own: Own | None = None) -> None:
        self.recipe, self.out, self.own = recipe, out, own or Own()
        self._whole: dict[str, VelocityField] = {}

    def open(self) -> None:
        """Open the base now. Raises CheckpointError if there is none by the recipe's name."""
        _ = self.model

    @cached_property
    def device(self) -> torch.device:
        """Where everything runs: the recipe's device, or the best there is. Raises ConfigError if it is not here."""
        name = self.recipe.device or state().device
        check_device(name)
        return torch.device(name)

    @cached_property
    def model(self) -> Model:
        """The base, opened when it is first asked for."""
        recipe = self.recipe
        return open_model(
            recipe.base,
            revision=recipe.revision,
            device=self.device,
            dtype=getattr(torch, recipe.dtype),
            t5=recipe.t5,
            gradient_checkpointing=recipe.gradient_checkpointing,
            compiled=recipe.compile,
        )

    @cached_property
    def adapters(self) -> Adapters:
        """The base with the adapters that were loaded so far."""
        return Adapters(self.model.transformer)

    def networks(self) -> dict[str, nn.Module]:
        """The transformers in memory by the model that brought each: the base, with adapters, and whole teachers."""
        return {BASE: self.adapters.transformer} | {name: field.transformer for name, field in self._whole.items()}

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """All weights and buffers of the models in memory, by model and name; an adapter's are not the base's."""
        adapters = {name: self.adapters.parameters(name) for name in self.adapters.names}
        own = {id(p) for parameters in adapters.values() for p in parameters.values()}
        networks = {
            model: {name: p for name, p in (*network.named_parameters(), *network.named_buffers()) if id(p) not in own}
            for model, network in self.networks().items()
        }
        return {**networks, **adapters}

    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the latents of the recipe's pictures."""
        return self.model.latent_shape(self.recipe.resolution, self.recipe.resolution)

    def condition_bytes(self) -> int:
        """What one encoded prompt takes, in memory and in the cache."""
        numbers = sum(tensor.numel() for tensor in self.model.blank(1).tensors.values())
        return numbers * getattr(torch, self.recipe.dtype).itemsize

    def prompts(self, label: str, split: str) -> list[Prompt]:
        """The prompts of a label's file. Raises ConfigError if the recipe names no such file."""
        files = self.recipe.prompts.get(label)
        source = getattr(files, split) if files else None
        if source is None:
            known = ", ".join(sorted(self.recipe.prompts)) or "none"
            flag = f", or --prompts {label}=FILE" if split == "train" else ""
            mend = f"add prompts.{label}.{split}{flag}"
            raise ConfigError(f"no {split} prompts for label {label!r} (labels: {known}); {mend}")
        return read_prompts(_located(source), label)

    def training_prompts(self) -> dict[str, list[Prompt]]:
        """The training prompts of each label that a student learns on.

        Raises ConfigError for a label with a route and without any, and if there is no label.
        """
        return {label: self.prompts(label, "train") for label in self.recipe.trained_labels()}

    def encode(self, prompts: Iterable[Prompt]) -> Conditioning:
        """The conditioning of these prompts, each encoded once, by one of the processes, into the run's cache."""
        texts, cache = conditioning.distinct(prompt.text for prompt in prompts), self.out / "cache"
        new = conditioning.missing(self.model, texts, cache)
        if cut := self.model.cut(new) if new else []:
            warn(f"{len(cut)} of {len(new)} prompts are longer than the model reads, and cut, such as {cut[0][:80]!r}")
        wait()
        conditioning.encode(self.model, new[own_rows(len(new))], cache)
        wait()
        return conditioning.read(self.model, texts, cache)

    def judge(self, name: str) -> Reward:
        """A reward, made as the recipe's `judges` say. Raises ConfigError for an unknown one."""
        return make_reward(name, self.device, self.recipe.judges.get(name))

    def reach_judges(self, rewards: Iterable[str]) -> None:
        """Make contact with those of these rewards that run elsewhere. Raises ConfigError for one that is not there."""
        for name in dict.fromkeys(rewards):
            if name in self.recipe.judges and self.recipe.judges[name].url is not None:
                self.judge(name)

    def teacher_folder(self, name: str) -> Path:
        """Where the adapter of a teacher lies, brought from the hub if need be.

        Raises ConfigError for a name that the recipe lacks, CheckpointError for one that the hub does not give.
        """
        teacher = self.recipe.teachers.get(name)
        if teacher is None:
            known = ", ".join(self.recipe.teachers) or "none"
            raise ConfigError(f"unknown teacher {name!r}; the recipe has: {known}")
        if teacher.transformer is not None:
            raise ConfigError(f"teacher {name} is a whole transformer, no adapter: distil it, it cannot be merged")
        if teacher.adapter is None:
            return self.out / "teachers" / name
        return fetched_folder(teacher.adapter, teacher.revision) / (teacher.subfolder or "")

    def load_teachers(self, names: Sequence[str] | None = None) -> list[str]:
        """Load these teachers, all by default: frozen adapters, and whole transformers; returns their names."""
        names = list(self.recipe.teachers) if names is None else list(names)
        for name in names:
            whole = self.whole_teacher(name)
            if whole is not None and name not in self._whole:
                self._whole[name] = self.model.whole(whole, self.recipe.teachers[name].offload)
            elif whole is None and name not in self.adapters.names:
                self.adapters.load(name, self.teacher_folder(name))
        return names

    def whole_teacher(self, name: str) -> Source | None:
        """Where a teacher that is a whole transformer comes from; None for one that is an adapter."""
        teacher = self.recipe.teachers.get(name)
        return Source(teacher.transformer, teacher.revision) if teacher and teacher.transformer else None

    def router(self, labels: Sequence[str]) -> LabelRouter:
        """The recipe's routes; a label without one goes to the teacher of its name.

        Raises DataError for one of these labels that has neither, unless prompts are routed by their text and another
        label is known; ConfigError if there is no teacher.
        """
        teachers = list(self.recipe.teachers)
        if not teachers:
            raise ConfigError("there is nobody to learn from; add `teachers`, or give --teacher NAME=ADAPTER")
        router = LabelRouter(dict(zip(teachers, teachers, strict=True)) | (self.recipe.routes or {}), teachers)
        known = [label for label in labels if label in router.labels]
        router(known if known and self.recipe.route_by == "text" else labels)
        return router

    def routed(self, labels: Sequence[str]) -> list[str]:
        """Those of the labels that have a route; the others' prompts are routed by their text. Raises as `router`."""
        known = self.router(labels).labels
        return [label for label in labels if label in known]

    def route(self, labels: Sequence[str]) -> Router:
        """The routes of prompts: the caller's router, or the recipe's by label, which has to know these labels."""
        if self.own.router is not None:
            return checked_router(self.own.router, len(self.recipe.teachers))
        router = self.router(labels)
        return lambda prompts: router([prompt.label for prompt in prompts])

    def tracker(self, stage: str, updates: int, samples: int = 0) -> Tracker:
        """Where a stage of so many updates, of so many samples each, is written down and shown."""
        track, on_update = self.recipe.track, self.own.on_update
        return Tracker(self.out, stage, updates, on_update, samples=samples, track=track, settings=self._told())

    def show(self, name: str, picture: Image.Image) -> None:
        """A picture of the run, where its metrics go."""
        show_picture(self.out, name, picture, self.recipe.track, self._told())

    def _told(self) -> dict[str, Any]:
        """What boards show of the recipe: the keys that it gives."""
        return self.recipe.model_dump(mode="json", exclude_unset=True)

    def field(self, name: str, guidance: float, conditioning: Conditioning) -> VelocityField:
        """The guided velocity of the base, of the base with an adapter, or of a whole teacher, as far as loaded."""
        field = self._whole.get(name) or self.adapters.field(None if name == BASE else name, self.model.make_field)
        return guided(field, guidance, conditioning.null)

    def guidance(self, teacher: str, student: float) -> float:
        """A teacher's own guidance, or the student's where it has none."""
        own = self.recipe.teachers[teacher].guidance if teacher in self.recipe.teachers else None
        return student if own is None else own

    def create(self, name: str, shape: AdapterConfig, start: LoraFile | None = None) -> None:
        """Add a trainable adapter, fresh or from a cold start, whose layers are among its own unless the shape says."""
        targets = shape.targets or (*self.model.targets, *(start.modules if start else ()))
        self.adapters.create(name, shape.rank, shape.alpha, targets, seed=self.recipe.seed, start=start)

    def hashes(self, names: Sequence[str]) -> dict[str, str]:
        """sha256 of the base and of these teachers' files."""
        whole = {name: source for name in names if (source := self.whole_teacher(name)) is not None}
        adapters = {name: sha256_of(self.teacher_folder(name)) for name in names if name not in whole}
        return {BASE: self.model.source.fingerprint()} | adapters | {k: v.fingerprint() for k, v in whole.items()}

    def training_hashes(self) -> dict[str, str]:
        """sha256 of what is trained on, of `prompt_hashes`."""
        return {name: value for name, value in self.prompt_hashes().items() if name.endswith(".train")}

    def prompt_hashes(self) -> dict[str, str]:
        """sha256 of the recipe's prompt files and data sets, by `LABEL.SPLIT`, as far as they can be read."""
        hashes = {}
        for label, files in self.recipe.prompts.items():
            for split, source in files:
                if source is not None:
                    with suppress(FlowOpdError):
                        hashes[f"{label}.{split}"] = sha256_of_prompts(_located(source))
        return hashes


def _located(source: str) -> str | Path:
    """What a recipe means by a source of prompts: a data set as it is, or a path."""
    return source if source.startswith(DATASET) else located(source)
