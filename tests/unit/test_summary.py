"""The small files of a run's results show its own numbers and pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from flowopd.results import Estimate, Results
from flowopd.stages.summary import GAP, MARGIN, TILE, tiled, wall, write_summary


def results():
    rows = {"base": (0.5, 0.25), "student": (0.9, 0.75)}
    models = {
        name: {
            metric: Estimate(mean=mean, ci95=(mean - 0.02, mean + 0.04), n=9)
            for metric, mean in zip(("average", "ocr"), means, strict=True)
        }
        for name, means in rows.items()
    }
    return Results(models=models, gap_closed={"ocr": 0.9512})


def test_the_table_has_every_number():
    assert str(results()).splitlines() == [
        "|  | ocr | average |",
        "| --- | ---: | ---: |",
        "| base | 0.250 ± 0.030 | 0.500 ± 0.030 |",
        "| student | 0.750 ± 0.030 | 0.900 ± 0.030 |",
        "| gap closed | 0.95 |  |",
    ]


@pytest.fixture
def run(tmp_path):
    """Twelve prompts through two models: each picture has a colour of its own."""
    samples = tmp_path / "samples"
    samples.mkdir()
    for i in range(12):
        for j, name in enumerate(("base", "teacher-text")):
            Image.new("RGB", (64, 64), (10 * i, 100 * j, 0)).save(samples / f"{i}-{name}.png")
    prompts = [f"a sign with a long text that has to be wrapped {i}" for i in range(12)]
    (samples / "index.json").write_text(json.dumps({"prompts": prompts, "models": ["base", "teacher:text"]}))
    return tmp_path


def test_the_wall_shows_each_picture_in_its_place(run):
    shown = np.asarray(wall(run / "samples", columns=4))
    rows = [shown.shape[0] - GAP - TILE // 2 - (TILE + GAP) * row for row in (1, 0)]
    columns = [MARGIN + (TILE + GAP) * column + TILE // 2 for column in range(4)]
    assert [[shown[y, x].tolist() for x in columns] for y in rows] == [
        [[30 * i, 100 * j, 0] for i in range(4)] for j in range(2)
    ]


def test_only_what_there_is_is_written(run):
    write_summary(run)
    assert (run / "wall.png").exists() and not (run / "table.md").exists()
    results().save(run / "results.json")
    write_summary(run)
    assert (run / "table.md").read_text() == f"{results()}\n"


def test_a_wall_is_blank_where_a_picture_is_gone(tmp_path):
    assert tiled(["a"], {"base": [tmp_path / "gone.png"]}).size == (
        MARGIN + TILE + GAP,
        tiled(["a"], {}).size[1] + TILE + GAP,
    )
