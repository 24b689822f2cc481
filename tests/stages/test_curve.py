"""A curve says of every checkpoint how good it is and what it took; no point is drawn twice."""

import json
import shutil

import pytest

from flowopd.errors import DataError
from flowopd.pipeline import open_run
from flowopd.recipe import make_recipe
from flowopd.results import AVERAGE, Results, shares_closed
from flowopd.stages.coldstart import cold_start
from flowopd.stages.curve import CURVE, Curve, foundations, start_of, thinned
from flowopd.stages.distill import distill
from flowopd.stages.evaluate import evaluate
from flowopd.stages.judging import Judging
from flowopd.stages.workload import workloads

STEPS = (1, 2, 3)


@pytest.fixture(scope="module")
def run(kept, tmp_path_factory):
    """A copy of the run with its curve."""
    out = shutil.copytree(kept.out, tmp_path_factory.mktemp("curve") / "out")
    evaluate(session(kept, out))
    return out


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def session(kept, out, **evaluation):
    tree = kept.recipe.model_dump(exclude_unset=True)
    tree["evaluate"] |= {"checkpoints": True, **evaluation}
    return open_run(make_recipe(tree), out)


@pytest.fixture
def judged(monkeypatch):
    """The models that are judged, as they are."""
    models, scores = [], Judging.scores
    monkeypatch.setattr(Judging, "scores", lambda self, model: models.append(model) or scores(self, model))
    return models


def named(*steps):
    return [f"checkpoint:distill/{step}" for step in steps]


def test_points_are_the_start_and_every_checkpoint(run):
    points = Curve.load(run / CURVE).points
    assert [(p.stage, p.update, p.model) for p in points] == [
        ("distill", 0, "merge"),
        *(("distill", step, name) for step, name in zip(STEPS, named(*STEPS), strict=True)),
    ]


def test_the_first_is_the_start_s_row_and_the_last_the_student_s(run):
    points, rows = Curve.load(run / CURVE).points, Results.load(run / "results.json").models
    assert points[0].metrics == rows["merge"] and points[-1].metrics == rows["student"]
    assert points[1].metrics != points[2].metrics


def test_passes_grow_with_the_updates_up_to_the_plan_s(run, kept):
    (work,) = workloads(kept)
    assert [p.passes for p in Curve.load(run / CURVE).points] == [work.passes * step / 3 for step in (0, *STEPS)]


def test_seconds_are_those_of_the_log(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [row["seconds"] for row in rows if row["stage"] == "distill"]
    assert [p.seconds for p in Curve.load(run / CURVE).points] == [0, *logged]


def test_seconds_that_were_not_logged_are_none(kept, copy):
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    (copy / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines if '"step": 1' not in line))
    evaluate(session(kept, copy))
    assert [p.seconds is None for p in Curve.load(copy / CURVE).points] == [False, False, True, True]


def test_gaps_closed_are_those_of_the_table(run):
    last = Curve.load(run / CURVE).points[-1]
    assert last.gap_closed["quality"] == Results.load(run / "results.json").gap_closed["quality"]
    assert last.gap_closed[AVERAGE] == last.gap_closed["quality"]


def test_a_point_is_drawn_once(kept, copy, judged):
    before = (copy / CURVE).read_text()
    evaluate(session(kept, copy, models=["student"]))
    assert judged == ["student"] and (copy / CURVE).read_text() == before


def test_what_is_missing_is_drawn_alone(kept, copy, judged):
    curve = Curve.load(copy / CURVE)
    curve.model_copy(update={"points": curve.points[:-1]}).save(copy / CURVE)
    evaluate(session(kept, copy, models=["student"]))
    assert judged == ["student", *named(3)] and Curve.load(copy / CURVE) == curve


def test_a_kill_between_two_points_loses_none_and_leaves_no_table_that_looks_done(kept, copy, judged, monkeypatch):
    for file in (CURVE, "results.json"):
        (copy / file).unlink()
    scores = Judging.scores
    monkeypatch.setattr(Judging, "scores", lambda self, model: scores(self, model) if model[-1] != "3" else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(session(kept, copy, models=["merge"]))
    assert [p.update for p in Curve.load(copy / CURVE).points] == [0, 1, 2]
    assert not (copy / "results.json").exists()


def test_other_settings_are_drawn_anew(kept, copy, judged):
    evaluate(session(kept, copy, models=["student"], limit=2))
    assert judged == ["student", "merge", *named(*STEPS)]
    assert {p.metrics["quality"].n for p in Curve.load(copy / CURVE).points} == {2}


def test_a_checkpoint_that_changed_is_drawn_anew(kept, copy, judged):
    place = copy / "checkpoints" / "distill"
    shutil.rmtree(place / "step-3")
    shutil.copytree(place / "step-1", place / "step-3")
    evaluate(session(kept, copy, models=["student"]))
    points = Curve.load(copy / CURVE).points
    assert judged == ["student", *named(3)] and points[3].metrics == points[1].metrics


def test_a_point_outlives_its_checkpoint(kept, copy, judged):
    before = Curve.load(copy / CURVE)
    shutil.rmtree(copy / "checkpoints")
    evaluate(session(kept, copy, models=["student"]))
    assert judged == ["student"] and Curve.load(copy / CURVE) == before


def test_so_many_checkpoints_are_drawn_as_are_asked_for(kept, copy, judged):
    (copy / CURVE).unlink()
    evaluate(session(kept, copy, models=["merge"], checkpoints=2))
    assert judged == ["merge", *named(1, 3)]


@pytest.mark.parametrize(
    ("most", "left"), [(True, "abcdefg"), (9, "abcdefg"), (7, "abcdefg"), (3, "bdg"), (2, "cg"), (1, "g")]
)
def test_checkpoints_are_thinned_evenly_and_the_last_stays(most, left):
    assert "".join(thinned("abcdefg", most)) == left and thinned([], most) == []


def test_metrics_of_other_prompts_than_the_average_s_are_left_out(kept, copy, judged):
    metrics = kept.recipe.model_dump(exclude_unset=True)["evaluate"]["metrics"]
    elsewhere = next(iter(metrics.values())) | {"split": "train", "owner": None, "held_out": True}
    beside = next(iter(metrics.values())) | {"owner": None, "held_out": True}
    evaluate(session(kept, copy, metrics={**metrics, "elsewhere": elsewhere, "beside": beside}))
    points = Curve.load(copy / CURVE).points
    assert {name for point in points for name in point.metrics} == {*metrics, "beside", AVERAGE}
    assert {"elsewhere", "beside"} <= set(Results.load(copy / "results.json").models["merge"])


def test_no_curve_is_drawn_unless_it_is_asked_for(kept, copy):
    (copy / CURVE).unlink()
    evaluate(session(kept, copy, models=["student"], checkpoints=False))
    assert not (copy / CURVE).exists()


def test_the_table_has_the_same_hash_with_a_curve_and_without(kept, copy, run):
    evaluate(session(kept, copy, checkpoints=False))
    hashes = [Results.load(place / "results.json").settings["hash"] for place in (copy, run)]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "does not exist; flowopd eval --checkpoints writes it"), ("{}", "settings: Field requ")],
)
def test_a_file_that_is_no_curve_is_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / CURVE).write_text(content)
    with pytest.raises(DataError, match=words):
        Curve.load(tmp_path / CURVE)


TRAIN = {"reward": "mini_quality", "prompts": "quality"}
TASKS = {"tasks": {"a": TRAIN}, "start": "coldstart"}


@pytest.mark.parametrize(
    ("parts", "stage", "below", "start"),
    [
        ({"distill": {}}, "distill", [], "base"),
        ({"distill": {}, "coldstart": {"kind": "merge"}}, "distill", [], "merge"),
        ({"distill": {}, "coldstart": {"kind": "sft"}}, "distill", ["sft"], "sft"),
        ({"coldstart": {"kind": "sft"}}, "sft", [], "base"),
        ({"teachers": {"q": {"train": TRAIN}}, "coldstart": {"kind": "sft"}}, "sft", ["teacher:q"], "base"),
        (
            {"teachers": {"q": {"train": TRAIN}}, "coldstart": {"kind": "sft"}, "distill": {}},
            "distill",
            ["teacher:q", "sft"],
            "sft",
        ),
        ({"teachers": {"q": {"train": TRAIN}}}, "teacher:q", [], "base"),
        ({"grpo_mix": {**TASKS, "start": "base"}, "coldstart": {"kind": "sft"}}, "grpo_mix", [], "base"),
        ({"grpo_mix": TASKS, "coldstart": {"kind": "sft"}}, "grpo_mix", ["sft"], "sft"),
    ],
)
def test_a_stage_counts_what_it_builds_on(world, parts, stage, below, start):
    recipe = make_recipe({**world.tree(), **parts})
    assert (foundations(recipe, stage), start_of(recipe, stage)) == (below, start)


def test_the_share_of_all_gaps_is_that_of_the_mean_gains():
    base, experts = {"a": 0.2, "b": 0.5, "c": 0.9}, {"a": 0.6, "b": 0.51, "c": 0.8}
    shares = shares_closed({"a": 0.4, "b": 0.6, "c": 0.9}, base, experts)
    assert shares["a"] == pytest.approx(0.5) and shares["b"] == pytest.approx(10) and shares["c"] is None
    assert shares[AVERAGE] == pytest.approx((0.2 + 0.1 + 0.0) / (0.4 + 0.01 - 0.1))
    assert shares_closed(base, base, {}) == {}


def test_a_student_counts_the_fine_tuning_that_it_starts_from(world, tmp_path, distilling):
    sft = {"kind": "sft", "images": 2, "batch": 2, "sampling": {"steps": 1}, "optim": {"updates": 2}}
    metrics = {"quality": {"reward": "mini_quality", "prompts": "quality"}}
    evaluation = {"metrics": metrics, "limit": 1, "sampling": {"steps": 1}, "models": ["base"], "checkpoints": True}
    session = world.session(tmp_path / "out", coldstart=sft, distill=distilling(updates=1), evaluate=evaluation)
    cold_start(session)
    distill(session)
    evaluate(session)
    points = {(p.stage, p.update): p for p in Curve.load(session.out / CURVE).points}
    tuning, teaching = workloads(session)
    assert {key: p.passes for key, p in points.items()} == {
        ("sft", 0): 0,
        ("sft", 2): tuning.passes,
        ("distill", 0): tuning.passes,
        ("distill", 1): tuning.passes + teaching.passes,
    }
    assert points["distill", 0].seconds == points["sft", 2].seconds < points["distill", 1].seconds
    assert points["distill", 0].metrics == points["sft", 2].metrics and points["sft", 0].model == "base"
