"""The prompts of a recipe, read to the last line, and where they are routed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from flowopd.errors import CheckpointError, DataError
from flowopd.recipe import Recipe
from flowopd.session import Session
from flowopd.stages.beforehand import check_anchor
from flowopd.stages.doctor.check import OK, WARNING, Check, looked


def prompts(session: Session) -> Iterator[Check]:
    """One check for each source of prompts."""
    for label, split in sources(session.recipe):
        yield looked(f"prompts {label}.{split}", lambda label=label, split=split: _source(session, label, split))


def sources(recipe: Recipe) -> list[tuple[str, str]]:
    """Label and split of every source that a recipe names."""
    return [(label, split) for label, files in recipe.prompts.items() for split, source in files if source is not None]


def _source(session: Session, label: str, split: str) -> Check:
    read = session.prompts(label, split)
    texts = [prompt.text for prompt in read]
    others = [text for prompt in read for text in prompt.wordings]
    repeated, cut = len(texts) - len(set(texts)), _cut(session, [*texts, *others])
    fact = f"{len(texts)} prompts, {repeated} of them repeated, the longest of {max(map(len, texts))} characters"
    fact += f", and {len(others)} other wordings" if others else ""
    mends = ["drop what is repeated, unless it is to weigh more"] if repeated else []
    mends += [f"shorten the {len(cut)} that the text encoders cut, such as {cut[0][:80]!r}"] if cut else []
    return Check(f"prompts {label}.{split}", WARNING if mends else OK, fact, "; ".join(mends))


def _cut(session: Session, texts: Sequence[str]) -> list[str]:
    """Those of the prompts that are too long, as far as the base's tokenizers are here to tell."""
    with suppress(CheckpointError):
        return session.model.cut(texts)
    return []


def routes(session: Session) -> Iterator[Check]:
    """The check that every training prompt has a teacher, and the anchor is one, where a student is distilled."""
    if session.recipe.distill is not None:
        yield looked("routes", lambda: _routes(session))


def _routes(session: Session) -> Check:
    every = session.recipe.trained_labels()
    labels = list(dict.fromkeys(label for given in every for label in _labels(session, given)))
    router = session.router(labels)
    check_anchor(session.recipe)
    known = session.routed(labels)
    shares = dict.fromkeys(labels, "the expert that each text resembles") | {
        label: " and ".join(f"{name} {weight:.0%}" for name, weight in zip(router.teachers, row, strict=True) if weight)
        for label, row in zip(known, router(known).tolist(), strict=True)
    }
    return Check("routes", OK, ", ".join(f"{label} to {share}" for label, share in shares.items()))


def _labels(session: Session, label: str) -> list[str]:
    """A label, and those that its training prompts, as far as they can be read, bring along."""
    with suppress(DataError):
        return [label, *(prompt.label for prompt in session.prompts(label, "train"))]
    return [label]
