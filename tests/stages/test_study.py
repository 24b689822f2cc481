"""A study says what its runs' files say: means over seeds, paired claims, costs; and its page is made from it alone."""

import json
import shutil

import numpy as np
import pytest

from flowopd.errors import ConfigError, DataError
from flowopd.pipeline import open_run, run
from flowopd.recipe import load_recipe
from flowopd.results import AVERAGE, Results
from flowopd.session import Session
from flowopd.stages.curve import CURVE, Curve
from flowopd.stages.interference import INTERFERENCE, Cosines, Interference, write_interference
from flowopd.stages.study import STUDY, Study, page, write_page, write_study
from flowopd.stages.study.effort import best, first_as_good, reached
from flowopd.stages.study.gather import gather
from flowopd.stages.study.pictures import compute, gaps
from flowopd.stages.study.records import Cost, Gap, Spot
from flowopd.stages.workload import workloads
from flowopd.suite import Compute, Reach, load_runs

MEANS = ("composition", "quality")


@pytest.fixture(scope="module")
def studied(world, tmp_path_factory):
    """The file of a suite, the folder of its runs, and the folder of its page; the last row is not run."""
    folder = tmp_path_factory.mktemp("study")
    recipe = world.whole()
    recipe["evaluate"] |= {"models": ["student"], "checkpoints": True}
    recipe["distill"]["optim"] |= {"checkpoint_every": 1, "keep": None}
    (folder / "student.yaml").write_text(json.dumps(recipe))
    experts = {key: value for key, value in world.whole().items() if key not in ("distill", "coldstart")}
    (folder / "experts.yaml").write_text(json.dumps(experts))
    trained = {
        "reward": "mini_quality",
        "prompts": "quality",
        "group": 2,
        "prompts_per_update": 3,
        "optim": {"updates": 5},
    }
    trained["sampling"] = {"steps": 2, "sampler": "sde", "window": 1}
    teachers = {"base": experts["base"], "prompts": experts["prompts"], "teachers": {"quality": {"train": trained}}}
    (folder / "teachers.yaml").write_text(json.dumps(teachers))
    suite = {
        "rows": {
            "experts": {"recipe": "experts.yaml"},
            "student": {"recipe": "student.yaml", "seeds": [0, 1]},
            "later": {"recipe": "student.yaml", "set": {"coldstart": None}},
        },
        "tables": {"main": {"title": "Main", "says": "All of it.", "rows": ["experts", "student", "later"]}},
        "claims": [
            {"says": "student above base", "of": "student/student", "over": "experts/base", "at_least": -1},
            {"says": "by far", "of": "student/student", "over": "experts/base", "metrics": ["quality"], "at_least": 2},
            {
                "says": "ratio",
                "of": "student/student",
                "over": "student/student",
                "metrics": ["quality"],
                "over_metrics": ["unlearnt"],
            },
            {"says": "later", "of": "later/student", "over": "experts/base"},
            {"says": "as soon as itself", "of": "student", "over": "student", "within": 1},
            {"says": "later within", "of": "later", "over": "student", "within": 0.1},
            {
                **{"says": "all of the gain", "of": "student/student", "over": "experts/base", "afterwards": True},
                **{"expert": "experts/teacher:quality", "metric": "quality", "closes": 1},
            },
        ],
        "pictures": {
            "wall": ["experts/base", "student/student", "later/student"],
            "forgetting": "experts",
            "gaps": "student",
            "interference": ["student/student", "later/student"],
        },
        "compute": {
            **{"rows": ["student", "later"], "experts": "experts", "reach": "student"},
            "trained_by": "teachers.yaml",
        },
    }
    (folder / "all.yaml").write_text(json.dumps(suite))
    for planned in load_runs(folder / "all.yaml", folder / "runs", only=["experts", "student"]):
        run(planned.recipe, planned.folder)
    write_interference(open_run(planned.recipe, planned.folder), repeats=1)
    write_study(folder / "all.yaml", folder / "runs", folder / "docs")
    return folder


@pytest.fixture(scope="module")
def study(studied):
    return Study.load(studied / "docs" / "results" / STUDY)


def results(studied, row, seed=0):
    return Results.load(studied / "runs" / row / f"seed-{seed}" / "results.json")


def test_a_line_of_one_seed_is_the_run_s_own_result(studied, study):
    assert study.lines["experts/base"].metrics == results(studied, "experts").models["base"]


def test_a_line_of_two_seeds_is_their_mean_with_each_seed_s_own(studied, study):
    line, rows = study.lines["student/student"], [results(studied, "student", seed) for seed in (0, 1)]
    for metric in (*MEANS, AVERAGE):
        own = [row.estimate("student", metric).mean for row in rows]
        assert [line.by_seed[seed][metric] for seed in (0, 1)] == own
        assert line.metrics[metric].mean == pytest.approx(np.mean(own))


def test_experts_that_are_routed_are_each_on_its_own_metric(study):
    routed = study.lines["experts/routed"].metrics
    own = {name: study.lines[f"experts/teacher:{name}"].metrics[name] for name in MEANS}
    assert {name: routed[name] for name in MEANS} == own and set(routed) == {*MEANS, AVERAGE}
    assert routed[AVERAGE].mean == pytest.approx(np.mean([one.mean for one in own.values()]))
    assert "student/routed" not in study.lines


def test_what_is_not_run_is_missing(study):
    assert study.missing == ["later/seed-0"]
    assert study.verdicts[3].measured is None and study.verdicts[3].standing is None


def test_a_claim_is_measured_prompt_by_prompt(studied, study):
    above = study.lines["student/student"].metrics[AVERAGE].mean - study.lines["experts/base"].metrics[AVERAGE].mean
    assert study.verdicts[0].measured.mean == pytest.approx(above) and study.verdicts[0].standing == "holds"
    assert study.verdicts[1].standing == "fails"
    scores = [json.loads((studied / "runs" / row / "scores.json").read_text()) for row in ("student/seed-0",)]
    assert study.verdicts[1].measured.n == len(scores[0]["student"]["quality"])


def test_a_ratio_is_that_of_the_means(study):
    metrics = study.lines["student/student"].metrics
    measured = study.verdicts[2].measured
    assert measured.mean == pytest.approx(metrics["quality"].mean / metrics["unlearnt"].mean)
    assert measured.ci95[0] <= measured.mean <= measured.ci95[1]


def changed_suite(studied, tmp_path, **changes):
    """The suite with other values at some keys, beside the recipes of the first."""
    for name in ("student.yaml", "experts.yaml", "teachers.yaml"):
        shutil.copy(studied / name, tmp_path)
    (tmp_path / "all.yaml").write_text(json.dumps(json.loads((studied / "all.yaml").read_text()) | changes))
    return tmp_path / "all.yaml"


@pytest.mark.parametrize(
    ("claim", "fault"),
    [
        ({"over": "experts/bse"}, r"claim 'S': row 'experts' has no model 'bse'; it has: base, "),
        ({"over": "experts/base", "metrics": ["qualty"]}, r"claim 'S': row 'student' has no metric 'qualty'; it has: "),
    ],
)
def test_a_claim_of_what_there_is_not_is_refused(studied, tmp_path, claim, fault):
    suite = changed_suite(studied, tmp_path, claims=[{"says": "S", "of": "student/student", **claim}])
    with pytest.raises(ConfigError, match=fault):
        gather(suite, studied / "docs" / "results")


def test_seeds_that_are_one_measurement_count_once(studied, tmp_path):
    results = shutil.copytree(studied / "docs" / "results", tmp_path / "results")
    fixed = json.loads((results / "experts" / "seed-0" / "scores.json").read_text())["base"]
    for seed in (0, 1):
        file = results / "student" / f"seed-{seed}" / "scores.json"
        file.write_text(json.dumps({"student": json.loads(file.read_text())["student"], "fixed": fixed}))
    found = gather(studied / "all.yaml", results)
    assert list(found.lines["student/fixed"].by_seed) == [0] and list(found.lines["student/student"].by_seed) == [0, 1]


def test_a_table_of_another_split_is_not_taken_for_the_row(studied, tmp_path, capsys):
    runs = shutil.copytree(studied / "runs", tmp_path / "runs")
    file = runs / "student" / "seed-0" / "results.json"
    tree = json.loads(file.read_text())
    tree["settings"]["evaluate"] |= {"split": "rewritten", "micro_batch": 3}
    file.write_text(json.dumps(tree))
    change = "evaluate.split ('rewritten' -> 'test')"
    found = gather(studied / "all.yaml", runs)
    assert found.stale == {"student/seed-0": change} and list(found.lines["student/student"].by_seed) == [1]
    write_study(studied / "all.yaml", runs, tmp_path / "docs")
    assert "student/seed-0" in Study.load(tmp_path / "docs" / "results" / STUDY).missing
    assert f"student/seed-0 is left out: it was made before a change of {change}" in capsys.readouterr().err


def test_a_table_of_another_base_is_not_taken_for_the_row(studied, tmp_path):
    runs = shutil.copytree(studied / "runs", tmp_path / "runs")
    file = runs / "student" / "seed-0" / "results.json"
    tree = json.loads(file.read_text())
    tree["settings"]["sha256"]["base"] = 64 * "0"
    file.write_text(json.dumps(tree))
    (change,) = gather(studied / "all.yaml", runs).stale.values()
    assert change.startswith("file of base (sha256 00000000 -> sha256 ")


def test_a_cell_has_the_range_of_its_seeds(studied, study):
    line = study.lines["student/student"]
    text = (studied / "docs" / "RESULTS.md").read_text()
    own = [means["quality"] for means in line.by_seed.values()]
    assert f"{line.metrics['quality']} ({min(own):.3f} to {max(own):.3f})" in text
    assert f"| {study.lines['experts/base'].metrics['quality']} |" in text


def test_checkpoints_that_are_not_judged_yet_are_said(studied, tmp_path):
    results = shutil.copytree(studied / "docs" / "results", tmp_path / "results")
    file = results / "student" / "seed-1" / CURVE
    tree = json.loads(file.read_text())
    file.write_text(json.dumps(tree | {"points": tree["points"][:-1]}))
    found = gather(studied / "all.yaml", results)
    assert found.curveless == ["student/seed-1"] and len(found.curves["student"]) == 3
    file.unlink()
    found = gather(studied / "all.yaml", results)
    assert found.curveless == ["student/seed-1"] and "the checkpoints of `student/seed-1`" in page(found, {})


def test_the_page_says_what_made_each_run(studied, study):
    made = study.made["student/seed-0"]
    manifest = json.loads((studied / "runs" / "student" / "seed-0" / "manifest.json").read_text())
    assert manifest["hardware"]["processor"] in made.machines[0]
    text = (studied / "docs" / "RESULTS.md").read_text()
    assert f"| student/seed-0 | {made.commits[0]} | {made.machines[0]} |" in text


def test_a_drawing_that_is_not_the_others_is_said(study):
    unlike = study.drawing["student"].model_copy(update={"guidance": 2.0})
    text = page(study.model_copy(update={"drawing": {**study.drawing, "later": unlike}}), {})
    assert "; but later one picture a prompt in" in text and "at guidance 2." in text


def test_costs_are_the_planned_passes_and_the_logged_seconds(studied, study):
    from flowopd.session import Session

    planned = load_runs(studied / "all.yaml", studied / "runs", only=["student"])
    (work,) = workloads(Session(planned[0].recipe, planned[0].folder))
    assert study.costs["student"].passes == {"distill": work.passes} and study.costs["experts"].passes == {}
    logged = [[json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()] for run in planned]
    last = [max(row["seconds"] for row in rows if row["stage"] == "distill") for rows in logged]
    assert study.costs["student"].seconds == pytest.approx(np.mean(last))


def test_the_page_shows_every_table_claim_and_figure(studied, study):
    text = (studied / "docs" / "RESULTS.md").read_text()
    for words in ("## Main", "All of it.", "| base |", "| student |", "student above base", "`later/seed-0`"):
        assert words in text
    assert "**fails**" in text and "not measured yet" in text and "all of the gain (found afterwards)" in text
    for figure in ("wall", "forgetting", "gaps", "compute", "interference"):
        assert f"](results/{figure}.png)" in text and (studied / "docs" / "results" / f"{figure}.png").stat().st_size


def test_the_page_is_made_from_the_record_and_its_pictures(studied, study, tmp_path):
    shutil.copytree(studied / "docs" / "results", tmp_path / "results", ignore=shutil.ignore_patterns("*.json"))
    write_page(study, tmp_path)
    assert (tmp_path / "RESULTS.md").read_text() == (studied / "docs" / "RESULTS.md").read_text()


def test_the_page_stays_when_the_runs_are_gone(studied, study, tmp_path):
    shutil.copytree(studied / "docs" / "results", tmp_path / "docs" / "results")
    write_study(studied / "all.yaml", tmp_path / "nowhere", tmp_path / "docs")
    assert (tmp_path / "docs" / "RESULTS.md").read_text() == (studied / "docs" / "RESULTS.md").read_text()
    kept = {file.name for file in (tmp_path / "docs" / "results" / "student" / "seed-1").iterdir()}
    files = {*("manifest.json", "metrics.jsonl", "scores.json"), "results.json", CURVE, INTERFERENCE}
    assert kept == {*files, "samples"}


def test_of_another_run_in_its_place_nothing_stays(studied, tmp_path):
    docs = shutil.copytree(studied / "docs", tmp_path / "docs")
    kept, run = docs / "results" / "student" / "seed-1", studied / "runs" / "student" / "seed-1"
    (kept / "results.json").write_text((kept / "results.json").read_text().replace('"mean"', '"mean" '))
    (kept / "scores.json").write_text("{}")
    (kept / "samples" / "9-student.png").write_bytes(b"of the other run")
    (kept / "weights").write_bytes(b"no file of a study")
    runs = shutil.copytree(studied / "runs", tmp_path / "runs")
    (runs / "student" / "seed-1" / INTERFERENCE).unlink()
    write_study(studied / "all.yaml", runs, docs)
    assert not (kept / INTERFERENCE).exists() and not (kept / "samples" / "9-student.png").exists()
    assert (kept / "weights").exists()
    assert all((kept / name).read_bytes() == (run / name).read_bytes() for name in ("results.json", "scores.json"))


def test_the_wall_has_the_pictures_of_the_runs(studied, study):
    prompts = json.loads((studied / "runs" / "experts" / "seed-0" / "samples" / "index.json").read_text())["prompts"]
    assert study.wall.prompts == prompts
    files = {"experts/base": ("experts", "base"), "student/student": ("student", "student")}
    assert study.wall.files == {
        name: [f"{row}/seed-0/samples/{i}-{model}.png" for i in range(len(prompts))]
        for name, (row, model) in files.items()
    }
    for file in (file for own in study.wall.files.values() for file in own):
        assert (studied / "docs" / "results" / file).read_bytes() == (studied / "runs" / file).read_bytes()


def test_a_wall_leaves_out_a_row_of_other_prompts(studied, tmp_path):
    results = shutil.copytree(studied / "docs" / "results", tmp_path / "results")
    index = results / "student" / "seed-0" / "samples" / "index.json"
    index.write_text(json.dumps({"prompts": ["something else"], "models": ["student"]}))
    found = gather(studied / "all.yaml", results)
    assert {name: files[0].split("/")[1] for name, files in found.wall.files.items()} == {
        "experts/base": "seed-0",
        "student/student": "seed-1",
    }


def test_a_run_of_another_recipe_is_not_shown(studied, tmp_path):
    for name in ("student.yaml", "experts.yaml", "teachers.yaml", "all.yaml"):
        shutil.copy(studied / name, tmp_path)
    recipe = json.loads((tmp_path / "student.yaml").read_text())
    recipe["distill"]["weighting"] = "ode"
    (tmp_path / "student.yaml").write_text(json.dumps(recipe))
    write_study(tmp_path / "all.yaml", studied / "runs", tmp_path / "docs")
    assert not (tmp_path / "docs" / "results" / "student").exists()
    shutil.copytree(studied / "runs" / "student", tmp_path / "docs" / "results" / "student")
    write_study(tmp_path / "all.yaml", tmp_path / "nowhere", tmp_path / "docs")
    found = Study.load(tmp_path / "docs" / "results" / STUDY)
    change = "distill.weighting ('velocity' -> 'ode')"
    assert found.stale == {"student/seed-0": change, "student/seed-1": change}
    assert set(found.costs) == {"experts"} and "student/seed-0" not in found.missing
    assert f"`student/seed-1` (made before a change of {change})" in (tmp_path / "docs" / "RESULTS.md").read_text()


def test_a_study_that_is_not_there_or_no_study_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist; flowopd study writes it"):
        Study.load(tmp_path / "study.json")
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(DataError, match=r"suite: Field required"):
        Study.load(tmp_path / "study.json")


def test_a_study_without_runs_has_an_honest_page(studied, study):
    nothing = {"lines": {}, "costs": {}, "gaps": {}, "curves": {}, "interference": {}, "verdicts": [], "columns": {}}
    empty = study.model_copy(update={**nothing, "missing": ["a/seed-0"], "stale": {}})
    text = page(empty, {})
    assert "Not run yet" in text and "## Main" not in text


def spot(update, average, passes=None, seconds=None, stage="distill"):
    passes = 100.0 * update if passes is None else passes
    return Spot(stage=stage, update=update, passes=passes, seconds=seconds, average=average, closed=None)


def test_a_row_s_curve_is_the_mean_of_its_seeds(studied, study):
    curves = [Curve.load(studied / "runs" / "student" / f"seed-{seed}" / CURVE).points for seed in (0, 1)]
    for i, found in enumerate(study.curves["student"]):
        points = [curve[i] for curve in curves]
        assert (found.stage, found.update, found.passes) == ("distill", i, points[0].passes)
        assert found.average == pytest.approx(np.mean([point.metrics[AVERAGE].mean for point in points]))
        assert found.seconds == pytest.approx(np.mean([point.seconds for point in points]))
    assert len(study.curves["student"]) == 3 and "experts" not in study.curves


def test_the_last_spot_closes_the_gap_as_the_row_does(study):
    base, line = study.lines["experts/base"].metrics, study.lines["student/student"].metrics
    experts = {name: study.lines[f"experts/teacher:{name}"].metrics[name].mean for name in MEANS}
    gained, could = (
        sum(values[name] - base[name].mean for name in MEANS)
        for values in ({name: line[name].mean for name in MEANS}, experts)
    )
    assert study.curves["student"][-1].closed == pytest.approx(gained / could if could > 0 else None)


def test_a_claim_of_compute_is_measured_where_both_curves_are_there(study):
    itself, later = study.verdicts[4:6]
    assert itself.holds and itself.first == itself.best == best(study.curves["student"])
    assert later.holds is None and later.best is not None


CURVES = {
    "slow": [spot(0, 0.2), spot(10, 0.5), spot(20, 0.7), spot(30, 0.6)],
    "fast": [spot(0, 0.3), spot(1, 0.6), spot(2, 0.71), spot(3, 0.9)],
    "weak": [spot(0, 0.2), spot(40, 0.69)],
    "ready": [spot(0, 0.8), spot(1, 0.7)],
}


@pytest.mark.parametrize(
    ("of", "over", "within", "share", "holds"),
    [
        ("fast", "slow", 0.1, 0.1, True),
        ("fast", "slow", 0.09, 0.1, False),
        ("weak", "slow", 9, None, False),
        ("slow", "weak", 0.5, 0.5, True),
        ("fast", "ready", 9, None, False),
        ("ready", "ready", 0.1, None, True),
        ("gone", "slow", 9, None, None),
        ("fast", "gone", 9, None, None),
    ],
)
def test_a_row_reaches_the_best_of_another_at_its_first_spot_that_is_as_good(of, over, within, share, holds):
    found = reached(Reach(says="S", of=of, over=over, within=within), CURVES)
    assert (found.share, found.holds) == (share, holds)


def test_the_best_spot_is_the_earliest_of_equals():
    curve = [spot(0, 0.1), spot(1, 0.5), spot(2, 0.5)]
    assert best(curve).update == 1 and first_as_good(curve, 0.5).update == 1 and first_as_good(curve, 0.6) is None


def test_the_page_tells_who_reaches_whom_when(study):
    curves = {"student": [spot(0, 0.2, seconds=0.0), spot(4, 0.75, seconds=8.0)], "mix": CURVES["slow"]}
    asked = Compute(rows=("student", "mix", "weak"), reach="mix")
    verdict = reached(Reach(says="in a fifth", of="student", over="mix", within=0.2), curves)
    never = reached(Reach(says="never so good", of="mix", over="student", within=0.2), curves)
    costs = {"student": Cost(seconds=8, passes={}, taught=1000), "mix": Cost(seconds=0, passes={})}
    changes = {"curves": curves, "compute": asked, "verdicts": [verdict, never], "costs": costs}
    text = page(study.model_copy(update=changes), {})
    assert "| in a fifth | 20% of the passes | 20.0% |  |  | **holds** |" in text
    assert "| never so good | 20% of the passes | never |  |  | **fails** |" in text
    assert "| student | 1 | 0.750 |  | distill 4 | 400 | 8 | 1,400 | 0.500 (1,000) | distill 4 | 400 | 20.0% |" in text
    assert (
        "| mix | 1 | 0.700 |  | distill 20 | 2,000 |  | 2,000 | 0.700 (2,000) | distill 20 | 2,000 | 100.0% |" in text
    )
    assert "0.700 after" in text and "| weak |" not in text


def test_a_figure_of_compute_has_a_line_a_row_and_leaves_out_what_is_not_known(study):
    asked = Compute(rows=("slow", "fast", "gone"))
    costs = {"slow": Cost(seconds=0, passes={}), "fast": Cost(seconds=0, passes={}, taught=1000)}
    shown = study.model_copy(update={"curves": {"slow": CURVES["slow"], "fast": CURVES["fast"]}, "costs": costs})
    by_passes, by_seconds = compute(shown, asked).axes
    assert [len(line.get_xdata()) for line in by_passes.get_lines()] == [4, 4, 4]
    after_experts = by_passes.get_lines()[2]
    assert after_experts.get_linestyle() == "--" and list(after_experts.get_xdata()) == [1000, 1100, 1200, 1300]
    assert [len(line.get_xdata()) for line in by_seconds.get_lines()] == [0, 0]
    assert compute(study.model_copy(update={"curves": {}}), asked) is None


def test_gaps_are_shown_with_the_share_that_closed(study):
    gap = Gap(first={"a": [2.0, 1.0], "b": [4.0, None]}, last={"a": [0.5, 1.0], "b": [1.0, None]}, curve=[])
    figure = gaps(study.model_copy(update={"gaps": {"student": gap}}), "student")
    words = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert words == [["2", "4", "1"], ["0.5", "1", "1"], ["75%", "75%", "0%"]]


def test_interference_is_that_of_the_row_s_run(studied, study):
    own = Interference.load(studied / "runs" / "student" / "seed-1" / INTERFERENCE).measured
    assert study.interference == {"student/student": list(own)}


def cosines(mean, spread, tasks=("a", "b"), repeats=4):
    """A measurement of two tasks."""
    return Cosines(
        **{"stage": "grpo_mix", "model": "student", "seed": 0, "repeats": repeats, "tasks": list(tasks)},
        **{"mean": mean, "spread": spread, "norms": {}},
    )


def test_cosines_are_told_pair_by_pair_and_without_their_noise(study):
    known = cosines([[0.5, -0.2], [-0.2, 0.32]], [[0.1, 0.04], [0.04, 0.1]])
    noise = cosines([[0.09, -0.2], [-0.2, 0.32]], [[0.1, 0.04], [0.04, 0.1]])
    absent = cosines([[None, 0.1], [0.1, None]], [[None, None], [None, None]])
    text = page(study.model_copy(update={"interference": {"x/student": [known, noise, absent]}}), {})
    assert "| x/student | grpo_mix | +0.32 to +0.50 | -0.20 ± 0.04 (-0.50 ± 0.14) | 4 |" in text
    assert "| x/student | grpo_mix | +0.09 to +0.32 | -0.20 ± 0.04 | 4 |" in text
    assert "| x/student | grpo_mix |  | +0.10 | 4 |" in text


def test_a_cosine_without_noise_is_that_of_the_gradients_that_noise_was_added_to():
    generator = np.random.default_rng(0)
    a, b = np.array([1.0, 0, 0, 0]), np.array([-0.6, 0.8, 0, 0])
    batches = [[side + generator.normal(size=(2000, 4)) for side in (a, b)] for _ in range(2)]
    unit = [[one / np.linalg.norm(one, axis=1, keepdims=True) for one in pair] for pair in batches]
    every = np.array([[(unit[0][i] * unit[1][j]).sum(1) for j in (0, 1)] for i in (0, 1)])
    mean = (every.mean(2) + every.mean(2).T) / 2
    found = cosines(mean.tolist(), every.std(2, ddof=1).tolist(), repeats=2000)
    assert abs(mean[0, 1]) < 0.3
    true, error = found.without_noise("a", "b")
    assert true == pytest.approx(a @ b, abs=3 * error) and error < 0.1


def test_the_error_of_a_cosine_is_over_the_repeats_that_have_it():
    values = [[0.5, 0.1], [0.1, 0.5]], [[0.2, 0.2], [0.2, 0.2]]
    assert cosines(*values, repeats=16).cosine("a", "b") == (0.1, 0.05)
    few = cosines(*values, repeats=16).model_copy(update={"counts": [[16, 4], [4, 16]]})
    assert few.cosine("a", "b") == (0.1, 0.1) and few.cosine("a", "a") == (0.5, 0.05)
    fewer = few.model_copy(update={"counts": [[16, 3], [3, 16]]})
    assert fewer.cosine("a", "b") == (0.1, None) and fewer.without_noise("a", "b") is None
    assert cosines(values[0], [[None, 0.2], [0.2, 0.2]]).cosine("a", "b") == (0.1, None)


def test_what_the_experts_took_stands_beside_what_their_student_took(study, studied):
    session = Session(load_recipe(studied / "teachers.yaml"), studied / "nowhere")
    (own,) = (work.passes for work in workloads(session))
    (distilled,) = study.costs["student"].passes.values()
    assert study.experts == {"teacher:quality": own} and own > 0
    told = (studied / "docs" / "RESULTS.md").read_text()
    assert f"| the experts' own |  | {own:,.0f} |  | teacher:quality {own:,.0f} |" in told
    assert f"| student |  | {distilled:,.0f} | {own + distilled:,.0f} | distill {distilled:,.0f} |" in told


def test_the_recipe_that_trained_the_experts_must_be_there(studied, tmp_path):
    suite = json.loads((studied / "all.yaml").read_text())
    suite["compute"]["trained_by"] = "nowhere.yaml"
    file = studied / "wrong.yaml"
    file.write_text(json.dumps(suite))
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        write_study(file, studied / "runs", tmp_path / "docs")
