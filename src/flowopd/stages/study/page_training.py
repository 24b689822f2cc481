"""The parts of a study's page on training: quality against compute, gradients, costs, how to make it again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from flowopd.results import line
from flowopd.stages.interference import Cosines
from flowopd.stages.study.effort import after_passes, best, first_as_good
from flowopd.stages.study.records import Spot, Study, share


def compute(study: Study) -> list[str]:
    """Each row's best checkpoint, and its first that is as good as the best of the row that the suite names."""
    if study.compute is None:
        return []
    curves = {row: study.curves[row] for row in study.compute.rows if row in study.curves}
    if not curves:
        return []
    reach = study.compute.reach
    other = study.curves.get(reach or "", ())
    top = best(other)
    heads = ["seeds", "best average", "gap closed", "after", "passes", "seconds", "passes with its experts'"]
    asked = [f"{reach} after as many", f"{top.average:.3f} after", "passes", "share of its passes"] if top else []
    rows = [line("", *heads, *asked), line("---", *("---:" for _ in (*heads, *asked)))]
    for row, curve in curves.items():
        own = best(curve)
        if own is not None:
            whole = own.passes + study.costs[row].taught
            cells = [str(own.seeds), f"{own.average:.3f}", _share(own.closed), *_spent(own), f"{whole:,.0f}"]
            rows.append(line(row, *cells, *([_as_far(other, whole), *_reaching(curve, top)] if top else [])))
    says = (
        "Each row by the checkpoints that were judged, at the mean over seeds: the best, chosen by the test prompts "
        "that it is shown on, and what its training had taken by then, with the stages before it that the run made "
        "itself; its passes with those of the experts that it learns from"
    )
    says += "; the gap closed is the share of the experts' mean gain over the base" if study.compute.experts else ""
    says += f"; what {reach} had come to after as many; the first that reaches the best of {reach}" if top else ""
    return ["## Quality against compute", f"{says}.", "\n".join(rows)]


def _as_far(curve: Sequence[Spot], passes: float) -> str:
    """The average of a row after so many passes, and after how many it was."""
    spot = after_passes(curve, passes)
    return "" if spot is None else f"{spot.average:.3f} ({spot.passes:,.0f})"


def _reaching(curve: Sequence[Spot], top: Spot) -> list[str]:
    first = first_as_good(curve, top.average)
    if first is None:
        return ["never", "", ""]
    return [*_spent(first)[:2], _share(share(first.passes, top.passes))]


def _spent(spot: Spot) -> list[str]:
    """Updates, passes and seconds."""
    seconds = "" if spot.seconds is None else f"{spot.seconds:,.0f}"
    return [f"{spot.stage} {spot.update}", f"{spot.passes:,.0f}", seconds]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def interference(study: Study) -> list[str]:
    """What the matrices come to, pair by pair."""
    found = [(name, one) for name, mine in study.interference.items() for one in mine]
    if not found:
        return []
    pairs = list(dict.fromkeys(pair for _, one in found for pair in combinations(one.tasks, 2)))
    heads = ("loss", "same task", *(f"{a}, {b}" for a, b in pairs), "repeats")
    rows = [line("weights", *heads), line("---", "---", *("---:" for _ in heads[1:]))]
    for name, one in found:
        same = _range(one.cosine(task, task) for task in one.tasks)
        rows.append(line(name, one.stage, same, *(_pair(one, *pair) for pair in pairs), str(one.repeats)))
    says = (
        "Mean cosines between gradients of the same adapter, each of a batch of its own: of one task, which tells how "
        "well a gradient is known (lowest and highest task), and of each pair of tasks, ± twice the standard error "
        "over repeats. Noise pulls them all to nought; in brackets what a pair comes to without it, its cosine over "
        "the root of those of its two tasks, where both are above twice their standard error. A loss is the whole one, "
        "anchor and all."
    )
    return ["## Do the tasks pull apart", says, "\n".join(rows)]


def _range(cosines: Iterable[tuple[float, float | None] | None]) -> str:
    known = [one[0] for one in cosines if one is not None]
    return f"{min(known):+.2f} to {max(known):+.2f}" if known else ""


def _pair(one: Cosines, a: str, b: str) -> str:
    """A cosine, its error, and what it comes to without noise; empty for tasks that it has not."""
    found = one.cosine(a, b) if {a, b} <= {*one.tasks} else None
    if found is None:
        return ""
    true = one.without_noise(a, b)
    return _with_error(found) + ("" if true is None else f" ({_with_error(true)})")


def _with_error(found: tuple[float, float | None]) -> str:
    return f"{found[0]:+.2f}" + ("" if found[1] is None else f" ± {2 * found[1]:.2f}")


def costs(study: Study) -> list[str]:
    """What the training of each row took, and what was changed in it."""
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


def provenance(study: Study) -> list[str]:
    """How to make a row again, and what each was made by."""
    again = (
        f"`flowopd run recipes/{study.suite} --row ROW` makes one row again, at its commit and on the same machine "
        f"with the same numbers, then `flowopd study recipes/{study.suite}` this page."
    )
    rows = [line("run", "commit", "on"), line("---", "---", "---")]
    rows += [line(name, ", ".join(made.commits), "; ".join(made.machines)) for name, made in study.made.items()]
    return ["## Made again", again, "\n".join(rows)]
