"""Whether the hub gives what a recipe takes from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flowopd.hub import ADAPTER_FILES, cached_folder, is_local, refusal
from flowopd.models.source import Source
from flowopd.session import Session
from flowopd.stages.doctor.check import FAILED, OK, WARNING, Check


def missing(session: Session) -> list[str]:
    """Hub ids that the recipe names and that the hub's cache does not hold."""
    recipe = session.recipe
    whole = [session.whole_teacher(name) for name in recipe.teachers]
    models = [Source(recipe.base, recipe.revision), *(source for source in whole if source is not None)]
    found = [source.name for source in models if not is_local(source.name) and source.folder is None]
    named = [(teacher.adapter, teacher.revision) for teacher in recipe.teachers.values() if teacher.adapter]
    named += [(judge.model, None) for judge in recipe.judges.values() if judge.model and judge.url is None]
    found += [name for name, revision in named if not is_local(name) and _folder(name, revision) is None]
    return list(dict.fromkeys(found))


def _folder(name: str, revision: str | None) -> Path | None:
    return cached_folder(name, revision, *ADAPTER_FILES)


def hub(quiet: str | None, wanted: Sequence[str]) -> Check:
    """Whether the hub answers (`quiet` says why not), and gives what is wanted and not here yet."""
    listed = ", ".join(wanted)
    if quiet and not wanted:
        return Check(
            "hub", WARNING, f"out of reach ({quiet})", "what is in its cache will do; connect for anything new"
        )
    if quiet:
        mend = "connect, or copy the cache from a machine that has them"
        return Check("hub", FAILED, f"out of reach ({quiet}), and not in its cache: {listed}", mend)
    refused = [why for why in map(refusal, wanted) if why]
    if refused:
        mend = "accept its terms on its page, and log in: hf auth login"
        return Check("hub", FAILED, ", ".join(refused), mend)
    return Check("hub", OK, f"answers; to be fetched: {listed or 'nothing'}")
