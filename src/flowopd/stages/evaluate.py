"""Base, experts, merge and student in one table: the same prompts and seeds for all, means with intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256

import numpy as np
import torch

from flowopd.configs import EvaluateConfig, MetricConfig
from flowopd.durable import replace_text
from flowopd.errors import ConfigError
from flowopd.processes import only_main, own_rows, whole
from flowopd.prompts import Prompt
from flowopd.recipe import RUN
from flowopd.results import (
    AVERAGE,
    STUDENT,
    TEACHER,
    Estimate,
    Results,
    bootstrap_average,
    bootstrap_grouped,
    gap_closed,
)
from flowopd.rewards import Reward
from flowopd.session import Session
from flowopd.stages.sample import (
    asked,
    available_models,
    draw_pictures,
    evaluation_prompts,
    even_batch,
    metric_prompts,
    repeated,
)
from flowopd.stages.watch import check_finite

RESULTS, PER_PROMPT = "results.json", "scores.json"


def evaluate(session: Session) -> Results:
    """Judge every model of a recipe that exists; writes OUT/results.json and OUT/scores.json.

    Raises ConfigError if the recipe has no `evaluate`, or names a model or a judge that there is not; NumericsError for
    a score that is not finite.
    """
    config = _config(session)
    session.reach_judges(metric.reward for metric in config.metrics.values())
    judges = {name: session.judge(metric.reward) for name, metric in config.metrics.items()}
    sources = {name: asked(metric, config) for name, metric in config.metrics.items()}
    prompts = evaluation_prompts(session, config)
    models = available_models(session, config.models)
    conditioning = session.encode(prompt for group in prompts.values() for prompt in group)
    scores: dict[str, dict[str, list[float]]] = {}
    estimates: dict[str, dict[str, Estimate]] = {}
    with session.tracker("eval", len(models)) as tracker:
        tracker.rewind(0)
        for i, model in enumerate(models):
            pictures = {
                source: draw_pictures(session, model, group, config, conditioning, own_pictures(group, config))
                for source, group in prompts.items()
            }
            judged = {
                name: _judge(config.metrics[name].reward, judges[name], pictures[source], prompts[source], config)
                for name, source in sources.items()
            }
            scores[model] = {name: values.tolist() for name, values in judged.items()}
            estimates[model] = estimated(config, metric_prompts(config, prompts), judged)
            tracker.log(i, {name: row.mean for name, row in estimates[model].items()}, model)
    results = Results(settings=_settings(session, config, models), models=estimates, per_prompt=PER_PROMPT)
    results = gap_closed(results, _owners(config, models))

    def keep() -> None:
        replace_text(session.out / PER_PROMPT, json.dumps(scores))
        results.save(session.out / RESULTS)

    only_main(keep)
    return results


def _judge(
    reward: str, judge: Reward, pictures: np.ndarray, prompts: Sequence[Prompt], config: EvaluateConfig
) -> np.ndarray:
    """A judge's value (P,) of each prompt, the mean of its pictures; each process judges the pictures it drew."""
    many = repeated(prompts, config.images_per_prompt)
    rows = own_pictures(prompts, config)
    own = judge(pictures, many[rows]).value if many[rows] else np.empty(0)
    values = whole(torch.from_numpy(np.asarray(own, np.float64)), rows, len(many)).numpy()
    check_finite(f"reward {reward!r}", values, many)
    return values.reshape(-1, config.images_per_prompt).mean(1)


def own_pictures(prompts: Sequence[Prompt], config: EvaluateConfig) -> slice:
    """This process's share of a label's pictures, in whole micro-batches: which pictures are drawn together, and so
    their every bit, does not depend on the number of processes."""
    pictures = len(prompts) * config.images_per_prompt
    return own_rows(pictures, even_batch(pictures, config.micro_batch))


def _owners(config: EvaluateConfig, models: Sequence[str]) -> dict[str, str]:
    """The teacher of each metric, as far as its row and the student's are there."""
    owned = {name: metric.owner for name, metric in config.metrics.items() if metric.owner}
    return {name: owner for name, owner in owned.items() if {TEACHER + owner, STUDENT} <= set(models)}


def _config(session: Session) -> EvaluateConfig:
    if session.recipe.evaluate is None:
        raise ConfigError("the recipe has no `evaluate`; add its metrics")
    return session.recipe.evaluate


def estimated(
    config: EvaluateConfig, prompts: Mapping[str, Sequence[Prompt]], values: Mapping[str, np.ndarray]
) -> dict[str, Estimate]:
    """Every metric's estimate, from a value (P,) of each of its prompts, and `average` over those not held out."""
    groups = {name: groups_of(metric, prompts[name]) for name, metric in config.metrics.items()}
    row = {name: bootstrap_grouped(values[name], groups[name]) for name in values}
    return row | {AVERAGE: bootstrap_average({name: values[name] for name in counted(config)}, groups)}


def counted(config: EvaluateConfig) -> list[str]:
    """The metrics of the average."""
    return [name for name, metric in config.metrics.items() if not metric.held_out]


def groups_of(metric: MetricConfig, prompts: Sequence[Prompt]) -> list[str]:
    """The group of each prompt, over whose means the metric is a mean: its tag, or one for all."""
    return [str(prompt.metadata.get("tag", "")) if metric.grouped else "" for prompt in prompts]


def _settings(session: Session, config: EvaluateConfig, models: Sequence[str]) -> dict[str, object]:
    """What the numbers depend on, with a hash of it."""
    teachers = [model.removeprefix(TEACHER) for model in models if model.startswith(TEACHER)]
    judged = {".".join(asked(metric, config)) for metric in config.metrics.values()}
    settings = {
        **session.recipe.parts(*RUN),
        "evaluate": config.model_dump(mode="json", exclude={"models"}),
        "sha256": session.hashes(teachers),
        "sha256_prompts": {name: value for name, value in session.prompt_hashes().items() if name in judged},
    }
    return settings | {"hash": sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()}
