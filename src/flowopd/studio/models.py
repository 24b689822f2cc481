"""The models of one run, ready to draw: base, experts, merge and student, and every checkpoint of a training."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flowopd.checkpoint import TENSORS
from flowopd.conditioning import Conditioning
from flowopd.configs import AdapterConfig, DistillConfig
from flowopd.errors import CheckpointError, ConfigError
from flowopd.lora_file import Factors, LoraFile, peft_config, read_lora, weights_file
from flowopd.models import Model
from flowopd.recipe import Recipe
from flowopd.results import BASE, TEACHER
from flowopd.session import Session
from flowopd.stages.sample import FOLDERS, available_models, model_field
from flowopd.strength import strengthened
from flowopd.velocity import VelocityField

CHECKPOINT = "checkpoint:"
"""A checkpoint goes by `checkpoint:STAGE/STEP`."""

HELD = 12
"""Adapters that stay loaded; those asked for last."""


@dataclass(frozen=True)
class Choice:
    """A model that can draw; `adjustable` if its adapter can count less or more."""

    name: str
    adjustable: bool


class Encoded(Conditioning):
    """Prompts that are encoded when they are asked for, and kept in memory alone; the encoders stay loaded."""

    def __init__(self, model: Model, held: int = 128) -> None:
        super().__init__({}, model.device)
        self._read = lru_cache(held)(lambda text: model.encode([text]))


class Shelf:
    """The models of a run; an adapter is loaded when it is first asked for, and again when its file has changed."""

    def __init__(self, session: Session) -> None:
        self.session, self.encoded = session, Encoded(session.model)
        self._loaded: OrderedDict[str, None] = OrderedDict()

    def choices(self) -> list[Choice]:
        """What there is now, the base first and checkpoints last."""
        fixed = {BASE} | {TEACHER + name for name in self.session.recipe.teachers if self.session.whole_teacher(name)}
        models = [*available_models(self.session), *checkpoints(self.session.out)]
        return [Choice(model, model not in fixed) for model in models]

    @contextmanager
    def using(self, model: str, strength: float, guidance: float) -> Iterator[VelocityField]:
        """The guided velocity of a model whose adapter counts `strength` times.

        Raises ConfigError for a model that there is not, or a strength of one without an adapter; CheckpointError for
        files that cannot be read, or do not fit.
        """
        if not self._choice(model).adjustable:
            if strength != 1:
                raise ConfigError(f"{model} has no adapter whose strength could be {strength}; leave it at 1")
            yield model_field(self.session, model, guidance, self.encoded)
            return
        name = self._adapter(model)
        own = self.session.guidance(model.removeprefix(TEACHER), guidance) if model.startswith(TEACHER) else guidance
        counted = nullcontext() if strength == 1 else strengthened(self.session.adapters, name, strength)
        with counted:
            yield self.session.field(name, own, self.encoded)

    def stamp(self, model: str) -> str:
        """Differs whenever the file of a model does. Raises ConfigError for a model that there is not."""
        path = self._file(self._choice(model).name)
        state = path.stat() if path is not None and path.exists() else None
        return f"{state.st_mtime_ns}-{state.st_size}" if state else ""

    def _choice(self, model: str) -> Choice:
        known = {choice.name: choice for choice in self.choices()}
        if model not in known:
            raise ConfigError(f"there is no model {model!r} here; there are: {', '.join(known)}")
        return known[model]

    def _file(self, model: str) -> Path | None:
        """Where a model's adapter lies; None for the base and whole transformers."""
        if model.startswith(CHECKPOINT):
            return checkpoint_folder(self.session.out, model) / TENSORS
        if model in FOLDERS:
            return weights_file(self.session.out / FOLDERS[model])
        name = model.removeprefix(TEACHER)
        if model == BASE or self.session.whole_teacher(name) is not None:
            return None
        return weights_file(self.session.teacher_folder(name))

    def _adapter(self, model: str) -> str:
        """The name under which a model's adapter is loaded, as its file is now."""
        name = f"{model.replace('.', '_')} of {self.stamp(model)}"
        if name not in self._loaded:
            self.session.adapters.load(name, self._lora(model), allow_zero=True)
            self._loaded[name] = None
        self._loaded.move_to_end(name)
        while len(self._loaded) > HELD:
            oldest, _ = self._loaded.popitem(last=False)
            self.session.adapters.remove(oldest)
        return name

    def _lora(self, model: str) -> LoraFile:
        if model.startswith(CHECKPOINT):
            return checkpoint_lora(self.session.recipe, self.session.out, model)
        if model in FOLDERS:
            return read_lora(self.session.out / FOLDERS[model])
        return read_lora(self.session.teacher_folder(model.removeprefix(TEACHER)))


def checkpoints(run: Path) -> list[str]:
    """The names of a run's checkpoints, stage by stage, the earliest first."""
    found = [folder.parent for folder in (run / "checkpoints").glob(f"**/step-*/{TENSORS}")]
    steps = [(str(f.parent.relative_to(run / "checkpoints")), f.name.removeprefix("step-")) for f in found]
    return [f"{CHECKPOINT}{stage}/{step}" for stage, step in sorted(steps, key=_by_step) if step.isdigit()]


def checkpoint_folder(run: Path, model: str) -> Path:
    """The folder of a checkpoint by its name."""
    stage, _, step = model.removeprefix(CHECKPOINT).rpartition("/")
    return run / "checkpoints" / stage / f"step-{step}"


def checkpoint_lora(recipe: Recipe, run: Path, model: str) -> LoraFile:
    """The averaged weights of a checkpoint, as the adapter that the stage would end with.

    Raises CheckpointError if it cannot be read, ConfigError if the recipe does not have its stage any more.
    """
    folder = checkpoint_folder(run, model)
    stage = folder.parent.relative_to(run / "checkpoints").as_posix()
    try:
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read ({error}); draw with another") from error
    averaged = {name.removeprefix("ema."): tensor for name, tensor in tensors.items() if name.startswith("ema.")}
    shape = _shape(recipe, stage)
    modules = {
        name.removesuffix(".lora_A.weight"): _factors(averaged, name, shape)
        for name in averaged
        if name.endswith(".lora_A.weight")
    }
    return LoraFile({"peft_type": "LORA", **peft_config(modules)}, modules)


def _factors(averaged: dict[str, Tensor], name: str, shape: AdapterConfig) -> Factors:
    a, b = averaged[name], averaged[name.replace(".lora_A.", ".lora_B.")]
    return Factors(a, b, shape.alpha / shape.rank)


def _shape(recipe: Recipe, stage: str) -> AdapterConfig:
    """The shape of the adapter that a stage trains."""
    teacher = recipe.teachers.get(stage.removeprefix("teachers/"))
    owners = {
        "distill": recipe.distill,
        "sft": recipe.distill or DistillConfig(),
        "grpo_mix": recipe.grpo_mix,
        f"teachers/{stage.removeprefix('teachers/')}": teacher.train if teacher else None,
    }
    owner = owners.get(stage)
    if owner is None:
        raise ConfigError(f"the recipe has no stage {stage!r} any more; its checkpoints cannot draw")
    return owner.adapter


def _by_step(place: tuple[str, str]) -> tuple[str, int]:
    return place[0], int(place[1]) if place[1].isdigit() else 0
