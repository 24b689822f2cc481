"""What a machine and a recipe lack, found before a run does: nothing is trained, and no weights of the base are read.

Every look is a check with a fact and a mend; one that fails keeps none of the others from being made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from flowopd.hub import offline, silence
from flowopd.processes import state
from flowopd.recipe import Recipe
from flowopd.session import Session
from flowopd.stages.doctor import machine
from flowopd.stages.doctor.access import hub, missing
from flowopd.stages.doctor.check import FAILED, OK, WARNING, Check, looked
from flowopd.stages.doctor.judges import judges
from flowopd.stages.doctor.material import prompts, routes
from flowopd.stages.doctor.weights import Skeleton, base, needed, teachers, trained

__all__ = ["FAILED", "OK", "WARNING", "Check", "doctor", "passed"]


def doctor(recipe: Recipe | None = None, out: str | Path = "runs") -> list[Check]:
    """All checks of the machine, and of a recipe that is to run into the folder `out`, if one is given.

    The hub has a few seconds to answer; if it does not, what its cache does not hold is missing. Judges are loaded and
    score golden pictures. `out` is looked at, not made.
    """
    wanted = recipe.device if recipe and recipe.device else str(state().device)
    device = machine.device(wanted, recipe.dtype if recipe else "float32")
    checks, quiet = [machine.versions(), device, machine.threads()], silence()
    if recipe is None:
        return [*checks, hub(quiet, []), machine.disk(Path(out))]
    usable = recipe if device.state != FAILED else recipe.model_copy(update={"device": "cpu"})
    session = Session(usable, Path(out))
    with offline("see hub") if quiet else nullcontext():
        return [*checks, hub(quiet, missing(session)), *_of_recipe(session)]


def passed(checks: Sequence[Check]) -> bool:
    """Whether none of the checks failed."""
    return all(check.state != FAILED for check in checks)


def _of_recipe(session: Session) -> Iterator[Check]:
    skeleton = Skeleton(session)
    yield looked("base", lambda: base(session))
    yield from prompts(session)
    yield from routes(session)
    yield from teachers(session, skeleton)
    yield from trained(session, skeleton)
    yield from judges(session)
    yield looked("disk", lambda: machine.disk(session.out, needed(session, skeleton)))
