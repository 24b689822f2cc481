"""What would fail only after hours of training, refused before any stage begins."""

from __future__ import annotations

from collections.abc import Sequence

from flowopd.configs import DistillConfig, MetricConfig, RewardConfig
from flowopd.errors import ConfigError, DataError
from flowopd.hub import check_shipped, located
from flowopd.objectives import step_weights
from flowopd.prompts import DATASET, Prompt, absent
from flowopd.recipe import Recipe
from flowopd.results import BASE
from flowopd.rewards.registry import REWARDS, check_prompts, check_reward
from flowopd.session import Session
from flowopd.stages.sample import asked, evaluation_prompts
from flowopd.stages.updates import counts_of, plans_of
from flowopd.tracking.boards import check_boards


def check(session: Session) -> None:
    """Refuse now what would fail only after hours of training.

    Raises ConfigError for an unknown reward, teacher or anchor, a tracker that is not installed, more labels or steps
    in an update than there are, and a judge elsewhere that a stage to come needs and that is not there; CheckpointError
    for an expert that is missing or does not fit, DataError for prompt files that cannot be read, labels without a
    route, and prompts that their judge cannot use.
    """
    recipe = session.recipe
    check_named(recipe)
    check_boards(recipe.track)
    _check_rewards(recipe)
    session.reach_judges(_due(session))
    for train in recipe.rewarded():
        _check_asked(session, train.reward, f"{train.prompts}.train", session.prompts(train.prompts, "train"))
    for name, teacher in recipe.teachers.items():
        if teacher.adapter is not None:
            session.adapters.checked(name, session.teacher_folder(name))
        elif (whole := session.whole_teacher(name)) is not None:
            session.model.check_whole(whole)
    if recipe.distill is not None:
        check_distillation(session, recipe.distill)
    if recipe.evaluate is not None:
        prompts = evaluation_prompts(session, recipe.evaluate)
        for metric in recipe.evaluate.metrics.values():
            source = asked(metric, recipe.evaluate)
            _check_asked(session, metric.reward, ".".join(source), prompts[source])


def check_named(recipe: Recipe) -> None:
    """Refuse what a recipe names and has not; nothing is opened.

    Raises ConfigError for an anchor that is no model of the recipe, a metric's owner that is no teacher and an expert
    that does not ship, DataError for a prompt file that is not there.
    """
    check_anchor(recipe)
    check_owners(recipe)
    for name, teacher in recipe.teachers.items():
        for key, source in (("adapter", teacher.adapter), ("transformer", teacher.transformer)):
            check_shipped(source or "", f"teachers.{name}.{key}: ")
    for files in recipe.prompts.values():
        for source in files.model_dump(exclude_none=True).values():
            if not source.startswith(DATASET) and not located(source).exists():
                raise absent(source)


def check_anchor(recipe: Recipe) -> None:
    """Raises ConfigError for an anchor that is no model of the recipe."""
    models = (BASE, *recipe.teachers)
    anchor = recipe.distill.anchor if recipe.distill else None
    if anchor is not None and anchor.model not in models:
        raise ConfigError(
            f"the anchor {anchor.model!r} is no model of the recipe; set distill.anchor.model to one of "
            f"{', '.join(models)}"
        )


def check_owners(recipe: Recipe) -> None:
    """Raises ConfigError for a metric whose owner is no teacher of the recipe."""
    metrics = recipe.evaluate.metrics.items() if recipe.evaluate else ()
    for name, metric in metrics:
        if metric.owner is not None and metric.owner not in recipe.teachers:
            known = ", ".join(recipe.teachers) or "none"
            raise ConfigError(
                f"evaluate.metrics.{name}.owner {metric.owner!r} is no teacher (the recipe has: {known}); name one, or "
                "leave it out"
            )


def check_distillation(session: Session, config: DistillConfig) -> None:
    """Refuse what the first update would.

    Raises ConfigError for more labels or steps in an update than there are, weights that are not one a step, and a
    step that has no noise where loss or weighting needs it; DataError for labels without a route.
    """
    recipe = session.recipe
    samples = sum(counts_of(config, recipe.trained_labels(), turn=0).values())
    queried = {i for queries in plans_of(config, recipe.seed, 0, 1, samples)[0] for i in queries.indices}
    dynamics, grid = config.sampling.dynamics(), session.model.grid(config.sampling.steps)
    step_weights(config.weighting, dynamics, grid)
    if config.is_sampled and config.distillation:
        for i in range(config.sampling.steps) if config.looks_ahead else queried:
            dynamics[i].kl_weight(grid[i], grid[i + 1])
    _check_routes(session)


def _check_routes(session: Session) -> None:
    """Raises DataError for a label without a route; for one that a record brings itself, with where the record is."""
    prompts = session.training_prompts()
    try:
        session.route([prompt.label for each in prompts.values() for prompt in each])
    except DataError:
        for label, each in prompts.items():
            for prompt in each:
                if prompt.label != label:
                    _check_route(session, prompt, f"prompts.{label}.train")
        raise


def _check_route(session: Session, prompt: Prompt, source: str) -> None:
    """Raises DataError, which names the record and its source, if its own label has no route."""
    try:
        session.route([prompt.label])
    except DataError as error:
        mend = "mend the record's label, or add it to `routes`"
        raise DataError(f"{source}, {prompt.text[:60]!r}: {error}; {mend}") from None


def _check_rewards(recipe: Recipe) -> None:
    """Refuse unknown rewards and settings that they ignore; a judge that no stage asks has to be a known one."""
    metrics = recipe.evaluate.metrics.values() if recipe.evaluate else ()
    asked = dict.fromkeys(each.reward for each in (*recipe.rewarded(), *metrics))
    for name in (*asked, *(name for name in recipe.judges if name not in asked)):
        check_reward(name, recipe.judges.get(name) if name in asked or name in REWARDS else None)


def _check_asked(session: Session, reward: str, source: str, prompts: Sequence[Prompt]) -> None:
    """Raises DataError, which names their source, for prompts that a reward here cannot judge."""
    if reward in session.recipe.judges and session.recipe.judges[reward].url is not None:
        return
    try:
        check_prompts(reward, prompts)
    except DataError as error:
        raise DataError(f"prompts.{source}, which {reward} judges: {error}") from None


def _due(session: Session) -> list[str]:
    """The rewards that the stages to come ask for."""
    recipe, out = session.recipe, session.out
    due: list[RewardConfig | MetricConfig] = []
    for name, teacher in recipe.teachers.items():
        if teacher.train is not None and not (out / "teachers" / name).exists():
            due.append(teacher.train)
    if recipe.grpo_mix is not None and not (out / "grpo_mix").exists():
        due += recipe.grpo_mix.tasks.values()
    if recipe.evaluate is not None:
        due += recipe.evaluate.metrics.values()
    return [each.reward for each in due]
