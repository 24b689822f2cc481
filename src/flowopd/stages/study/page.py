"""A study as a page in Markdown, made from its record alone."""

from __future__ import annotations

from collections.abc import Mapping

from flowopd.stages.study.page_quality import claims, columns, table
from flowopd.stages.study.page_training import compute, costs, interference, provenance
from flowopd.stages.study.records import Study


def page(study: Study, pictures: Mapping[str, str]) -> str:
    """The page; `pictures` are files beside it by their caption."""
    parts = [
        "# Results",
        f"Every number on this page is read from the results of `flowopd run recipes/{study.suite}` by "
        f"`flowopd study recipes/{study.suite}`. Means over prompts, and over seeds where there are several; ± is half "
        "of the 95 % interval over prompts, and the brackets have the lowest and the highest seed. A row of one seed "
        "says nothing about how much another would differ.",
        *_count(study),
        *claims(study.verdicts),
        *columns(study),
        *(part for name in study.tables for part in table(study, study.tables[name])),
        *compute(study),
        *interference(study),
        *(f"## {caption}\n\n![{caption}]({file})" for caption, file in pictures.items()),
        *costs(study),
        *provenance(study),
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
    names += [f"the checkpoints of `{name}`" for name in study.curveless]
    return ["## Not run yet", f"{', '.join(names)}."] if names else []
