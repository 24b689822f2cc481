"""The report of a run: one self-contained page that says whether it worked, and shows it.

Every number comes from the run's own files. A part that is not there yet leaves its section with a line that
says what is missing; a part that is there but damaged is an error.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image, UnidentifiedImageError

from flowopd.errors import DataError
from flowopd.results import (
    AVERAGE,
    BASE,
    GRPO_MIX,
    MERGE,
    SFT,
    STUDENT,
    TEACHER,
    Estimate,
    Results,
    replace_text,
)
from flowopd.stages import figures
from flowopd.stages.figures import Curve

LARGEST_PICTURE = 256
"""Pixels of the longer side to which larger pictures are reduced, so that the page stays small."""

SHOWN_ELSEWHERE = ("owners", "no_gap")
"""Settings of the results that stand beside the gaps, and not among the facts."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class WallRow:
    """One prompt, and its picture by every model as a data URI, or None where there is no file."""

    prompt: str
    pictures: Mapping[str, str | None]


@dataclass(frozen=True)
class Run:
    """What a run's folder holds so far: a missing file is None or empty here."""

    name: str
    results: Results | None
    rows: Sequence[Row]
    manifest: Mapping[str, Any] | None
    wall: Sequence[WallRow]
    has_student: bool


@dataclass(frozen=True)
class Rival:
    """How the student's average stands to another model's: level with it where their intervals overlap."""

    title: str
    estimate: Estimate
    standing: str


@dataclass(frozen=True)
class Change:
    """A difference of means to the base. `tint` is its share, 0..1, of the largest one in its metric.

    `clear` says that the intervals share no value.
    """

    difference: float
    tint: float
    clear: bool


def write_report(run: Path) -> Path:
    """Write `run/report.html` and return its path.

    Raises DataError if there is nothing to report in `run`, or if a file in it is damaged, which it names.
    """
    path = run / "report.html"
    replace_text(path, render(read_run(run)))
    return path


def read_run(run: Path) -> Run:
    """Everything that the report shows, from the files in `run`. Raises DataError as `write_report` does."""
    results, rows, manifest = run / "results.json", run / "metrics.jsonl", run / "manifest.json"
    if not any(path.exists() for path in (results, rows, manifest)):
        raise DataError(
            f"{run} holds no results.json, metrics.jsonl or manifest.json; give the folder of a run (--out)"
        )
    return Run(
        name=run.resolve().name,
        results=Results.load(results) if results.exists() else None,
        rows=read_rows(rows) if rows.exists() else [],
        manifest=_json(manifest) if manifest.exists() else None,
        wall=_wall(run / "samples"),
        has_student=(run / "student").is_dir(),
    )


def render(run: Run) -> str:
    """The page as HTML: no script, and nothing fetched from elsewhere."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, signed=signed, title=title)
    results = run.results or Results()
    return environment.get_template("report.html.jinja").render(
        run=run,
        results=results,
        rivals=rivals(results),
        best=best(results),
        changes=changes(results),
        owners=results.settings.get("owners", {}),
        no_gap=results.settings.get("no_gap", {}),
        facts=facts(run),
        names={"average": AVERAGE, "base": BASE, "student": STUDENT, "teacher": TEACHER},
        **{name: Markup(svg) for name, svg in drawings(run).items()},
    )


def number(value: float) -> str:
    """Four digits or so: 0.871, 4.350, 23.08."""
    return f"{value:.{3 if abs(value) < 10 else 2}f}"


def signed(value: float) -> str:
    """A difference, with its sign: +0.031, −0.004."""
    return ("−" if value < 0 else "+") + number(abs(value))


def title(model: str) -> str:
    """A model's name for readers: `teacher:ocr` is the "ocr teacher"."""
    if model.startswith(TEACHER):
        return model.removeprefix(TEACHER) + " teacher"
    return model.replace("_", " ")


def rivals(results: Results) -> list[Rival]:
    """What the student's average is held against: its best teacher, its start and GRPO-Mix, if evaluated."""
    averages = {model: row[AVERAGE] for model, row in results.models.items() if AVERAGE in row}
    student = averages.get(STUDENT)
    if student is None:
        return []
    teachers = [model for model in averages if model.startswith(TEACHER)]
    strongest = sorted(teachers, key=lambda model: -averages[model].mean)[:1]
    titles = {model: f"its best teacher, {model.removeprefix(TEACHER)}" for model in strongest}
    titles |= {MERGE: "the merge alone", SFT: "the fine-tuned start alone", GRPO_MIX: "GRPO-Mix"}
    return [
        Rival(name, averages[model], _standing(student, averages[model]))
        for model, name in titles.items()
        if model in averages
    ]


def best(results: Results) -> dict[str, float]:
    """The highest mean of each metric."""
    return {
        metric: max(row[metric].mean for row in results.models.values() if metric in row) for metric in results.metrics
    }


def changes(results: Results) -> dict[str, dict[str, Change]]:
    """Every model but the base, held against the base: {model: {metric: change}}, empty without a base."""
    base = results.models.get(BASE, {})
    others = {model: row for model, row in results.models.items() if model != BASE}
    table: dict[str, dict[str, Change]] = {model: {} for model in others if base}
    for metric, start in base.items():
        differences = {model: row[metric].mean - start.mean for model, row in others.items() if metric in row}
        largest = max(map(abs, differences.values()), default=0.0) or 1.0
        for model, difference in differences.items():
            clear = not others[model][metric].overlaps(start)
            table[model][metric] = Change(difference, abs(difference) / largest, clear)
    return table


def facts(run: Run) -> dict[str, dict[str, str]]:
    """How the run was made and evaluated: {group: {dotted name: value}}."""
    manifest = run.manifest or {}
    settings = run.results.settings if run.results else {}
    nested = {name: value for name, value in manifest.items() if isinstance(value, Mapping)}
    groups: dict[str, Mapping[str, Any]] = {
        "run": {name: value for name, value in manifest.items() if name not in nested},
        **nested,
        "evaluation": {name: value for name, value in settings.items() if name not in SHOWN_ELSEWHERE},
    }
    return {group: dict(_flat(tree)) for group, tree in groups.items() if tree}


def drawings(run: Run) -> dict[str, str]:
    """The figures by name, as SVG; empty strings where there is nothing to draw."""
    rewards, gaps = reward_curves(run.rows), gap_curves(run.rows)
    order = list(dict.fromkeys([*rewards, *gaps]))
    tables = gap_tables(run.rows, list(gaps))
    models = run.results.models if run.results else {}
    averages = {title(model): row[AVERAGE] for model, row in models.items() if AVERAGE in row}
    return {
        "averages": figures.intervals(averages, title(STUDENT)) if averages else "",
        "rewards": figures.curves(rewards, order, "reward") if rewards else "",
        "gaps": figures.curves(gaps, order, "gap to the teacher", log=True) if gaps else "",
        "path": figures.heat_maps(tables, list(gaps), "step of the path, noise on top") if tables else "",
    }


def reward_curves(rows: Iterable[Row]) -> dict[str, Curve]:
    """The reward of each expert while it was trained."""
    return _curves(
        (row["stage"].removeprefix(TEACHER), row["step"], row["reward"])
        for row in rows
        if row["stage"].startswith(TEACHER) and "reward" in row
    )


def gap_curves(rows: Iterable[Row]) -> dict[str, Curve]:
    """The gap to each teacher while the student was distilled, from `gap/<teacher>`."""
    return _curves((name[0], row["step"], value) for row in rows for name, value in _gaps(row) if len(name) == 1)


def gap_tables(rows: Sequence[Row], teachers: Sequence[str]) -> dict[str, np.ndarray]:
    """Mean `gap/<teacher>/<i>` (steps of the path, teachers) over the first and the last tenth of updates.

    NaN where a step was never visited; empty if no row has any.
    """
    visits = [
        {(int(name[1]), teachers.index(name[0])): value for name, value in _gaps(row) if len(name) == 2} for row in rows
    ]
    visits = [visit for visit in visits if visit]
    if not visits:
        return {}
    shape = (1 + max(step for visit in visits for step, _ in visit), len(teachers))
    tenth = math.ceil(len(visits) / 10)
    spans = {f"first updates ({tenth})": visits[:tenth], f"last updates ({tenth})": visits[-tenth:]}
    return {span: _mean(chosen, shape) for span, chosen in spans.items()}


def _standing(student: Estimate, other: Estimate) -> str:
    if student.overlaps(other):
        return "level with"
    return "above" if student.mean > other.mean else "below"


def _gaps(row: Row) -> Iterator[tuple[list[str], float]]:
    """([teacher], gap) and ([teacher, step], gap) of one row, as far as they are finite."""
    for key, value in row.items():
        if key.startswith("gap/") and _finite(value):
            yield key.split("/")[1:], value


def _mean(visits: Iterable[Mapping[tuple[int, int], float]], shape: tuple[int, int]) -> np.ndarray:
    total, count = np.zeros(shape), np.zeros(shape)
    for visit in visits:
        for place, value in visit.items():
            total[place] += value
            count[place] += 1
    mean: np.ndarray = np.divide(total, count, out=np.full(shape, np.nan), where=count > 0)
    return mean


def _curves(points: Iterable[tuple[str, int, Any]]) -> dict[str, Curve]:
    collected: dict[str, list[tuple[int, float]]] = {}
    for name, step, value in points:
        if _finite(value):
            collected.setdefault(name, []).append((step, value))
    return {name: Curve(*np.array(pairs, np.float64).T) for name, pairs in collected.items()}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested mappings by dotted name."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def read_rows(path: Path) -> list[Row]:
    """All finished lines of `metrics.jsonl`; one that does not end yet is still being written."""
    finished = path.read_text(encoding="utf-8").split("\n")[:-1]
    rows = [_parsed(line, f"{path}:{place}") for place, line in enumerate(finished, 1) if line.strip()]
    for row in rows:
        if not isinstance(row, dict) or not {"stage", "step"} <= row.keys():
            raise DataError(f"{path} has a line without stage or step ({json.dumps(row)[:80]}); delete it")
    return rows


def _wall(folder: Path) -> list[WallRow]:
    index = folder / "index.json"
    if not index.exists():
        return []
    content = _json(index)
    if not all(isinstance(content.get(key), list) for key in ("prompts", "models")):
        raise DataError(f"{index} needs the lists prompts and models; sample again: flowopd sample")
    return [
        WallRow(prompt, {model: _data_uri(folder / f"{place}-{model}.png") for model in content["models"]})
        for place, prompt in enumerate(content["prompts"])
    ]


def _data_uri(path: Path) -> str | None:
    if not path.exists():
        return None
    try:
        with Image.open(path) as picture:
            picture.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
            file = io.BytesIO()
            picture.save(file, "PNG")
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path} is not a readable picture ({error}); delete it and sample again") from None
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _json(path: Path) -> dict[str, Any]:
    content = _parsed(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {type(content).__name__} where an object belongs; write it anew")
    return content


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON ({error.msg} at column {error.colno}); mend or delete it") from None
