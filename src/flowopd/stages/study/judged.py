"""What the runs of a row were judged on and the scores they were given, by model and seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from flowopd.errors import ConfigError
from flowopd.results import BASE, MERGE, RESAMPLES, TEACHER, Estimate, bootstrap_average
from flowopd.session import Session
from flowopd.stages.evaluate import PER_PROMPT
from flowopd.stages.judging import Scores, counted, estimated, groups_of
from flowopd.stages.sample import asked, evaluation_prompts, metric_prompts
from flowopd.stages.study.records import ROUTED, Column, Drawing, Line
from flowopd.suite import Run


class Judged:
    """A row: the prompts of every metric, which metrics are averaged, and the scores of every model and seed."""

    def __init__(self, runs: Sequence[Run]) -> None:
        run = runs[0]
        if run.recipe.evaluate is None:
            raise ConfigError(f"row {run.row!r} has no `evaluate` to be judged by; add it to its recipe")
        self.row, self.config, self._teachers = run.row, run.recipe.evaluate, run.recipe.teachers
        prompts = evaluation_prompts(Session(run.recipe, run.folder), self.config)
        self.prompts = metric_prompts(self.config, prompts)
        self.groups = {name: groups_of(self.config.metrics[name], mine) for name, mine in self.prompts.items()}
        self.counted = counted(self.config)
        self._scores = _scores(runs)
        self._scores |= self._routed()

    def _routed(self) -> dict[str, Mapping[int, Scores]]:
        """The experts together, each on the metric that it owns, where the row has them all: what a student would be
        that does for every prompt what its expert does."""
        owners = {name: f"{TEACHER}{metric.owner}" for name, metric in self.config.metrics.items() if metric.owner}
        if {*self.counted} - {*owners} or {*owners.values()} - {*self._scores}:
            return {}
        seeds = set.intersection(*({*self._scores[owner]} for owner in owners.values()))
        return {
            ROUTED: {i: {name: self._scores[owner][i][name] for name, owner in owners.items()} for i in sorted(seeds)}
        }

    @property
    def drawing(self) -> Drawing:
        """How its models draw."""
        sampling, judged = self.config.sampling, {f"{TEACHER}{name}": one for name, one in self._teachers.items()}
        own = {model: one.guidance for model, one in judged.items() if model in self.models and one.guidance}
        return Drawing(
            images=self.config.images_per_prompt,
            steps=sampling.steps,
            sampler=sampling.sampler,
            guidance=sampling.guidance,
            experts=own,
        )

    @property
    def models(self) -> list[str]:
        """Its models, by name."""
        return list(self._scores)

    def columns(self) -> dict[str, Column]:
        """What each metric is."""
        found = {}
        for name, metric in self.config.metrics.items():
            label, split = asked(metric, self.config)
            found[name] = Column(
                judge=metric.reward, label=label, split=split, n=len(self.prompts[name]), averaged=name in self.counted
            )
        return found

    def scores(self, model: str) -> Scores:
        """A model's mean over the seeds, by metric and prompt."""
        by_seed = list(self._scores[model].values())
        return {name: np.mean([scores[name] for scores in by_seed], axis=0) for name in by_seed[0]}

    def line(self, model: str) -> Line:
        """A model's estimates, and each seed's own means."""
        seeds = {
            seed: {name: estimate.mean for name, estimate in self._estimates(scores, 1).items()}
            for seed, scores in self._scores[model].items()
        }
        return Line(metrics=self._estimates(self.scores(model)), by_seed=seeds)

    def average(self, scores: Scores, metrics: Sequence[str], resamples: int = RESAMPLES) -> Estimate:
        """The mean over these metrics."""
        return bootstrap_average({name: scores[name] for name in metrics}, self.groups, resamples)

    def by_seed(self, model: str, metrics: Sequence[str]) -> dict[int, float]:
        """The mean over these metrics by seed; of a model that nothing random went into the first seed's alone."""
        return {seed: self.average(scores, metrics, 1).mean for seed, scores in self._scores[model].items()}

    def is_trained(self, model: str) -> bool:
        """Whether this row trained a model, so that another seed gives another."""
        if model == ROUTED:
            return any(teacher.train is not None for teacher in self._teachers.values())
        teacher = self._teachers.get(model.removeprefix(TEACHER)) if model.startswith(TEACHER) else None
        return model not in (BASE, MERGE) and (teacher is None or teacher.train is not None)

    def _estimates(self, scores: Scores, resamples: int = RESAMPLES) -> dict[str, Estimate]:
        return estimated(self.config, self.prompts, scores, resamples)


def _scores(runs: Sequence[Run]) -> dict[str, Mapping[int, Scores]]:
    """{model: {seed: scores}} of the runs of a row; the first seed's alone where nothing random went into a model."""
    found: dict[str, dict[int, Scores]] = {}
    for run in runs:
        for model, row in json.loads((run.folder / PER_PROMPT).read_text()).items():
            found.setdefault(model, {})[run.seed] = {name: np.asarray(values) for name, values in row.items()}
    return {model: dict(list(mine.items())[: _different(list(mine.values()))]) for model, mine in found.items()}


def _different(scores: Sequence[Scores]) -> int:
    """How many measurements these are: one if all are the same."""
    first = scores[0]
    alike = all(np.array_equal(one[name], first[name]) for one in scores for name in first)
    return 1 if alike else len(scores)
