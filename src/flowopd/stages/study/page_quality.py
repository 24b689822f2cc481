"""The parts of a study's page on quality: the claims, what the columns are, and the tables of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import singledispatch

from flowopd.results import AVERAGE, line
from flowopd.stages.study.records import Drawing, Line, Reached, Study, Verdict, label
from flowopd.suite import Table, parted

STANDINGS = {None: "not measured yet", "holds": "**holds**", "fails": "**fails**", "undecided": "undecided"}


def claims(verdicts: Sequence[Verdict | Reached]) -> list[str]:
    """What was claimed, and what was measured."""
    if not verdicts:
        return []
    heads = ("claim", "asked", "measured", "over prompts", "over seeds", "")
    rows = [line(*heads), line("---", "---:", "---:", "---:", "---:", "---")]
    rows += [line(_said(verdict), *_measured(verdict)) for verdict in verdicts]
    says = (
        "A claim holds, or fails, where all of its intervals do (95 %), else it is undecided: over prompts, a "
        "difference prompt by prompt; and over training seeds, by Welch's t, unless a trained line has one seed alone, "
        "which leaves open what another would give. One of passes has no interval."
    )
    if any(verdict.claim.afterwards for verdict in verdicts):
        says += " What was found afterwards was read off results that were there: it takes new seeds to tell."
    return ["## What was claimed", says, "\n".join(rows)]


def _said(verdict: Verdict | Reached) -> str:
    return verdict.claim.says + (" (found afterwards)" if verdict.claim.afterwards else "")


@singledispatch
def _measured(verdict: Verdict | Reached) -> tuple[str, ...]:
    """What was asked, what was measured with its intervals, and whether that holds."""
    raise AssertionError(verdict)


@_measured.register
def _(verdict: Verdict) -> tuple[str, ...]:
    found, asked = verdict.measured, f"{verdict.claim.asked:+.3f}"
    if found is None:
        return asked, "", "", "", verdict.lacks or STANDINGS[None]
    seeds = "one seed" if verdict.over_seeds is None else _interval(verdict.over_seeds)
    return asked, f"{found.mean:+.3f}", _interval(found.ci95), seeds, STANDINGS[verdict.standing]


@_measured.register
def _(verdict: Reached) -> tuple[str, ...]:
    asked = f"{verdict.claim.within:.0%} of the passes"
    if verdict.holds is None:
        return asked, "", "", "", STANDINGS[None]
    reached, part = verdict.first, verdict.share
    measured = "never" if reached is None else f"{part:.1%}" if part is not None else f"{reached.passes:,.0f} against 0"
    return asked, measured, "", "", STANDINGS["holds" if verdict.holds else "fails"]


def _interval(ends: tuple[float, float]) -> str:
    return f"{ends[0]:+.3f} to {ends[1]:+.3f}"


def columns(study: Study) -> list[str]:
    """What each metric is, for all tables."""
    if not study.columns:
        return []
    rows = [line("column", "judge", "prompts", "of them", "in the average"), line("---", "---", "---", "---:", "---")]
    rows += [
        line(name, f"`{one.judge}`", f"{one.label}, {one.split}", str(one.n), "yes" if one.averaged else "")
        for name, one in study.columns.items()
    ]
    return ["## What the columns are", _drawn(study), "\n".join(rows)]


def _drawn(study: Study) -> str:
    """How pictures are drawn: as most rows do, and who does otherwise."""
    ways = [(row, _way(one)) for row, one in study.drawing.items()]
    usual = Counter(way for _, way in ways).most_common(1)[0][0]
    others = [f"{row} {way}" for row, way in ways if way != usual]
    return (
        f"Every model draws {usual}, with the same noise for all{'; but ' + ', '.join(others) if others else ''}. The "
        "average is the mean of the columns that it names."
    )


def _way(one: Drawing) -> str:
    guided = "without guidance" if one.guidance == 1 else f"at guidance {one.guidance:g}"
    pictures = "one picture" if one.images == 1 else f"{one.images} pictures"
    experts = "".join(f", {name} at {guidance:g}" for name, guidance in one.experts.items())
    return f"{pictures} a prompt in {one.steps} steps of the {one.sampler.upper()} {guided}{experts}"


def table(study: Study, asked: Table) -> list[str]:
    """Nothing while there are not two rows to compare, of a table that has several."""
    shown = {
        name: study.lines[name]
        for row in asked.rows
        for name in study.lines
        if parted(name)[0] == row and (asked.models is None or parted(name)[1] in asked.models)
    }
    if len({parted(name)[0] for name in shown}) < min(2, len(asked.rows)):
        return []
    metrics = asked.metrics or list(dict.fromkeys(metric for found in shown.values() for metric in found.metrics))
    heads = sorted(metrics, key=lambda metric: metric == AVERAGE)
    rows = [line("", *heads, "seeds"), line("---", *("---:" for _ in heads), "---:")]
    rows += [line(label(name), *_cells(found, heads), str(len(found.by_seed))) for name, found in shown.items()]
    return [f"## {asked.title}", *([asked.says] if asked.says else []), "\n".join(rows)]


def _cells(found: Line, heads: Iterable[str]) -> list[str]:
    return [_cell(found, head) for head in heads]


def _cell(found: Line, head: str) -> str:
    """A mean over prompts, and the range of its seeds if it has several that are not all one."""
    if head not in found.metrics:
        return ""
    own = [means[head] for means in found.by_seed.values()]
    seeds = f" ({min(own):.3f} to {max(own):.3f})" if len(own) > 1 else ""
    return f"{found.metrics[head]}{seeds}"
