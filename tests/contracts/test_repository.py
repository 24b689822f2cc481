"""What a repository is met by agrees with the package: citation, changes, forms for issues, extras and pins."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
VERSION = re.search(r'^version = "(.+)"$', PROJECT, re.MULTILINE)[1]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def listed(name):
    """The requirements of a list in pyproject.toml."""
    return re.findall(r'"([^"]+)"', re.search(rf"^{name} = \[(.*?)\]$", PROJECT, re.MULTILINE | re.DOTALL)[1])


def test_the_citation_is_of_this_version_and_names_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software" and cited["authors"]
    assert str(cited["version"]) == VERSION == version("flowopd")
    assert cited["license"] == re.search(r'^license = "(.+)"$', PROJECT, re.MULTILINE)[1]
    (paper,) = cited["references"]
    assert paper["url"].endswith("2605.08063") and len(paper["authors"]) == 11 and "Flow-OPD" in paper["title"]


def test_the_changes_begin_with_what_is_to_come():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^##+ (.+)$", text, re.MULTILINE)
    assert headings[0] == "[Unreleased]" and any(heading.startswith(VERSION) for heading in headings)


@pytest.mark.parametrize("path", FORMS, ids=[path.name for path in FORMS])
def test_a_form_for_issues_is_one(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.name == "config.yml":
        assert set(form) <= {"blank_issues_enabled", "contact_links"}
        return
    assert form["name"] and form["description"] and form["body"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["type"] in ("textarea", "input", "dropdown", "checkboxes") for field in fields)
    assert all(field["attributes"]["label"] for field in fields)


def test_a_bug_comes_with_what_the_doctor_says():
    assert "flowopd doctor RECIPE --json" in (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(
        encoding="utf-8"
    )


def test_every_kept_file_has_a_name_that_windows_takes():
    kept = [path for part in ("docs", "examples", "recipes", "src", "tests") for path in (ROOT / part).rglob("*")]
    assert kept and not [path for path in kept if set(path.name) & set('<>:"\\|?*')]


def test_everything_that_is_required_is_pinned():
    pins = {
        line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()
    }
    wanted = [Requirement(text).name for name in ("dependencies", "dev") for text in listed(name)]
    extras = Requirement(next(text for text in listed("dev") if text.startswith("flowopd["))).extras
    wanted += [Requirement(text).name for extra in extras for text in listed(extra)]
    assert len(wanted) > 25
    assert {name.lower().replace("_", "-") for name in wanted} - pins == {"flowopd"}


def test_every_extra_is_among_those_of_developers():
    named = set(
        re.findall(r"^(\w+) = \[", PROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0], re.M)
    )
    assert named - {"dev"} == Requirement(next(text for text in listed("dev") if text.startswith("flowopd["))).extras
