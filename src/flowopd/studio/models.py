"""The models of one run, ready to draw: base, experts, merge and student, and every checkpoint of a training."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from flowopd.checkpoint import TENSORS
from flowopd.conditioning import Conditioning
from flowopd.errors import ConfigError
from flowopd.lora_file import weights_file
from flowopd.models import Model
from flowopd.results import BASE, TEACHER
from flowopd.session import Session
from flowopd.stages.checkpoints import CHECKPOINT, checkpoint_folder, known_checkpoints
from flowopd.stages.sample import FOLDERS, available_models, model_field, model_lora
from flowopd.strength import strengthened
from flowopd.velocity import VelocityField

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
        kept = known_checkpoints(self.session.recipe, self.session.out)
        models = [*available_models(self.session), *kept]
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
        available_models(self.session, [model])
        return next(choice for choice in self.choices() if choice.name == model)

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
            lora = model_lora(self.session, model)
            assert lora is not None
            self.session.adapters.load(name, lora, allow_zero=True)
            self._loaded[name] = None
        self._loaded.move_to_end(name)
        while len(self._loaded) > HELD:
            oldest, _ = self._loaded.popitem(last=False)
            self.session.adapters.remove(oldest)
        return name
