"""The figures of the documents are what the package computes today."""

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "figures"
CONCEPTS = (FOLDER.parent / "concepts.md").read_text(encoding="utf-8")


def _drawn():
    spec = spec_from_file_location("figures_of_the_documents", FOLDER / "draw.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draw = _drawn()


@pytest.mark.parametrize("name", draw.FIGURES)
def test_a_figure_is_the_one_that_is_drawn(name):
    assert (FOLDER / f"{name}.svg").read_text(encoding="utf-8") == draw.FIGURES[name]()


def test_every_figure_is_shown():
    assert re.findall(r"\(figures/(\w+)\.svg\)", CONCEPTS) and set(draw.FIGURES) == {
        p.stem for p in FOLDER.glob("*.svg")
    }
    assert set(re.findall(r"\(figures/(\w+)\.svg\)", CONCEPTS)) == set(draw.FIGURES)


def percent(share):
    return f"{100 * share:.1f} %"


@pytest.mark.parametrize("page", ["concepts.md", "choices.md"])
def test_the_shares_in_the_text_are_those_of_the_code(page):
    text = (FOLDER.parent / page).read_text(encoding="utf-8")
    shares = draw.shares()
    assert all(percent(values[-1]) in text for values in shares.values())
    assert percent(sum(shares["kl"][:5])) in text


def test_the_error_of_merging_factors_in_the_text_is_that_of_the_code():
    exact, wrong = draw.merge_errors().values()
    assert exact < 1e-6 and f"it is {100 * wrong:.0f} % away" in CONCEPTS
