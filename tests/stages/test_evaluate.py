"""A score belongs to a model, a prompt and a seed: not to the batch, the order, or the other models."""

import json

import numpy as np
import pytest

from flowopd.errors import ConfigError
from flowopd.pipeline import train
from flowopd.prompts import read_prompts, write_prompts
from flowopd.results import Results
from flowopd.stages import judging
from flowopd.stages.evaluate import evaluate
from flowopd.stages.sample import draw_pictures, evaluation_prompts, spread

METRICS = {
    "composition": {"reward": "mini_geneval", "prompts": "composition", "grouped": True},
    "quality": {"reward": "mini_quality", "prompts": "quality"},
}
QUICK = {"metrics": METRICS, "sampling": {"steps": 2, "sampler": "sde", "guidance": 2.0}}


def scored(session):
    """Every score by model, metric and prompt."""
    evaluate(session)
    scores = json.loads((session.out / "scores.json").read_text())
    texts = {label: [prompt.text for prompt in session.prompts(label, "test")] for label in METRICS}
    return {
        (model, metric, text): value
        for model, row in scores.items()
        for metric, values in row.items()
        for text, value in zip(texts[metric], values, strict=True)
    }


@pytest.fixture(scope="module")
def scores(world, tmp_path_factory):
    return scored(world.session(tmp_path_factory.mktemp("scores") / "out", evaluate=QUICK))


def same(scores, others):
    assert scores.keys() == others.keys()
    for (model, metric, text), value in scores.items():
        assert others[model, metric, text] == pytest.approx(value, abs=5e-3)


@pytest.mark.parametrize("size", [1, 5])
def test_scores_do_not_depend_on_the_micro_batch(world, tmp_path, scores, size):
    same(scores, scored(world.session(tmp_path / "out", evaluate={**QUICK, "micro_batch": size})))


def test_scores_do_not_depend_on_the_order_of_prompts(world, tmp_path, scores):
    tree = world.tree(evaluate=QUICK)
    for label, files in tree["prompts"].items():
        backwards = tmp_path / f"{label}.jsonl"
        write_prompts(backwards, read_prompts(world.prompts / "test" / f"{label}.jsonl", label)[::-1])
        files["test"] = str(backwards)
    same(scores, scored(world.session(tmp_path / "out", **tree)))


def test_scores_do_not_depend_on_the_other_models(world, tmp_path, scores):
    alone = scored(world.session(tmp_path / "out", evaluate={**QUICK, "models": ["teacher:quality"]}))
    same({key: value for key, value in scores.items() if key[0] == "teacher:quality"}, alone)


def test_models_are_told_apart(scores):
    assert len({value for (_, metric, _), value in scores.items() if metric == "quality"}) > 6


def test_pictures_do_not_depend_on_the_micro_batch(world, tmp_path):
    drawn = []
    for size in (1, 32):
        session = world.session(tmp_path / "out", evaluate={**QUICK, "micro_batch": size, "images_per_prompt": 2})
        prompts = session.prompts("quality", "test")
        config, conditioning = session.recipe.evaluate, session.encode(prompts)
        drawn.append(draw_pictures(session, "base", prompts, config, conditioning).astype(int))
    assert np.abs(drawn[0] - drawn[1]).max() <= 1
    assert np.abs(drawn[0][0] - drawn[0][1]).max() > 20


def test_pictures_of_one_prompt_count_as_one(world, tmp_path):
    twice = {**QUICK, "images_per_prompt": 2, "limit": 3, "models": ["base"]}
    results = evaluate(world.session(tmp_path / "out", evaluate=twice))
    assert results.estimate("base", "quality").n == 3


def test_a_model_that_is_not_there_is_named(world, tmp_path):
    session = world.session(tmp_path / "out", evaluate={**QUICK, "models": ["base", "student"]})
    with pytest.raises(ConfigError, match="no model 'student' here; there are: base, teacher:composition"):
        evaluate(session)


@pytest.mark.parametrize("limit", [1, 3, 7, None, 20])
def test_a_limit_spreads_over_the_whole_file(limit):
    chosen = spread(range(14), limit)
    assert len(chosen) == min(limit or 14, 14) and len(set(chosen)) == len(chosen)
    assert 0 in chosen and max(chosen) >= 13 - 14 / len(chosen)


def test_a_limit_of_0_is_all(world, tmp_path):
    session = world.session(tmp_path / "out", evaluate={**QUICK, "limit": 0})
    found = evaluation_prompts(session, session.recipe.evaluate)
    assert found["quality", "test"] == session.prompts("quality", "test")
    assert spread(range(14), 0) == []


def test_a_metric_may_name_the_split_of_its_prompts(world, tmp_path):
    metrics = {**METRICS, "trained": {"reward": "mini_quality", "prompts": "quality", "split": "train"}}
    session = world.session(tmp_path / "out", evaluate={**QUICK, "metrics": metrics, "models": ["base"]})
    results = evaluate(session)
    counts = {name: results.estimate("base", name).n for name in ("quality", "trained")}
    assert counts == {
        "quality": len(session.prompts("quality", "test")),
        "trained": len(session.prompts("quality", "train")),
    }
    other = evaluate(world.session(tmp_path / "train", evaluate={**QUICK, "split": "train", "models": ["base"]}))
    assert other.estimate("base", "quality") == results.estimate("base", "trained")


@pytest.fixture
def drawn(monkeypatch):
    """The models whose pictures were drawn, in order; `drawn.fails` names one at which everything ends."""

    class Drawn(list):
        fails = None

    seen = Drawn()

    def looking(session, model, *rest):
        if model == seen.fails:
            raise KeyboardInterrupt
        seen.append(model)
        return draw_pictures(session, model, *rest)

    monkeypatch.setattr(judging, "draw_pictures", looking)
    return seen


def models_of(drawn):
    found = list(dict.fromkeys(drawn))
    drawn.clear()
    return found


def test_an_evaluation_that_is_broken_off_goes_on_where_it_was(world, tmp_path, drawn, scores):
    drawn.fails = "teacher:quality"
    with pytest.raises(KeyboardInterrupt):
        evaluate(world.session(tmp_path / "out", evaluate=QUICK))
    assert models_of(drawn) == ["base", "teacher:composition"]
    drawn.fails = None
    assert scored(world.session(tmp_path / "out", evaluate=QUICK)) == scores
    assert models_of(drawn) == ["teacher:quality"]


def test_what_was_kept_is_of_the_same_settings_and_of_an_evaluation_that_was_broken_off(world, tmp_path, drawn):
    def broken_off_then(**changes):
        drawn.fails = "teacher:quality"
        with pytest.raises(KeyboardInterrupt):
            evaluate(world.session(tmp_path / "out", evaluate=QUICK))
        drawn.fails = None
        drawn.clear()
        evaluate(world.session(tmp_path / "out", **{"evaluate": QUICK} | changes))
        return models_of(drawn)

    teachers = world.tree()["teachers"]
    guided = {**teachers, "composition": {**teachers["composition"], "guidance": 3.0}}
    assert broken_off_then() == ["teacher:quality"]
    assert broken_off_then(evaluate={**QUICK, "limit": 2}) == ["base", "teacher:composition", "teacher:quality"]
    assert broken_off_then(teachers=guided) == ["teacher:composition", "teacher:quality"]
    evaluate(world.session(tmp_path / "out", evaluate=QUICK))
    assert models_of(drawn) == ["base", "teacher:composition", "teacher:quality"]


def test_nothing_is_kept_of_judges_whose_code_may_change(world, tmp_path, drawn, monkeypatch):
    (tmp_path / "their_judge.py").write_text(
        "def grey(): return lambda pictures, prompts: pictures.mean((1, 2, 3)) / 255\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    metrics = {"own": {"reward": "their_judge:grey", "prompts": "quality"}}
    tree = world.tree(evaluate={**QUICK, "metrics": metrics}, trust=["their_judge:grey"])
    drawn.fails = "teacher:quality"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            evaluate(world.session(tmp_path / "out", **tree))
        assert models_of(drawn) == ["base", "teacher:composition"]


def test_without_the_base_there_is_a_table_and_no_gap(world, tmp_path, distilling):
    owned = {"quality": {**METRICS["quality"], "owner": "quality"}}
    session = world.session(
        tmp_path / "out",
        evaluate={**QUICK, "metrics": owned, "models": ["merge", "teacher:quality"]},
        coldstart={"kind": "merge"},
        distill=distilling(updates=1),
    )
    train(session)
    session.recipe = session.recipe.model_copy(
        update={"evaluate": session.recipe.evaluate.model_copy(update={"models": ("student", "teacher:quality")})}
    )
    results = evaluate(session)
    assert list(results.models) == ["student", "teacher:quality"] and results.gap_closed == {}


def content(folder):
    return {name: (folder / name).read_text() for name in ("results.json", "scores.json")}


def test_a_table_that_is_not_made_again_is_put_aside_whole(world, tmp_path, capfd):
    out = tmp_path / "out"
    evaluate(world.session(out, evaluate=QUICK))
    before = content(out)
    evaluate(world.session(out, evaluate={**QUICK, "limit": 2}))
    (aside,) = (out / "evaluations").iterdir()
    assert content(aside) == before != content(out)
    assert f"the table that was here is kept in {aside}" in " ".join(capfd.readouterr().err.split())
    assert Results.load(aside / "results.json").per_prompt == "scores.json"


def test_a_table_with_fewer_models_puts_that_with_more_aside(world, tmp_path):
    out = tmp_path / "out"
    evaluate(world.session(out, evaluate={**QUICK, "models": ["base", "teacher:quality"]}))
    evaluate(world.session(out, evaluate={**QUICK, "models": ["base"]}))
    (aside,) = (out / "evaluations").iterdir()
    assert list(Results.load(aside / "results.json").models) == ["base", "teacher:quality"]


def test_a_table_that_is_made_again_leaves_nothing_aside(world, tmp_path):
    out = tmp_path / "out"
    for models in (["base"], ["base", "teacher:quality"], ["base", "teacher:quality"]):
        evaluate(world.session(out, evaluate={**QUICK, "models": models}))
    assert list(Results.load(out / "results.json").models) == ["base", "teacher:quality"]
    assert not (out / "evaluations").exists()


def test_a_damaged_table_is_replaced(world, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    session = world.session(out, evaluate=QUICK)
    (out / "results.json").write_text("{")
    evaluate(session)
    assert Results.load(out / "results.json").models and not (out / "evaluations").exists()
