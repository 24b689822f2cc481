"""Tables of results as they are printed: whole cells, whatever the width of what they are printed to."""

import pytest

from flowopd.cli.shown import WIDE, show_results
from flowopd.results import Estimate, Results


def results(models, metrics):
    row = dict.fromkeys(metrics, Estimate(mean=0.5, ci95=(0.45, 0.55), n=300))
    return Results(models=dict.fromkeys(models, row))


def lines_of(capsys, found):
    show_results(found)
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]


def test_a_table_that_fits_has_its_models_down_the_side(capsys):
    head, _, *rows = lines_of(capsys, results(["base", "student"], ["text", "quality"]))
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["model", "text", "quality"]
    assert [row.split("|")[1].strip() for row in rows] == ["base", "student", "prompts"]


@pytest.mark.parametrize(("models", "metrics"), [(2, 12), (12, 2), (12, 12)])
def test_no_cell_is_cut(capsys, models, metrics):
    names = (
        [f"a_model_of_a_long_name_{i}" for i in range(models)],
        [f"a_metric_of_a_long_name_{i}" for i in range(metrics)],
    )
    lines = lines_of(capsys, results(*names))
    text = "\n".join(lines)
    assert all(name in text for name in [*names[0], *names[1]])
    assert text.count("0.500 ± 0.050") == models * metrics
    assert models * metrics > 24 or max(map(len, lines)) <= WIDE
