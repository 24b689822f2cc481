"""A recipe's stages in order; what is done is skipped, what was stopped goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from flowopd.durable import is_made, make_folder
from flowopd.errors import ConfigError
from flowopd.hub import check_shipped
from flowopd.identity import differences, training
from flowopd.lock import held
from flowopd.manifest import MANIFEST, read_manifest
from flowopd.processes import agreed, is_main, one_by_one, only_main, wait
from flowopd.provenance import maker, write_manifest
from flowopd.recipe import RUN, Recipe, make_recipe
from flowopd.results import Results
from flowopd.session import Own, Session
from flowopd.stages.beforehand import check, check_named
from flowopd.stages.coldstart import cold_start
from flowopd.stages.distill import distill
from flowopd.stages.doctor.machine import threads
from flowopd.stages.evaluate import RESULTS, evaluate, evaluated
from flowopd.stages.mix import train_mix
from flowopd.stages.report.page import write_report
from flowopd.stages.sample import draw_wall
from flowopd.stages.summary import WALL, write_summary
from flowopd.stages.teacher import train_teacher
from flowopd.tracking import say, warn


def run(recipe: Recipe, out: str | Path, own: Own | None = None) -> Results | None:
    """Every stage that the recipe has, into the folder `out`; returns the results if it evaluates.

    Run again, it goes on where it stopped. Raises ConfigError if `out` holds a run of another recipe, another process
    writes into it, or the recipe has no stage; what `check` refuses leaves no folder behind.
    """
    if not stages(recipe) and recipe.evaluate is None:
        raise ConfigError("the recipe has nothing to do; add distill, coldstart, grpo_mix or evaluate")
    session = _opened(recipe, out, own)
    check(session)
    _claim(session)
    with held(session.out):
        planned = ", ".join(f"{stage} ({fate})" for stage, fate in foreseen(recipe, out))
        say(f"{session.out}: {planned}")
        train(session)
        results = None if recipe.evaluate is None else judge(session, evaluated(session))
        only_main(lambda: write_manifest(session))
    return results


@dataclass(frozen=True)
class Stage:
    """A stage that trains: its name, the folder of the run that holds what it made, and how it is made."""

    name: str
    folder: str
    make: Callable[[Session], object]


def stages(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe that train, in order."""
    trained = [name for name, teacher in recipe.teachers.items() if teacher.train is not None]
    found = [Stage(f"teacher:{name}", f"teachers/{name}", partial(train_teacher, name=name)) for name in trained]
    found += [Stage("coldstart", "coldstart", cold_start)] if recipe.coldstart is not None else []
    found += [Stage("grpo_mix", "grpo_mix", train_mix)] if recipe.grpo_mix is not None else []
    return found + ([Stage("distill", "student", distill)] if recipe.distill is not None else [])


def train(session: Session) -> None:
    """Every stage of a checked run that trains; what is done is skipped. Raises as the stages do."""
    refuse_changes(session)
    missing = [stage for stage in stages(session.recipe) if _missing(session.out / stage.folder)]
    busy = threads()
    if missing and busy.mend:
        warn(f"{busy.fact}: {busy.mend}")
    for stage in missing:
        stage.make(session)


def foreseen(recipe: Recipe, out: str | Path, only: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """What a run into the folder `out` would do, by stage, or by these alone; nothing is opened or written.

    Raises ConfigError if `out` holds something else, or a run of another recipe, CheckpointError if what a stage made
    was changed since; for what the recipe names and has not as `check_named` does.
    """
    out = Path(out)
    check_named(recipe)
    refuse_other(out, recipe)
    fates = {stage.name: "done, skipped" if is_made(out / stage.folder) else "to do" for stage in stages(recipe)}
    judged = "made again where something changed" if (out / RESULTS).exists() else "to do"
    fates |= {"eval": judged} if recipe.evaluate is not None else {}
    return [(name, fate) for name, fate in fates.items() if only is None or name in only]


def judge(session: Session, before: Results | None = None) -> Results:
    """The table of a run's models, or the one of before, with its wall of pictures, report and summary.

    Raises ConfigError if the recipe has no `evaluate`.
    """
    results, out = before or evaluate(session), session.out
    draw_wall(session, session.recipe.evaluate)
    only_main(lambda: (write_report(out), write_summary(out), _show_wall(session)))
    return results


def _show_wall(session: Session) -> None:
    """The wall of pictures on the run's boards."""
    if (session.out / WALL).exists():
        with Image.open(session.out / WALL) as picture:
            session.show("wall", picture)


def _missing(folder: Path) -> bool:
    """Whether a stage is still to be run, as all processes see it.

    Raises CheckpointError if what it made was changed since.
    """
    return agreed(lambda: not is_made(folder))


def open_run(recipe: Recipe, out: str | Path, own: Own | None = None) -> Session:
    """The session of a run folder, which it claims with its manifest; `own` is what the caller brings.

    Raises ConfigError if the folder holds something else, or a run of another recipe, and says what differs.
    """
    session = _opened(recipe, out, own)
    _claim(session)
    return session


def _opened(recipe: Recipe, out: str | Path, own: Own | None) -> Session:
    """The session of a run folder, which is still as it was. Raises as `open_run` does."""
    check_shipped(recipe.base, "base: ")
    session = Session(recipe, Path(out), own)
    session.open()
    maker(session.model.device)
    refuse_other(session.out, recipe)
    wait()
    return session


def _claim(session: Session) -> None:
    """Refuse a folder that has become another run's, and write the manifest into one that is free."""
    with one_by_one():
        refuse_other(session.out, session.recipe)
        make_folder(session.out)
        if is_main() and not _trained(session.out):
            write_manifest(session)


def refuse_other(out: Path, recipe: Recipe) -> None:
    """Raises ConfigError if a folder holds something else than a run, or a run of another recipe."""
    if (out / MANIFEST).exists():
        _refuse_another(out, recipe)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        state = "not empty" if out.is_dir() else "no folder"
        raise ConfigError(f"{out} is {state} and holds no run; choose another --out")


def manifest_recipe(out: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a run folder was made from. Raises as `read_manifest` and `make_recipe` do."""
    return make_recipe(read_manifest(out)["recipe"], overrides, str(out / MANIFEST))


MODELS = ("teachers", "coldstart", "grpo_mix", "student", "checkpoints")
"""What training leaves in a run's folder: while there is none of it, the folder may change its recipe."""


def _trained(out: Path) -> bool:
    return any((out / name).exists() for name in MODELS)


def _refuse_another(out: Path, mine: Recipe) -> None:
    """What a manifest leaves out, as an older one may, counts as its default."""
    theirs, ours = (training(recipe) for recipe in (manifest_recipe(out), mine))
    changed = differences(theirs, ours)
    if changed and _trained(out):
        raise ConfigError(f"{out} holds a run with another {changed}; undo the change, or choose another --out")


def refuse_changes(session: Session) -> None:
    """Refuse to go on with a base that is run otherwise, or where other files lie by the names of the base, an expert
    or prompts: what is trained already saw those before. An expert that nothing learns from may change.

    Raises ConfigError for what is not as the manifest says.
    """
    if not _trained(session.out):
        return
    recipe = session.recipe
    learns = recipe.distill is not None or recipe.coldstart is not None
    brought = [name for name, teacher in recipe.teachers.items() if teacher.train is None and learns]
    now = {"sha256": session.hashes(brought), "sha256_prompts": session.training_hashes()}
    manifest = read_manifest(session.out)
    then = {kind: {name: manifest.get(kind, {}).get(name, value) for name, value in now[kind].items()} for kind in now}
    changed = differences(manifest_recipe(session.out).parts(*RUN) | then, session.recipe.parts(*RUN) | now)
    if changed:
        raise ConfigError(f"{session.out} was trained with another {changed}; restore it, or choose another --out")
