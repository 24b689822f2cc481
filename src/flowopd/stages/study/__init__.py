"""The study of a suite: what its rows show together, as one record, a page and figures that are made from it."""

from __future__ import annotations

from pathlib import Path

from flowopd.durable import replace_text
from flowopd.errors import ConfigError
from flowopd.stages.study.gather import gather
from flowopd.stages.study.keep import keep
from flowopd.stages.study.page import page
from flowopd.stages.study.pictures import draw
from flowopd.stages.study.records import Study

__all__ = ["PAGE", "STUDY", "Study", "page", "write_page", "write_study"]

PAGE, STUDY = "RESULTS.md", "study.json"


def write_study(suite: Path, runs: Path, folder: Path) -> Path:
    """Keep what a suite's runs found in FOLDER/results, gather that into its study.json and write the page.

    What is kept there of runs that are gone is shown too. Returns FOLDER/RESULTS.md. Raises ConfigError for a wrong
    suite and for one of which nothing was run, DataError for damaged files.
    """
    results = folder / "results"
    keep(suite, runs, results)
    study = gather(suite, results)
    if not study.lines:
        raise ConfigError(f"no row of {suite} has results in {runs}; run some: flowopd run {suite} --out {runs}")
    study.save(results / STUDY)
    return write_page(study, folder)


def write_page(study: Study, folder: Path) -> Path:
    """FOLDER/RESULTS.md and the figures in FOLDER/results, from the record alone."""
    replace_text(folder / PAGE, page(study, draw(study, folder / "results")))
    return folder / PAGE
