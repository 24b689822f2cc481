"""The model card of an export: what it is, how to use it, how good it is, how it was made; no path of a machine."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from flowopd.formats import WHOLE, Trained
from flowopd.formats.comfyui import fits_comfyui
from flowopd.hub import is_local, public_name
from flowopd.models.published import UNKNOWN_LICENCE, licence_of
from flowopd.models.source import INDEX
from flowopd.prompts import DATASET
from flowopd.recipe import Recipe, SftConfig, TeacherConfig
from flowopd.results import BASE, GRPO_MIX, STUDENT, TEACHER, Results
from flowopd.session import Session
from flowopd.stages.checkpoints import CHECKPOINT, parted
from flowopd.stages.readback import Check
from flowopd.stages.sample import plain_call
from flowopd.stages.templates import keywords, rendered

CARD = "README.md"
ELSEWHERE = {"device", "compile", "gradient_checkpointing", "evaluate", "samples", "judges"}
"""Parts of a recipe that no trained weight depends on; the card leaves them out."""


def write_card(
    folder: Path, session: Session, model: str, form: str, place: str, trained: Trained, check: Check
) -> None:
    """Write README.md into an export's folder; `place` is the name that users load it by."""
    recipe = session.recipe
    facts = {
        "form": form,
        "place": place,
        "model": model,
        "recipe": recipe,
        "trained": trained,
        "check": check,
        "what": _what(model, recipe),
        "run": session.out.resolve().name,
        **_use(session, model, form, folder, trained),
        **_origin(session, trained),
    }
    text = rendered("card.md.jinja", facts, quoted=shlex.quote)
    (folder / CARD).write_text(text.lstrip(), encoding="utf-8")


def _use(session: Session, model: str, form: str, folder: Path, trained: Trained) -> dict[str, Any]:
    """What the card says of using it."""
    base, transformer, results = session.recipe.base, session.model.transformer, _results(session)
    dtype = f"{trained.dtype if form == WHOLE else session.model.dtype}".removeprefix("torch.")
    return {
        "front": yaml.safe_dump(_front(base, form), sort_keys=False, allow_unicode=True),
        "on_hub": not is_local(base),
        "base_place": Path(base).name if is_local(base) else base,
        "whole": (folder / INDEX).exists(),
        "transformer": type(transformer).__name__,
        "dtype": dtype,
        "dtype_option": "" if dtype == "float32" else f", dtype=torch.{dtype}",
        "load_options": "".join(f", {keywords({name: value})}" for name, value in session.model.load_options.items()),
        "call": keywords(plain_call(session, model)),
        "fits_comfyui": form != "comfyui" or fits_comfyui(transformer),
        "results": f"{results}\n" if results else "",
        "in_results": bool(results and model in results.models),
    }


def _origin(session: Session, trained: Trained) -> dict[str, Any]:
    """What the card says of how it was made."""
    recipe, manifest = session.recipe, _manifest(session)
    hashes = _hashes(session, manifest)
    tree = _compact(recipe)
    return {
        "shape": _shape(trained),
        "base_hash": hashes[BASE],
        "teachers": [
            {"name": name, "source": _source(teacher), "sha256": hashes.get(name, "unknown")}
            for name, teacher in recipe.teachers.items()
        ],
        "start": _start(recipe),
        "loss_form": manifest.get("loss_form") or "none",
        "settings": _settings(recipe),
        "licence": _licence(recipe.base),
        "versions": ", ".join(f"{name} {number}" for name, number in manifest.get("versions", {}).items()),
        "recipe_text": yaml.safe_dump(_public(tree), sort_keys=False, allow_unicode=True, width=100),
        "shortened": _public(tree) != tree,
    }


def _front(base: str, form: str) -> dict[str, Any]:
    """The head of the card, as the hub reads it; it takes only hub ids as `base_model`."""
    kind = () if form == WHOLE else ("lora",)
    return {
        **({} if is_local(base) else {"base_model": base}),
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusers", *kind, "flow-matching", "on-policy-distillation", "flow-opd"],
        **licence_of(base),
    }


def _what(model: str, recipe: Recipe) -> str:
    """What a row of a run is, in a sentence."""
    teachers = f"{len(recipe.teachers)} experts" if len(recipe.teachers) > 1 else "its expert"
    if model.startswith(TEACHER):
        return f"The expert `{model.removeprefix(TEACHER)}`, which the run took as a teacher."
    if model == STUDENT:
        return f"One adapter that {teachers} were distilled into, on its own trajectories (Flow-OPD, arXiv 2605.08063)."
    if model == GRPO_MIX:
        return "The baseline that was trained on all rewards at once by Flow-GRPO (arXiv 2505.05470)."
    if model.startswith(CHECKPOINT):
        return f"The run's stage `{parted(model)[0]}` as it was after {parted(model)[1]} updates."
    return f"The cold start of the run: {_start(recipe)}."


def _start(recipe: Recipe) -> str:
    if recipe.coldstart is None:
        return "none"
    if isinstance(recipe.coldstart, SftConfig):
        return "fine-tuning by flow matching on images that the experts drew"
    rank = recipe.coldstart.rank
    return "the mean of the experts' weight changes, " + ("exact" if rank is None else f"truncated to rank {rank}")


def _shape(trained: Trained) -> str:
    """The size of an adapter in words."""
    modules = trained.lora.modules.values()
    ranks = " to ".join(f"{value}" for value in _ends({factors.rank for factors in modules}))
    alphas = " to ".join(f"{value:g}" for value in _ends({factors.scale * factors.rank for factors in modules}))
    return f"a LoRA of rank {ranks} and alpha {alphas} on {len(modules)} modules"


def _ends(values: set[Any]) -> list[Any]:
    """The smallest and the largest, or the only one."""
    return sorted({min(values), max(values)})


def _source(teacher: TeacherConfig) -> str:
    if teacher.adapter is not None:
        return f"`{public_name(teacher.adapter)}`"
    if teacher.transformer is not None:
        return f"`{public_name(teacher.transformer)}`, a whole transformer"
    return f"trained in the run by Flow-GRPO on `{teacher.train.reward}`" if teacher.train else "unknown"


def _settings(recipe: Recipe) -> dict[str, str]:
    """The settings that a reader asks for first; the recipe has the rest."""
    general = {
        "resolution": f"{recipe.resolution} pixels" if recipe.resolution else "the base's own",
        "dtype of the base": recipe.dtype,
        "seed": f"{recipe.seed}",
    }
    config = recipe.distill
    if config is None:
        return general
    sampling, optim, anchor = config.sampling, config.optim, config.anchor
    noise = "" if sampling.sampler == "ode" else f" with noise {sampling.noise:g}"
    turns = f", {config.labels_per_update} labels in turn" if config.labels_per_update else ""
    return general | {
        "distillation": f"{optim.updates} updates of {config.samples_per_label} trajectories a label{turns}, "
        f"learning rate {optim.learning_rate:g}, EMA {optim.ema:g}",
        "trajectories": f"{sampling.steps} steps of {sampling.sampler}{noise}, guidance {sampling.guidance:g}",
        "anchor": f"`{anchor.model}`, weight {anchor.weight:g}" if anchor else "none",
    }


def _licence(base: str) -> str:
    words = licence_of(base)
    if words == UNKNOWN_LICENCE:
        return "unknown to flowopd: see where the base comes from"
    return f"{words['license_name']}: see the base's repository"


def _hashes(session: Session, manifest: Mapping[str, Any]) -> dict[str, str]:
    """sha256 of the base and the teachers: the run's own record, and of the files for what it lacks."""
    recorded = manifest.get("sha256", {})
    missing = [name for name in session.recipe.teachers if name not in recorded]
    there = [name for name in missing if session.whole_teacher(name) or session.teacher_folder(name).exists()]
    return {**session.hashes(there), **recorded}


def _results(session: Session) -> Results | None:
    file = session.out / "results.json"
    return Results.load(file) if file.exists() else None


def _manifest(session: Session) -> dict[str, Any]:
    file = session.out / "manifest.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _compact(recipe: Recipe) -> dict[str, Any]:
    """The recipe's plain values that are not defaults."""
    tree = recipe.model_dump(mode="json", exclude_defaults=True, exclude=ELSEWHERE)
    if recipe.coldstart is not None:
        tree["coldstart"]["kind"] = recipe.coldstart.kind
    return tree


def _public(tree: Any) -> Any:
    """Plain values without places of this machine: see `public_name`."""
    if isinstance(tree, Mapping):
        return {name: _public(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_public(value) for value in tree]
    if isinstance(tree, str):
        kind = DATASET if tree.startswith(DATASET) else ""
        return kind + public_name(tree.removeprefix(kind))
    return tree
