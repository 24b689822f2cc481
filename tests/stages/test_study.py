"""A study says what its runs' files say: means over seeds, paired claims, costs; and its page is made from it alone."""

import json

import numpy as np
import pytest

from flowopd.errors import DataError
from flowopd.pipeline import run
from flowopd.results import AVERAGE, Results
from flowopd.stages.study import STUDY, Study, page, write_page, write_study
from flowopd.stages.workload import workloads
from flowopd.suite import load_runs

MEANS = ("composition", "quality")


@pytest.fixture(scope="module")
def studied(world, tmp_path_factory):
    """The file of a suite, the folder of its runs, and the folder of its page; the last row is not run."""
    folder = tmp_path_factory.mktemp("study")
    recipe = world.whole()
    recipe["evaluate"]["models"] = ["student"]
    (folder / "student.yaml").write_text(json.dumps(recipe))
    experts = {key: value for key, value in world.whole().items() if key not in ("distill", "coldstart")}
    (folder / "experts.yaml").write_text(json.dumps(experts))
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
        ],
        "pictures": {"forgetting": "experts", "gaps": "student"},
    }
    (folder / "all.yaml").write_text(json.dumps(suite))
    for planned in load_runs(folder / "all.yaml", folder / "runs", only=["experts", "student"]):
        run(planned.recipe, planned.folder)
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


def test_what_is_not_run_is_missing(study):
    assert study.missing == ["later/seed-0"]
    assert study.verdicts[3].measured is None and study.verdicts[3].holds is None


def test_a_claim_is_measured_prompt_by_prompt(studied, study):
    above = study.lines["student/student"].metrics[AVERAGE].mean - study.lines["experts/base"].metrics[AVERAGE].mean
    assert study.verdicts[0].measured.mean == pytest.approx(above) and study.verdicts[0].holds
    assert study.verdicts[1].holds is False
    scores = [json.loads((studied / "runs" / row / "scores.json").read_text()) for row in ("student/seed-0",)]
    assert study.verdicts[1].measured.n == len(scores[0]["student"]["quality"])


def test_a_ratio_is_that_of_the_means(study):
    metrics = study.lines["student/student"].metrics
    measured = study.verdicts[2].measured
    assert measured.mean == pytest.approx(metrics["quality"].mean / metrics["unlearnt"].mean)
    assert measured.ci95[0] <= measured.mean <= measured.ci95[1]


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
    assert "**does not hold**" in text and "not measured yet" in text
    for figure in ("forgetting", "gaps"):
        assert f"](results/{figure}.png)" in text and (studied / "docs" / "results" / f"{figure}.png").stat().st_size


def test_the_page_is_made_from_the_record_alone(studied, study, tmp_path):
    write_page(study, tmp_path)
    assert (tmp_path / "RESULTS.md").read_text() == (studied / "docs" / "RESULTS.md").read_text()


def test_a_study_that_is_not_there_or_no_study_is_refused(tmp_path):
    with pytest.raises(DataError, match="gather the runs of a suite first"):
        Study.load(tmp_path / "study.json")
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(DataError, match=r"suite: Field required"):
        Study.load(tmp_path / "study.json")


def test_a_study_without_runs_has_an_honest_page(studied, study):
    empty = study.model_copy(update={"lines": {}, "costs": {}, "gaps": {}, "missing": ["a/seed-0"], "verdicts": []})
    text = page(empty, {})
    assert "Not run yet" in text and "## Main" not in text
