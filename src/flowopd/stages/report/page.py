"""The page itself: a run's contents and findings put into the templates, in the order in which a reader asks."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from flowopd.durable import replace_text
from flowopd.hub import PACKAGE
from flowopd.results import AVERAGE, BASE, FEW, STUDENT, TEACHER, Results
from flowopd.stages.report import figures
from flowopd.stages.report.contents import Run, read_run
from flowopd.stages.report.findings import best, changes, facts, moved, rivals
from flowopd.stages.report.series import costs, gap_curves, gap_tables, reward_curves
from flowopd.stages.report.text import duration, listed, number, signed, size, title
from flowopd.stages.templates import keywords


def write_report(run: Path) -> Path:
    """Write `run/report.html` and return its path.

    Raises DataError if there is nothing to report in `run`, or if a file in it is damaged, which it names.
    """
    path = run / "report.html"
    replace_text(path, render(read_run(run)))
    return path


def render(run: Run) -> str:
    """The page as HTML: no script, and nothing fetched from elsewhere."""
    environment = Environment(
        loader=PackageLoader("flowopd.stages.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, signed=signed, title=title, duration=duration, size=size, listed=listed)
    results, gains = run.results or Results(), changes(run.results or Results())
    return environment.get_template("page.html.jinja").render(
        run=run,
        results=results,
        rivals=rivals(results),
        best=best(results),
        changes=gains,
        moved=moved(gains.get(STUDENT, {})),
        owners=results.settings.get("owners", {}),
        few=FEW,
        no_gap=results.settings.get("no_gap", {}),
        costs=costs(run.rows),
        facts=facts(run),
        use=_use(run),
        packaged=str(run.recipe.get("base", "")).startswith(PACKAGE),
        names={"average": AVERAGE, "base": BASE, "student": STUDENT, "teacher": TEACHER},
        **{name: Markup(svg) for name, svg in drawings(run).items()},
    )


def _use(run: Run) -> dict[str, str]:
    """What to add to the lines that load the base and call it, as Python source."""
    settings = run.results.settings if run.results else {}
    sampling = (run.recipe.get("evaluate") or {}).get("sampling") or {}
    planned = {"num_inference_steps": sampling.get("steps"), "guidance_scale": sampling.get("guidance")}
    call = settings.get("call") or {name: value for name, value in planned.items() if value is not None}
    return {name: keywords(options) for name, options in {"load": settings.get("load", {}), "call": call}.items()}


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
        "gaps": figures.curves(gaps, order, "gap to the expert", log=True) if gaps else "",
        "path": figures.heat_maps(tables, list(gaps), "step of the path, noise on top") if tables else "",
    }
