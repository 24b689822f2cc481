"""What the demo promises, on the whole test split: the student is all of its experts. About a quarter of an hour."""

import subprocess
import sys

import pytest

from flowopd.results import Results

pytestmark = pytest.mark.slow

EXPERTS = ("composition", "text", "quality")
LEAST_PROMPTS = 300


def flowopd(*words):
    subprocess.run([sys.executable, "-m", "flowopd", *map(str, words)], check=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The demo, evaluated again on every test prompt."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    flowopd("demo", "--out", out)
    flowopd("eval", "--out", out, "--limit", 0)
    return Results.load(out / "results.json")


@pytest.mark.parametrize("metric", EXPERTS)
def test_the_base_starts_in_the_middle(results, metric):
    base = results.estimate("base", metric)
    assert 0.4 <= base.mean <= 0.7 and base.n >= LEAST_PROMPTS


@pytest.mark.parametrize("metric", EXPERTS)
def test_an_expert_knows_its_own_metric(results, metric):
    expert, base = results.estimate(f"teacher:{metric}", metric), results.estimate("base", metric)
    assert expert.mean >= base.mean + 0.2


@pytest.mark.parametrize("metric", EXPERTS)
def test_the_student_closes_the_gap(results, metric):
    assert results.gap_closed[metric] >= 0.9


@pytest.mark.parametrize("expert", EXPERTS)
def test_the_student_is_above_every_expert(results, expert):
    student, other = (results.estimate(model, "average") for model in ("student", f"teacher:{expert}"))
    assert student.mean >= other.mean + 0.05 and student.ci95[0] > other.ci95[1]


def test_the_student_is_above_the_merge(results):
    student, merge = results.estimate("student", "average"), results.estimate("merge", "average")
    assert student.mean > merge.mean and not student.overlaps(merge)
