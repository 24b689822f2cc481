"""Models on the metrics of a recipe: the same prompts and seeds for each, a score a prompt, means with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from json import dumps
from pathlib import Path
from shutil import rmtree
from typing import ClassVar

import numpy as np
import torch

from flowopd.conditioning import Conditioning
from flowopd.configs import EvaluateConfig, MetricConfig
from flowopd.errors import ConfigError
from flowopd.processes import agreed, only_main, own_rows, together, whole
from flowopd.prompts import Prompt
from flowopd.recipe import RUN, Recipe
from flowopd.records import File
from flowopd.results import AVERAGE, RESAMPLES, TEACHER, Estimate, bootstrap_average, bootstrap_grouped
from flowopd.rewards import Reward
from flowopd.rewards.own import is_path
from flowopd.session import Session
from flowopd.stages.sample import (
    asked,
    draw_pictures,
    evaluation_prompts,
    even_batch,
    metric_prompts,
    own_weights,
    repeated,
)
from flowopd.stages.watch import check_finite

Scores = Mapping[str, np.ndarray]
"""{metric: value (P,) of each prompt}"""


class KeptScores(File):
    """The scores of one model: an evaluation that was broken off goes on with the next one."""

    made_by: ClassVar[str] = "flowopd eval"

    values: dict[str, list[float]]


@dataclass(frozen=True, eq=False)
class Judging:
    """Judges by metric and prompts by label and split, ready for any model of a session."""

    session: Session
    config: EvaluateConfig
    judges: Mapping[str, Reward]
    prompts: Mapping[tuple[str, str], Sequence[Prompt]]
    conditioning: Conditioning

    @classmethod
    def of(cls, session: Session) -> Judging:
        """That of a recipe. Raises ConfigError if it has no `evaluate`, or names a judge that there is not."""
        config = session.recipe.evaluate
        if config is None:
            raise ConfigError("the recipe has no `evaluate`; add its metrics")
        session.reach_judges(metric.reward for metric in config.metrics.values())
        judges = {name: session.judge(metric.reward) for name, metric in config.metrics.items()}
        prompts = evaluation_prompts(session, config)
        conditioning = session.encode(prompt for group in prompts.values() for prompt in group)
        return cls(session, config, judges, prompts, conditioning)

    def averaged(self) -> Judging:
        """The same for the prompts of the average alone: without the metrics that need pictures of others."""
        config = for_average(self.config)
        needed = {asked(metric, config) for metric in config.metrics.values()}
        return replace(self, config=config, prompts={key: self.prompts[key] for key in self.prompts if key in needed})

    def scores(self, model: str) -> Scores:
        """What a model's pictures get; kept in the run's cache for an evaluation that is broken off, until `forget`.

        Raises NumericsError for a score that is not finite, DataError for a damaged file of the cache.
        """
        file = None if may_change(self.session.recipe, self.config) else self._kept_at(model)
        if file is not None and agreed(file.exists):
            return {name: np.array(values) for name, values in KeptScores.load(file).values.items()}
        scores = self._found(model)
        if file is not None:
            kept = KeptScores(values={name: values.tolist() for name, values in scores.items()})
            only_main(lambda: kept.save(file))
        return scores

    def _kept_at(self, model: str) -> Path:
        """The file of the cache for a model's scores, named by all that they depend on."""
        depended = dependences(self.session, self.config, [model])
        return self._cache() / f"{hashed({'model': model, **depended})['hash']}.json"

    def forget(self) -> None:
        """Have every model judged anew the next time."""
        only_main(lambda: rmtree(self._cache(), ignore_errors=True))

    def _cache(self) -> Path:
        return self.session.out / "cache" / "scores"

    def _found(self, model: str) -> Scores:
        config = self.config
        pictures = {
            source: draw_pictures(self.session, model, group, config, self.conditioning, own_pictures(group, config))
            for source, group in self.prompts.items()
        }
        return {name: self._judged(name, pictures[asked(metric, config)]) for name, metric in config.metrics.items()}

    def estimates(self, scores: Scores) -> dict[str, Estimate]:
        """A row of the table from its scores."""
        return estimated(self.config, metric_prompts(self.config, self.prompts), scores)

    def _judged(self, name: str, pictures: np.ndarray) -> np.ndarray:
        """A judge's value (P,) of each prompt, the mean of its pictures; each process judges the pictures it drew."""
        metric, copies = self.config.metrics[name], self.config.images_per_prompt
        prompts = self.prompts[asked(metric, self.config)]
        many, rows = repeated(prompts, copies), own_pictures(prompts, self.config)
        own = together(lambda: self.judges[name](pictures, many[rows]).value if many[rows] else np.empty(0))
        values = whole(torch.from_numpy(np.asarray(own, np.float64)), rows, len(many)).numpy()
        check_finite(f"reward {metric.reward!r}", values, many)
        return values.reshape(-1, copies).mean(1)


def own_pictures(prompts: Sequence[Prompt], config: EvaluateConfig) -> slice:
    """This process's share of a label's pictures, in whole micro-batches: which pictures are drawn together, and so
    their every bit, does not depend on the number of processes."""
    pictures = len(prompts) * config.images_per_prompt
    return own_rows(pictures, even_batch(pictures, config.micro_batch))


def estimated(
    config: EvaluateConfig, prompts: Mapping[str, Sequence[Prompt]], values: Scores, resamples: int = RESAMPLES
) -> dict[str, Estimate]:
    """Every metric's estimate, from a value (P,) of each of its prompts, and `average` over those not held out."""
    groups = {name: groups_of(metric, prompts[name]) for name, metric in config.metrics.items()}
    row = {name: bootstrap_grouped(values[name], groups[name], resamples=resamples) for name in values}
    return row | {AVERAGE: bootstrap_average({name: values[name] for name in counted(config)}, groups, resamples)}


def counted(config: EvaluateConfig) -> list[str]:
    """The metrics of the average."""
    return [name for name, metric in config.metrics.items() if not metric.held_out]


def for_average(config: EvaluateConfig) -> EvaluateConfig:
    """The metrics of the average, and those that look at the same pictures; all of them where none is averaged."""
    needed = {asked(config.metrics[name], config) for name in counted(config) or config.metrics}
    metrics = {name: metric for name, metric in config.metrics.items() if asked(metric, config) in needed}
    return config.model_copy(update={"metrics": metrics})


def groups_of(metric: MetricConfig, prompts: Sequence[Prompt]) -> list[str]:
    """The group of each prompt, over whose means the metric is a mean: its tag, or one for all."""
    return [str(prompt.metadata.get("tag", "")) if metric.grouped else "" for prompt in prompts]


def settings_of(session: Session, config: EvaluateConfig, models: Sequence[str] = ()) -> dict[str, object]:
    """What the numbers of these models depend on, the run's own weights aside, with a hash of it."""
    teachers = [model.removeprefix(TEACHER) for model in models if model.startswith(TEACHER)]
    own = {name: scale for name in teachers if (scale := session.recipe.teachers[name].guidance) is not None}
    judged = {".".join(asked(metric, config)) for metric in config.metrics.values()}
    return hashed(
        {
            **session.recipe.parts(*RUN),
            "evaluate": config.model_dump(mode="json", exclude={"models", "checkpoints"}),
            "sha256": session.hashes(teachers),
            **({"guidance": own} if own else {}),
            "sha256_prompts": {name: value for name, value in session.prompt_hashes().items() if name in judged},
        }
    )


def hashed(settings: Mapping[str, object]) -> dict[str, object]:
    """Settings with the hash of them all, `hash`."""
    plain = {key: value for key, value in settings.items() if key != "hash"}
    return plain | {"hash": sha256(dumps(plain, sort_keys=True).encode()).hexdigest()}


def dependences(session: Session, config: EvaluateConfig, models: Sequence[str]) -> dict[str, object]:
    """What the numbers of these models depend on, with hashes of it all, of the run's own weights and of the judges."""
    names = {metric.reward for metric in config.metrics.values()}
    judges = {name: judge.model_dump(mode="json") for name, judge in session.recipe.judges.items() if name in names}
    own = {"weights": own_weights(session, models), "judges": hashed(judges)["hash"]}
    return settings_of(session, config, models) | own


def may_change(recipe: Recipe, config: EvaluateConfig) -> bool:
    """Whether a metric is judged by code or a server that a recipe only names."""
    rewards = [metric.reward for metric in config.metrics.values()]
    return any(is_path(name) or (name in recipe.judges and recipe.judges[name].url) for name in rewards)
