"""The figures that the README shows are those of the run that it names."""

from pathlib import Path

from flowopd.results import Results

ROOT = Path(__file__).parents[2]


def test_the_readme_shows_the_table_of_the_kept_run():
    kept = Results.load(ROOT / "docs" / "demo" / "results.json")
    assert str(kept) in (ROOT / "README.md").read_text(encoding="utf-8")
