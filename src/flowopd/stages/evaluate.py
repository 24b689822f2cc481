"""Base, experts, merge and student in one table: the same prompts and seeds for all, means with intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence

from flowopd.configs import EvaluateConfig
from flowopd.durable import replace_text
from flowopd.processes import only_main
from flowopd.results import STUDENT, TEACHER, Estimate, Results, gap_closed
from flowopd.session import Session
from flowopd.stages.curve import write_curve
from flowopd.stages.judging import Judging, settings_of
from flowopd.stages.sample import available_models, own_weights, plain_call

RESULTS, PER_PROMPT = "results.json", "scores.json"


def evaluate(session: Session) -> Results:
    """Judge every model of a recipe that exists; writes OUT/results.json and OUT/scores.json.

    Where the recipe says so its checkpoints too, to OUT/curve.json. Raises ConfigError if the recipe has no `evaluate`,
    or names a model or a judge that there is not; NumericsError for a score that is not finite.
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
    settings = settings_of(session, config, models) | {
        "weights": own_weights(session, models),
        "load": session.model.load_options,
        "call": plain_call(session, STUDENT),
    }
    results = Results(settings=settings, models=estimates, per_prompt=PER_PROMPT)
    results = gap_closed(results, _owners(config, models))

    def keep() -> None:
        replace_text(session.out / PER_PROMPT, json.dumps(scores))
        results.save(session.out / RESULTS)

    only_main(keep)
    if config.checkpoints:
        write_curve(judging, estimates)
    return results


def evaluated(session: Session) -> Results | None:
    """The results that a run has, if they are of the very models, prompts, settings and weights that it would judge.

    Raises ConfigError if the recipe names a model that there is not.
    """
    config, file = session.recipe.evaluate, session.out / RESULTS
    if config is None or config.checkpoints or not file.exists():
        return None
    results, models = Results.load(file), available_models(session, config.models)
    settings = settings_of(session, config, models) | {"weights": own_weights(session, models)}
    same = all(results.settings.get(key) == settings[key] for key in ("hash", "weights"))
    return results if same and list(results.models) == models else None


def _owners(config: EvaluateConfig, models: Sequence[str]) -> dict[str, str]:
    """The teacher of each metric, as far as its row and the student's are there."""
    owned = {name: metric.owner for name, metric in config.metrics.items() if metric.owner}
    return {name: owner for name, owner in owned.items() if {TEACHER + owner, STUDENT} <= set(models)}
