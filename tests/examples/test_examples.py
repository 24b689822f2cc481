"""Every example runs as it is told to, in small, and does what it says."""

import json
import re
import runpy
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from flowopd.lora_file import read_lora

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch, capsys):
    """Runs an example by its file's name, as the program would; returns what it printed."""

    def call(name, *args):
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        monkeypatch.syspath_prepend(str(EXAMPLES))
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return call


def numbers(text, pattern):
    return [tuple(map(float, found)) for found in re.findall(pattern, text)]


def test_every_example_is_run_by_a_test():
    named = set(
        re.findall(r'"(\d\d_\w+\.(?:py|ipynb))"', "".join(p.read_text() for p in Path(__file__).parent.glob("*.py")))
    )
    assert named == {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}


def test_the_toy_student_learns_both_shapes(example, tmp_path):
    said = example("01_toy_2d.py", "--updates", 100, "--out", tmp_path / "runs" / "toy.png")
    shares = numbers(said, r"(\d+)% of the student's points are on it, (\d+)% before, expert (\d+)%")
    assert len(shares) == 2
    for student, before, expert in shares:
        assert expert > 95 and student > 1.4 * before
    assert Image.open(tmp_path / "runs" / "toy.png").size[0] > 500


def test_the_large_example_runs_on_a_tiny_pipeline(example, world, tmp_path):
    words = ["--base", world.base, "--out", tmp_path / "run", "--updates", 2, "--resolution", 64, "--dtype", "float32"]
    for label in ("composition", "quality"):
        words += ["--teacher", f"{label}={world.experts / label}"]
        words += ["--prompts", f"{label}={world.prompts}/train/{label}.jsonl"]
    said = example("03_sd35_medium.py", *words)
    assert "update 0: gap" in said
    assert read_lora(tmp_path / "run" / "student").modules
    assert Image.open(tmp_path / "run" / "pictures" / "a-red-sign-that-says-k7-0-student.png").size == (64, 64)


def test_an_own_reward_router_and_objective_take_part(example, tmp_path):
    said = example("04_own_reward.py", "--out", tmp_path / "run")
    assert {"base", "teacher:signs", "teacher:warm", "merge", "student"} == set(
        re.findall(r"^(\S+): warmth", said, re.M)
    )
    assert "2 updates are too few to learn from" in said
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"teacher:warm", "distill"} <= {row["stage"] for row in rows}
    assert any("reward" in row for row in rows) and any("gap/warm" in row for row in rows)


def test_an_own_family_is_distilled_and_judged(example, tmp_path):
    said = example("05_own_model_family.py", "--out", tmp_path, "--updates", 40)
    scores = dict(re.findall(r"^(\S+)\s+(warm .*)$", said, re.M))
    means = {model: sum(numbers(row, r"warm ([\d.]+) dark ([\d.]+)")[0]) / 2 for model, row in scores.items()}
    assert means["student"] > means["base"] + 0.05
    assert means["student"] > means["merge"]


def test_the_notebook_runs_from_its_first_cell_to_its_last(monkeypatch):
    monkeypatch.setenv("FLOWOPD_EXAMPLE_UPDATES", "1")
    notebook = nbformat.read(EXAMPLES / "02_mini_world.ipynb", as_version=4)
    assert not any(cell.outputs for cell in notebook.cells if cell.cell_type == "code"), (
        "the notebook ships without outputs"
    )
    ran = NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    shown = [output for cell in ran.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2
