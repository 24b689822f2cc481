"""A study as a page in Markdown: what was claimed, the tables, what it cost, how to make it again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import singledispatch

from flowopd.results import AVERAGE, line
from flowopd.stages.study.effort import best, first_as_good
from flowopd.stages.study.records import Line, Reached, Spot, Study, Verdict, label, share
from flowopd.suite import Table, parted


def page(study: Study, pictures: Mapping[str, str]) -> str:
    """The page; `pictures` are files beside it by their caption."""
    parts = [
        "# Results",
        f"Every number on this page is read from the results of `flowopd run recipes/{study.suite}` by "
        f"`flowopd study recipes/{study.suite}`. Means over prompts, and over seeds where there are several; ± is half "
        "of the 95 % interval over prompts. The last column has the average of each seed.",
        *_count(study),
        *_claims(study.verdicts),
        *(part for name in study.tables for part in _table(study, study.tables[name])),
        *_compute(study),
        *_interference(study),
        *(f"## {caption}\n\n![{caption}]({file})" for caption, file in pictures.items()),
        *_costs(study),
        *_provenance(study),
        *_missing(study),
    ]
    return "\n\n".join(parts) + "\n"


def _count(study: Study) -> list[str]:
    """How much of the suite is below."""
    runs, lacking = sum(len(row.seeds) for row in study.rows.values()), len(study.missing) + len(study.stale)
    shown = f"{runs - lacking} of the suite's {runs} runs are on this page; the last section names the others."
    return [shown] if lacking else []


def _missing(study: Study) -> list[str]:
    names = [f"`{name}`" for name in study.missing]
    names += [f"`{name}` (made before a change of {changed})" for name, changed in study.stale.items()]
    return ["## Not run yet", f"{', '.join(names)}."] if names else []


def _claims(verdicts: Sequence[Verdict | Reached]) -> list[str]:
    if not verdicts:
        return []
    rows = [line("claim", "asked", "measured", "interval", ""), line("---", "---:", "---:", "---:", "---")]
    rows += [line(verdict.claim.says, *_measured(verdict)) for verdict in verdicts]
    return ["## What was claimed", "\n".join(rows)]


@singledispatch
def _measured(verdict: Verdict | Reached) -> tuple[str, str, str, str]:
    """What was asked, what was measured with its interval, and whether that holds."""
    raise AssertionError(verdict)


@_measured.register
def _(verdict: Verdict) -> tuple[str, str, str, str]:
    found, asked = verdict.measured, f"{verdict.claim.at_least:+.3f}"
    if found is None:
        return asked, "", "", _standing(verdict)
    return asked, f"{found.mean:+.3f}", f"{found.ci95[0]:+.3f} to {found.ci95[1]:+.3f}", _standing(verdict)


@_measured.register
def _(verdict: Reached) -> tuple[str, str, str, str]:
    asked = f"{verdict.claim.within:.0%} of the passes"
    if verdict.holds is None:
        return asked, "", "", "not measured yet"
    reached = verdict.first
    measured = "never" if reached is None else _share(verdict.share) or f"{reached.passes:,.0f} against 0"
    return asked, measured, "", "**holds**" if verdict.holds else "**does not hold**"


def _standing(verdict: Verdict) -> str:
    """Whether a claim holds, and whether its whole interval does."""
    if verdict.measured is None:
        return "not measured yet"
    if verdict.measured.ci95[0] >= verdict.claim.at_least:
        return "**holds**, interval and all"
    return "holds in the mean" if verdict.holds else "**does not hold**"


def _table(study: Study, table: Table) -> list[str]:
    """Nothing while there are not two rows to compare, of a table that has several."""
    shown = {
        name: study.lines[name]
        for row in table.rows
        for name in study.lines
        if parted(name)[0] == row and (table.models is None or parted(name)[1] in table.models)
    }
    if len({parted(name)[0] for name in shown}) < min(2, len(table.rows)):
        return []
    metrics = table.metrics or list(dict.fromkeys(metric for found in shown.values() for metric in found.metrics))
    columns = sorted(metrics, key=lambda metric: metric == AVERAGE)
    rows = [line("", *columns, "seeds"), line("---", *("---:" for _ in columns), "---")]
    rows += [line(label(name), *_cells(found, columns), _seeds(found)) for name, found in shown.items()]
    return [f"## {table.title}", *([table.says] if table.says else []), "\n".join(rows)]


def _cells(found: Line, columns: Iterable[str]) -> list[str]:
    return [str(found.metrics.get(column, "")) for column in columns]


def _seeds(found: Line) -> str:
    if len(found.by_seed) == 1:
        return "one"
    return ", ".join(f"{means[AVERAGE]:.3f}" for means in found.by_seed.values())


def _compute(study: Study) -> list[str]:
    """Each row's best checkpoint, and its first that is as good as the best of the row that the suite names."""
    if study.compute is None:
        return []
    curves = {row: study.curves[row] for row in study.compute.rows if row in study.curves}
    if not curves:
        return []
    top = best(study.curves.get(study.compute.reach or "", ()))
    heads = ["best average", "gap closed", "after", "passes", "seconds"]
    asked = [] if top is None else [f"{top.average:.3f} after", "passes", "seconds", "share of passes", "of seconds"]
    rows = [line("", *heads, *asked), line("---", *("---:" for _ in (*heads, *asked)))]
    for row, curve in curves.items():
        own = best(curve)
        cells = [] if own is None else [f"{own.average:.3f}", _share(own.closed), *_spent(own)]
        rows.append(line(row, *cells, *([] if top is None else _reaching(curve, top))))
    says = (
        "Each row by its checkpoints, at the mean over seeds: the best one, what its training had taken by then, and "
        "the stages before it that the run made itself"
    )
    says += "." if top is None else f"; then the first that reaches the best average of {study.compute.reach}."
    return ["## Quality against compute", says, "\n".join(rows)]


def _reaching(curve: Sequence[Spot], top: Spot) -> list[str]:
    first = first_as_good(curve, top.average)
    if first is None:
        return ["never", "", "", "", ""]
    shares = (share(first.passes, top.passes), share(first.seconds, top.seconds))
    return [*_spent(first), *map(_share, shares)]


def _spent(spot: Spot) -> list[str]:
    """Updates, passes and seconds."""
    seconds = "" if spot.seconds is None else f"{spot.seconds:,.0f}"
    return [f"{spot.stage} {spot.update}", f"{spot.passes:,.0f}", seconds]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _interference(study: Study) -> list[str]:
    """What the matrices come to."""
    found = [(name, one) for name, mine in study.interference.items() for one in mine]
    if not found:
        return []
    heads = ("loss", "same task", "different tasks", "different over same", "repeats")
    rows = [line("weights", *heads), line("---", "---", *("---:" for _ in heads[1:]))]
    for name, one in found:
        cosines = ["" if value is None else f"{value:+.3f}" for value in (one.same, one.others)]
        ratio = None if one.same is None or one.same <= 0 else share(one.others, one.same)
        rows.append(line(name, one.stage, *cosines, "" if ratio is None else f"{ratio:+.2f}", str(one.repeats)))
    says = (
        "Mean cosines between gradients of the same adapter, each of a batch of its own: of one task, which tells how "
        "well a gradient is known, and of different tasks. If all tasks wanted the same the two would be alike."
    )
    return ["## Do the tasks pull apart", says, "\n".join(rows)]


def _costs(study: Study) -> list[str]:
    trained = {row: cost for row, cost in study.costs.items() if cost.passes}
    if not trained:
        return []
    teaching = sum(study.experts.values())
    rows = [
        line("row", "changes", "passes", "with its experts'", "by stage", "seconds"),
        line("---", "---", "---:", "---:", "---", "---:"),
    ]
    if teaching:
        rows.append(line("the experts' own", "", f"{teaching:,.0f}", "", _stages(study.experts), ""))
    for row, cost in trained.items():
        changes = ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in study.rows[row].set.items())
        own = sum(cost.passes.values())
        whole = f"{own + cost.taught:,.0f}" if cost.taught else ""
        rows.append(line(row, changes, f"{own:,.0f}", whole, _stages(cost.passes), f"{cost.seconds:,.0f}"))
    says = (
        "A pass is one sample through the transformer; a backward counts as two. Seconds are those of the updates, on "
        "machines that did other things too, and were not all alike."
    )
    return ["## What each row's training took", says, "\n".join(rows)]


def _stages(passes: Mapping[str, float]) -> str:
    return ", ".join(f"{stage} {count:,.0f}" for stage, count in passes.items())


def _provenance(study: Study) -> list[str]:
    commits = ", ".join(f"`{commit[:10]}`" for commit in study.commits)
    machines = "; ".join(f"`{machine}`" for machine in study.hardware)
    again = (
        f"`flowopd run recipes/{study.suite} --row ROW` makes one row again, on the same machine with the same "
        f"numbers, then `flowopd study recipes/{study.suite}` this page. Made at {commits}, on {machines}."
    )
    return ["## Made again", again]
