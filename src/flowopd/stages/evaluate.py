"""Base, experts, merge and student in one table: the same prompts and seeds for all, means with intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from flowopd.configs import EvaluateConfig
from flowopd.durable import make_folder, replace_bytes, replace_text
from flowopd.errors import DataError
from flowopd.processes import agreed, only_main
from flowopd.provenance import record
from flowopd.results import BASE, STUDENT, TEACHER, Estimate, Results, gap_closed
from flowopd.session import Session
from flowopd.stages.curve import write_curve
from flowopd.stages.judging import Judging, dependences, hashed, may_change
from flowopd.stages.sample import available_models, plain_call
from flowopd.tracking.screen import console, shows

RESULTS, PER_PROMPT = "results.json", "scores.json"

JUDGED = ("evaluate", "sha256_prompts", "judges")
"""The settings by which two tables are of the same prompts and judges."""

ASIDE = "evaluations"
"""The folder of a run for tables of other settings than the last one's."""

DEPENDED = ("hash", "weights", "judges")
"""The settings by which a table is known to be the one that would be made again."""


def evaluate(session: Session) -> Results:
    """Judge every model of a recipe that exists; writes OUT/results.json and OUT/scores.json.

    Where the recipe says so its checkpoints too, to OUT/curve.json; the table comes last. One that lies there and is
    not made again, of another split say, is kept in a folder of OUT/evaluations. After a call that was broken off it
    goes on with the next model, as far as nothing changed. Raises ConfigError if the recipe has no `evaluate`, or names
    a model or a judge that there is not; NumericsError for a score that is not finite.
    """
    judging = Judging.of(session)
    config, models = judging.config, available_models(session, judging.config.models)
    scores: dict[str, dict[str, list[float]]] = {}
    estimates: dict[str, dict[str, Estimate]] = {}
    with session.tracker("eval", len(models)) as tracker:
        tracker.rewind(0)
        for i, model in enumerate(models):
            judged = judging.scores(model)
            scores[model] = {name: values.tolist() for name, values in judged.items()}
            estimates[model] = judging.estimates(judged)
            tracker.log(i, {name: row.mean for name, row in estimates[model].items()}, model)
    use = {"load": session.model.load_options, "call": plain_call(session, STUDENT)}
    settings = dependences(session, config, models) | use
    results = Results(settings=settings, models=estimates, per_prompt=PER_PROMPT)
    results = gap_closed(results, _owners(config, models))

    def keep() -> None:
        put_aside(session.out, results)
        replace_text(session.out / PER_PROMPT, json.dumps(scores))
        results.save(session.out / RESULTS)

    if config.checkpoints:
        write_curve(judging.averaged(), estimates)
    only_main(keep)
    record(session, "eval", anew=True)
    judging.forget()
    return results


def put_aside(out: Path, coming: Results) -> None:
    """Keep the table of a run beside another one that comes, unless that judges all its models as it did: the same
    prompts, the same judges. One that is kept whole stays as it is: what lies in its place may be half of a new one."""
    try:
        there = Results.load(out / RESULTS)
    except DataError:
        return
    same = all(there.settings.get(key) == coming.settings.get(key) for key in JUDGED)
    if same and there.models.keys() <= coming.models.keys():
        return
    name = hashed({"settings": there.settings, "models": list(there.models)})["hash"]
    folder = out / ASIDE / str(name)[:8]
    if (folder / RESULTS).exists():
        return
    make_folder(folder)
    for file in (PER_PROMPT, RESULTS):
        if (out / file).exists():
            replace_bytes(folder / file, (out / file).read_bytes())
    if shows():
        console.print(f"the table that was here is kept in {folder}", highlight=False, soft_wrap=True)


def evaluated(session: Session) -> Results | None:
    """The results that a run has, if they are of the very models, prompts, settings and weights that it would judge.

    None where a judge is code of one's own or runs elsewhere, and may have changed though its name has not. Raises
    ConfigError if the recipe names a model that there is not.
    """
    config, file = session.recipe.evaluate, session.out / RESULTS
    if config is None or config.checkpoints or may_change(session.recipe, config) or not agreed(file.exists):
        return None
    results, models = Results.load(file), available_models(session, config.models)
    settings = dependences(session, config, models)
    same = all(results.settings.get(key) == value for key, value in settings.items() if key in DEPENDED)
    return results if same and list(results.models) == models else None


def _owners(config: EvaluateConfig, models: Sequence[str]) -> dict[str, str]:
    """The teacher of each metric, as far as its row, the base's and the student's are there."""
    owned = {name: metric.owner for name, metric in config.metrics.items() if metric.owner}
    return {name: owner for name, owner in owned.items() if {BASE, TEACHER + owner, STUDENT} <= set(models)}
