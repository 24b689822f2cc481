"""What commands print: tables, and where a result lies. Of several processes the main one speaks."""

from __future__ import annotations

import sys
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

import typer

from flowopd.quiet import QUIET, is_on
from flowopd.signals import is_first

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from flowopd.recipe import Recipe
    from flowopd.results import Results
    from flowopd.stages.doctor import Check
    from flowopd.stages.interference import Cosines

WIDE = 120
"""Columns of a table that goes to a file or another program, if it fits."""

LIMITLESS = 10_000
"""Columns that no table has, to measure one, and to print one whole to a file."""

COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


def show_results(results: Results) -> None:
    """Print the table of models by metrics, turned where it is too wide that way, and the gaps closed."""
    from rich.console import Console

    from flowopd.processes import is_main

    people = sys.stdout.isatty()
    console = Console(width=None if people else LIMITLESS, quiet=not is_main())
    models = {name: [str(row.get(metric, "")) for metric in results.metrics] for name, row in results.models.items()}
    columns = {**models, "prompts": [str(results.prompts[metric]) for metric in results.metrics]}
    by_model = [("model", *results.metrics), *((name, *cells) for name, cells in columns.items())]
    by_metric = [("metric", *columns), *list(zip(*by_model, strict=True))[1:]]
    tables = [_results_table(lines, people) for lines in (by_model, by_metric)]
    widths = [console.measure(table, options=console.options.update(max_width=LIMITLESS)).maximum for table in tables]
    fits = widths[0] <= (console.width if people else WIDE)
    console.print(tables[0 if fits else widths.index(min(widths))])
    for metric, share in results.gap_closed.items():
        doubt = " (in doubt: the expert is not told from the base)" if metric in results.doubtful else ""
        why = results.settings.get("no_gap", {}).get(metric, "it is not defined")
        said = f"none, for {why}" if share is None else f"{share:.3f}"
        console.print(f"gap closed on {metric}: {said}{doubt}", soft_wrap=True)


def _results_table(lines: Sequence[Sequence[str]], people: bool) -> Table:
    from rich.box import HEAVY_HEAD, MARKDOWN
    from rich.table import Table

    table = Table(title="mean ± half of the 95 % interval", box=HEAVY_HEAD if people else MARKDOWN)
    for i, head in enumerate(lines[0]):
        table.add_column(head, justify="right" if i else "left")
    for line in lines[1:]:
        table.add_row(*line)
    return table


def show_cosines(measured: Sequence[Cosines]) -> None:
    """Print a table of tasks against tasks for each measurement."""
    from rich.console import Console
    from rich.table import Table

    from flowopd.processes import is_main

    console = Console(width=None if sys.stdout.isatty() else WIDE, quiet=not is_main())
    for one in measured:
        table = Table(title=f"loss of {one.stage}, weights of {one.model}: mean cosine ± spread over repeats")
        table.add_column("task")
        for task in one.tasks:
            table.add_column(task, justify="right")
        for task, means, spreads in zip(one.tasks, one.mean, one.spread, strict=True):
            table.add_row(task, *map(_cosine, means, spreads))
        console.print(table)


def _cosine(mean: float | None, spread: float | None) -> str:
    if mean is None:
        return "no gradient"
    return f"{mean:+.3f}" + ("" if spread is None else f" [dim]±{spread:.3f}[/dim]")


def show_checks(checks: Sequence[Check]) -> None:
    """A table on a terminal, else a line a check; then what failed, on standard error."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table("", "check", "fact", "mend")
        for check in checks:
            table.add_row(Text(check.state, COLOURS[check.state]), *map(Text, (check.name, check.fact, check.mend)))
        Console().print(table)
    else:
        for check in checks:
            typer.echo(f"{check.state:8} {check.name}: {check.fact}" + (f"; {check.mend}" if check.mend else ""))
    failed = [check.name for check in checks if check.state == "failed"]
    if failed:
        typer.secho(f"failed: {', '.join(failed)}", fg="red", err=True)


def show_dry_run(recipe: Recipe, planned: Sequence[tuple[str, str]]) -> None:
    """The whole recipe as YAML, defaults included, under a comment for each stage with what would become of it."""
    import yaml

    for stage, fate in planned:
        typer.echo(f"# {stage}: {fate}")
    typer.echo(
        yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=WIDE), nl=False
    )


def finish(path: object, following: str) -> None:
    """The result on standard output, a hint on standard error; of several processes the main one speaks."""
    from flowopd.processes import is_main

    if is_main():
        typer.echo(path)
        hint(following)


def hint(following: str) -> None:
    """What to do next, on standard error, unless it is to be quiet; the command by the name that it was called by."""
    if not is_on(QUIET):
        typer.echo(f"next: {following.replace('flowopd ', f'{_called()} ')}", err=True)


def note(what: str) -> None:
    """What a command took without being told, on standard error, unless it is to be quiet; the first process speaks."""
    if is_first() and not is_on(QUIET):
        typer.echo(what, err=True)


def _called() -> str:
    """The program's name where a shell finds it, else its path."""
    path = Path(sys.argv[0])
    return "flowopd" if path.name != "flowopd" or which("flowopd") else str(path)
