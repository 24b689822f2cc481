"""The page of results says what the results kept beside it say, under the recipes of today."""

import json
import shutil
from pathlib import Path

import numpy as np

from flowopd.stages.study import STUDY, write_study

DOCS = Path(__file__).parents[2] / "docs"
SUITE = DOCS.parent / "recipes" / "mini-paper" / "all.yaml"


def test_the_page_is_made_from_what_is_kept(tmp_path):
    shutil.copytree(DOCS / "results", tmp_path / "results", ignore=shutil.ignore_patterns("*.png", STUDY))
    for picture in (DOCS / "results").rglob("samples/*.png"):
        shutil.copy(picture, tmp_path / picture.relative_to(DOCS))
    write_study(SUITE, tmp_path / "nowhere", tmp_path)
    assert (tmp_path / "RESULTS.md").read_text() == (DOCS / "RESULTS.md").read_text()
    made, kept = (json.loads((folder / "results" / STUDY).read_text()) for folder in (tmp_path, DOCS))
    assert told(made) == told(kept)
    np.testing.assert_allclose(numbers(made), numbers(kept), rtol=1e-9)


def leaves(tree, place=""):
    """Every value of JSON with its place. Processors sum in orders of their own, which the last bits show."""
    if isinstance(tree, dict | list):
        below = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return [leaf for key, value in below for leaf in leaves(value, f"{place}/{key}")]
    return [(place, tree)]


def told(tree):
    return sorted((place, value) for place, value in leaves(tree) if not isinstance(value, float))


def numbers(tree):
    return [value for _, value in sorted(leaf for leaf in leaves(tree) if isinstance(leaf[1], float))]
