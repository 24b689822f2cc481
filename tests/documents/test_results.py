"""The page of results says what the results kept beside it say, under the recipes of today."""

import json
import shutil
from pathlib import Path

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
    assert made == kept
