"""The base and its adapters, opened and held against each other without reading the base's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property, partial

from flowopd.adapters import Adapters
from flowopd.conditioning import NULL
from flowopd.configs import AdapterConfig, DistillConfig, SftConfig
from flowopd.errors import FlowOpdError
from flowopd.lora_file import read_lora, sha256_of
from flowopd.models import Source
from flowopd.recipe import Recipe
from flowopd.session import Session
from flowopd.stages.doctor.check import FAILED, OK, WARNING, Check, looked
from flowopd.stages.doctor.machine import GIB
from flowopd.stages.plan import FP32, MOMENTS
from flowopd.stages.sample import evaluation_prompts
from flowopd.train import TrainConfig
from flowopd.wordings import with_wordings

STATES = 2 + MOMENTS
"""Numbers in a checkpoint for each one that is trained: weight, average, moments."""

COPIES = 2
"""Files that a trained adapter ends in."""


class Skeleton:
    """The base of a session without weights, and the adapters that were tried on it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._sizes: dict[AdapterConfig, int] = {}

    @cached_property
    def adapters(self) -> Adapters | None:
        """The base on the meta device, None if it cannot be opened."""
        with suppress(FlowOpdError):
            return Adapters(self.session.model.skeleton())
        return None

    def size(self, adapters: Adapters, shape: AdapterConfig) -> int:
        """Numbers in a fresh adapter. Raises ConfigError for targets that the base lacks."""
        if shape not in self._sizes:
            name = f"new {len(self._sizes)}"
            adapters.create(name, shape.rank, shape.alpha, shape.targets or self.session.model.targets, seed=0)
            self._sizes[shape] = sum(p.numel() for p in adapters.parameters(name).values())
        return self._sizes[shape]


def base(session: Session) -> Check:
    """The base opens, draws the recipe's pictures, and none of its weights that are here is missing or cut short."""
    model = session.model
    here = _held(model.source)
    session.latent_shape()
    numbers = sum(p.numel() for p in model.skeleton().parameters())
    return Check("base", OK, f"{session.recipe.base}: {numbers:,} parameters in the transformer, {here}")


def _held(source: Source) -> str:
    return f"{source.weights() / GIB:.2f} GiB of weights" if source.folder else "its weights on the hub"


def teachers(session: Session, skeleton: Skeleton) -> Iterator[Check]:
    """One check for each expert, and one that no two are the same."""
    for name in session.recipe.teachers:
        yield looked(f"teacher {name}", partial(_teacher, session, skeleton, name))
    hashes: dict[str, list[str]] = {}
    for name in session.recipe.teachers:
        with suppress(FlowOpdError):
            hashes.setdefault(_hash(session, name), []).append(name)
    for twins in (names for names in hashes.values() if len(names) > 1):
        mend = "name the right folder of each, or route the labels of both to one"
        yield Check("teachers", FAILED, f"{' and '.join(twins)} are the same file", mend)


def _hash(session: Session, name: str) -> str:
    whole = session.whole_teacher(name)
    return sha256_of(session.teacher_folder(name)) if whole is None else whole.fingerprint()


def _teacher(session: Session, skeleton: Skeleton, name: str) -> Check:
    whole = session.whole_teacher(name)
    if whole is not None:
        session.model.check_whole(whole)
        return Check(f"teacher {name}", OK, f"a whole transformer, {_held(whole)}")
    training, folder = session.recipe.teachers[name].train, session.teacher_folder(name)
    if training is not None and not folder.exists():
        return Check(f"teacher {name}", OK, f"to be trained on {training.reward}")
    lora = read_lora(folder)
    ranks = sorted({factors.rank for factors in lora.modules.values()})
    numbers = sum(factors.a.numel() + factors.b.numel() for factors in lora.modules.values())
    fact = f"{len(lora.modules)} modules, rank {' to '.join(map(str, ranks[:1] + ranks[1:][-1:]))}, {numbers:,} numbers"
    if skeleton.adapters is None:
        return Check(f"teacher {name}", WARNING, f"{fact}, not tried on the base, which does not open", "mend the base")
    skeleton.adapters.load(name, lora)
    return Check(f"teacher {name}", OK, fact)


def trained(session: Session, skeleton: Skeleton) -> Iterator[Check]:
    """One check for each adapter that a run will train, as far as the base opens."""
    if skeleton.adapters is None:
        return
    for name, (shape, _) in _trainings(session.recipe).items():
        yield looked(f"adapter {name}", partial(_trained, skeleton, skeleton.adapters, name, shape))


def _trained(skeleton: Skeleton, adapters: Adapters, name: str, shape: AdapterConfig) -> Check:
    fact = f"{skeleton.size(adapters, shape):,} numbers to train, rank {shape.rank}, alpha {shape.alpha:g}"
    return Check(f"adapter {name}", OK, fact)


def _trainings(recipe: Recipe) -> dict[str, tuple[AdapterConfig, TrainConfig]]:
    """The shapes of all adapters that a run trains, and how each is optimised."""
    policies = {name: teacher.train for name, teacher in recipe.teachers.items() if teacher.train is not None}
    found = {name: (policy.adapter, policy.optim) for name, policy in policies.items()}
    if isinstance(recipe.coldstart, SftConfig):
        found["coldstart"] = (recipe.distill or DistillConfig()).adapter, recipe.coldstart.optim
    if recipe.grpo_mix is not None:
        found["grpo_mix"] = recipe.grpo_mix.adapter, recipe.grpo_mix.optim
    if recipe.distill is not None:
        found["student"] = recipe.distill.adapter, recipe.distill.optim
    return found


def kept(optim: TrainConfig) -> int:
    """The checkpoints of a stage that there are at one time: those that stay, and the one being written."""
    made = -(-optim.updates // optim.checkpoint_every)
    return (made if optim.keep is None else min(made, optim.keep)) + (optim.best is not None) + 1


def needed(session: Session, skeleton: Skeleton) -> dict[str, float]:
    """Bytes that a run will write: conditions that its cache lacks, and checkpoints; nothing if the base is unknown."""
    if skeleton.adapters is None:
        return {}
    written = 0
    for shape, optim in _trainings(session.recipe).values():
        with suppress(FlowOpdError):
            written += skeleton.size(skeleton.adapters, shape) * FP32 * (STATES * kept(optim) + COPIES)
    there = sum(file.stat().st_size for file in (session.out / "cache").rglob("*.safetensors"))
    texts = _encoded(session)
    return {
        f"{len(texts)} encoded prompts": max(0, session.condition_bytes() * len(texts) - there),
        "checkpoints": written,
    }


def _encoded(session: Session) -> set[str]:
    """The texts that a run will encode, as far as they can be read."""
    recipe, texts = session.recipe, {NULL}
    every = recipe.distill is not None or isinstance(recipe.coldstart, SftConfig)
    labels = [label for label, files in recipe.prompts.items() if files.train is not None]
    for label in labels if every else {task.prompts for task in recipe.rewarded()}:
        with suppress(FlowOpdError):
            read = session.prompts(label, "train")
            texts |= {prompt.text for prompt in (with_wordings(read) if recipe.distill is not None else read)}
    if recipe.evaluate is not None:
        with suppress(FlowOpdError):
            groups = evaluation_prompts(session, recipe.evaluate).values()
            texts |= {prompt.text for group in groups for prompt in group}
    return texts
