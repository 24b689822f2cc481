"""A study as a page in Markdown: what was claimed, the tables, what it cost, how to make it again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from flowopd.results import AVERAGE
from flowopd.stages.study.records import Line, Study, Verdict
from flowopd.stages.summary import cell, line
from flowopd.suite import Table


def page(study: Study, pictures: Mapping[str, str]) -> str:
    """The page; `pictures` are files beside it by their caption."""
    parts = [
        "# Results",
        f"Every number on this page is read from the results of `flowopd run recipes/{study.suite}` by "
        f"`flowopd study recipes/{study.suite}`. Means over prompts, and over seeds where there are several; ± is half "
        "of the 95 % interval over prompts. The last column has the average of each seed.",
        *_missing(study),
        *_claims(study.verdicts),
        *(part for name in study.tables for part in _table(study, study.tables[name])),
        *(f"## {caption}\n\n![{caption}]({file})" for caption, file in pictures.items()),
        *_costs(study),
        *_provenance(study),
    ]
    return "\n\n".join(parts) + "\n"


def _missing(study: Study) -> list[str]:
    if not study.missing:
        return []
    return [f"Not run yet, and so missing below: {', '.join(f'`{name}`' for name in study.missing)}."]


def _claims(verdicts: Sequence[Verdict]) -> list[str]:
    if not verdicts:
        return []
    rows = [line("claim", "asked", "measured", "interval", ""), line("---", "---:", "---:", "---:", "---")]
    for verdict in verdicts:
        found, asked = verdict.measured, f"{verdict.claim.at_least:+.3f}"
        measured = (
            ("", "") if found is None else (f"{found.mean:+.3f}", f"{found.ci95[0]:+.3f} to {found.ci95[1]:+.3f}")
        )
        rows.append(line(verdict.claim.says, asked, *measured, _standing(verdict)))
    return ["## What was claimed", "\n".join(rows)]


def _standing(verdict: Verdict) -> str:
    """Whether a claim holds, and whether its whole interval does."""
    if verdict.measured is None:
        return "not measured yet"
    if verdict.measured.ci95[0] >= verdict.claim.at_least:
        return "**holds**, interval and all"
    return "holds in the mean" if verdict.holds else "**does not hold**"


def _table(study: Study, table: Table) -> list[str]:
    shown = {
        name: study.lines[name]
        for row in table.rows
        for name in study.lines
        if name.split("/")[0] == row and (table.models is None or name.split("/", 1)[1] in table.models)
    }
    if not shown:
        return []
    metrics = table.metrics or list(dict.fromkeys(metric for found in shown.values() for metric in found.metrics))
    columns = sorted(metrics, key=lambda metric: metric == AVERAGE)
    rows = [line("", *columns, "seeds"), line("---", *("---:" for _ in columns), "---")]
    rows += [line(_label(name), *_cells(found, columns), _seeds(found)) for name, found in shown.items()]
    return [f"## {table.title}", *([table.says] if table.says else []), "\n".join(rows)]


def _label(name: str) -> str:
    """A line's name without what says nothing: `student/student` is `student`."""
    row, model = name.split("/", 1)
    return model if row == "experts" else row if model in ("student", "grpo_mix") else f"{row}: {model}"


def _cells(found: Line, columns: Iterable[str]) -> list[str]:
    return [cell(found.metrics.get(column)) for column in columns]


def _seeds(found: Line) -> str:
    if len(found.by_seed) == 1:
        return "one"
    return ", ".join(f"{means[AVERAGE]:.3f}" for means in found.by_seed.values())


def _costs(study: Study) -> list[str]:
    trained = {row: cost for row, cost in study.costs.items() if cost.passes}
    if not trained:
        return []
    rows = [line("row", "changes", "passes", "by stage", "seconds"), line("---", "---", "---:", "---", "---:")]
    for row, cost in trained.items():
        stages = ", ".join(f"{stage} {passes:,.0f}" for stage, passes in cost.passes.items())
        changes = ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in study.rows[row].set.items())
        rows.append(line(row, changes, f"{sum(cost.passes.values()):,.0f}", stages, f"{cost.seconds:,.0f}"))
    says = (
        "A pass is one sample through the transformer; a backward counts as two. Seconds are those of the updates, on "
        "a machine that did other things too."
    )
    return ["## What each row's training took", says, "\n".join(rows)]


def _provenance(study: Study) -> list[str]:
    commits = ", ".join(f"`{commit[:10]}`" for commit in study.commits)
    machines = "; ".join(f"`{machine}`" for machine in study.hardware)
    again = (
        f"`flowopd run recipes/{study.suite} --row ROW` makes one row again, on the same machine with the same "
        f"numbers, then `flowopd study recipes/{study.suite}` this page. Made at {commits}, on {machines}."
    )
    return ["## Made again", again]
