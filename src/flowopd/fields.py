"""On-policy distillation of fields of one's own: any callables v(x, t, cond), without a diffusers model or a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from flowopd.checkpoint import Checkpoints
from flowopd.configs import AdapterConfig, DistillConfig
from flowopd.errors import ConfigError
from flowopd.identity import lasting
from flowopd.prompts import Prompt
from flowopd.routing import LabelRouter
from flowopd.schedule import sigma_grid
from flowopd.session import Router, checked_router, code_name
from flowopd.shapes import Grid
from flowopd.stages.updates import Place, distillation, update_kind
from flowopd.step import Distillation, Estimator
from flowopd.tracking import OnUpdate, Tracker
from flowopd.train import Trainer
from flowopd.types import Condition
from flowopd.velocity import VelocityField


@dataclass(frozen=True, kw_only=True, eq=False)
class FieldDistiller:
    """Teaches `student`, a module that is a velocity field, what `teachers` by name say at the states it visits.

    `conditions` holds, by label, the conditions (M rows each) that updates draw from; a label without a router goes to
    the teacher of its name. `shape` is that of one sample, such as (2,) or (16, 64, 64). `grid` are the times from
    noise to data, by default `config.sampling.steps` even ones. `anchor` is held to with `config.anchor.weight`.
    `router` and `objective` are as in `Distiller`: to a router, a prompt's text is LABEL/ROW.

    Guidance belongs to a field (`guided`), and the student is trained as it is, without an adapter. Raises ConfigError
    for settings that say otherwise, and if nothing of the student can be trained.
    """

    student: nn.Module
    teachers: Mapping[str, VelocityField]
    conditions: Mapping[str, Condition]
    shape: Sequence[int]
    config: DistillConfig = field(default_factory=DistillConfig)
    grid: Grid | None = None
    anchor: VelocityField | None = None
    router: Router | None = None
    objective: Estimator | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.config.sampling.guidance != 1 or self.config.adapter != AdapterConfig():
            raise ConfigError("fields take no guidance and no adapter: wrap them by guided(), and leave both out")
        if not self.config.distillation:
            raise ConfigError("distillation cannot be off for fields; give the anchor as the teacher")
        if self.anchor is not None and self.config.anchor is None:
            raise ConfigError(
                "an anchor is given and `config.anchor` is None; give it a weight, or leave the anchor out"
            )
        if not self._trained():
            raise ConfigError("no parameter of the student requires a gradient; switch on those to train")

    def train(self, out: str | Path | None = None, on_update: OnUpdate | None = None) -> None:
        """Make all updates; the student ends with its averaged weights.

        `out` is a folder for `metrics.jsonl` and for checkpoints, from which a call with the same fields goes on;
        without it nothing is kept. `on_update(update, metrics)` ends the training early by returning True.

        Raises DataError for a label without a teacher, and for routes that are no weights.
        """
        if out is not None:
            self._train(Path(out), on_update)
            return
        with TemporaryDirectory(prefix="flowopd-") as folder:
            self._train(Path(folder), on_update)

    def _train(self, out: Path, on_update: OnUpdate | None) -> None:
        config, parameters = self.config, self._trained()
        place, lesson = Place(self.shape, self.seed), self._lesson()
        update = update_kind(config)(config, place, lesson, self._route(), *self._material())
        trainer, samples = Trainer(parameters, config.optim), config.samples_per_label * len(self.conditions)
        checkpoints = Checkpoints(out / "checkpoints" / "distill", self._identity())
        trainer.run(update, Tracker(out, "distill", config.optim.updates, on_update, samples=samples), checkpoints)

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.student.named_parameters() if p.requires_grad}

    def _lesson(self) -> Distillation:
        grid = sigma_grid(self.config.sampling.steps, shift=1) if self.grid is None else self.grid
        teachers = list(self.teachers.values())
        return distillation(self.config, grid, self.student, teachers, self.anchor, self.objective)

    def _route(self) -> Router:
        names = list(self.teachers)
        if self.router is not None:
            return checked_router(self.router, len(names))
        by_label = LabelRouter(dict(zip(names, names, strict=True)), names)
        by_label(list(self.conditions))
        return lambda prompts: by_label([prompt.label for prompt in prompts])

    def _material(self) -> tuple[dict[str, list[Prompt]], _Rows]:
        """Every row of the conditions as a prompt by the name LABEL/ROW, and what finds the rows by these names."""
        prompts = {
            label: [Prompt(f"{label}/{i}", label) for i in range(len(cond))] for label, cond in self.conditions.items()
        }
        return prompts, _Rows(self.conditions)

    def _identity(self) -> dict[str, object]:
        """What the trained weights depend on: settings, and the content of fields and conditions."""
        named = {"anchor": self.anchor, "router": self.router, "objective": self.objective}
        return {
            "distill": lasting(self.config),
            "seed": self.seed,
            "grid": None if self.grid is None else self.grid.tolist(),
            "teachers": {name: _content(taught) for name, taught in self.teachers.items()},
            "conditions": {label: _hash(cond.tensors) for label, cond in self.conditions.items()},
            **{name: None if thing is None else _content(thing) for name, thing in named.items()},
        }


class _Rows:
    """The conditions' rows by the names LABEL/ROW."""

    def __init__(self, conditions: Mapping[str, Condition]) -> None:
        self._all = Condition.cat(*conditions.values())
        sizes = [len(cond) for cond in conditions.values()]
        self._starts = dict(zip(conditions, accumulate([0, *sizes]), strict=False))

    def __call__(self, texts: Sequence[str]) -> Condition:
        places = [text.rpartition("/") for text in texts]
        return self._all.rows([self._starts[label] + int(row) for label, _, row in places])


def _content(thing: object) -> str:
    """A module's tensors, hashed; other code by its name."""
    return _hash(thing.state_dict()) if isinstance(thing, nn.Module) else code_name(thing)


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
