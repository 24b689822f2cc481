"""A recipe may extend another, and a suite is its rows: every recipe is read before anything runs."""

import pytest

from flowopd.errors import ConfigError
from flowopd.hub import located
from flowopd.recipe import load_recipe
from flowopd.suite import Claim, Reach, Run, load_runs, load_suite

PARENT = "base: here\nseed: 3\ndistill: {samples_per_label: 5, optim: {updates: 7, ema: 0.5}}\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "parent.yaml").write_text(PARENT)
    (tmp_path / "child.yaml").write_text("extends: parent.yaml\ndistill: {optim: {updates: 9}, anchor: null}\n")
    return tmp_path


def suite(folder, text):
    (folder / "all.yaml").write_text(text)
    return folder / "all.yaml"


def test_a_recipe_is_laid_over_the_one_it_extends(folder):
    recipe = load_recipe(folder / "child.yaml", ["distill.optim.ema=0.1"])
    assert (recipe.base, recipe.seed, recipe.distill.samples_per_label, recipe.distill.anchor) == ("here", 3, 5, None)
    assert (recipe.distill.optim.updates, recipe.distill.optim.ema) == (9, 0.1)


@pytest.mark.parametrize(
    ("extends", "words"),
    [
        ("nowhere.yaml", "nowhere.yaml does not exist"),
        ("../parent.yaml", "extends must name a file in the same folder, got '../parent.yaml'"),
        ("/etc/passwd", "extends must name a file in the same folder"),
        ("[parent.yaml]", "extends must name a file in the same folder"),
        ("child.yaml", "comes back to it"),
    ],
)
def test_what_cannot_be_extended_is_refused(folder, extends, words):
    (folder / "child.yaml").write_text(f"extends: {extends}\nbase: there\n")
    with pytest.raises(ConfigError, match=words):
        load_recipe(folder / "child.yaml")


def test_recipes_that_extend_each_other_are_refused(folder):
    (folder / "parent.yaml").write_text("extends: child.yaml\nbase: there\n")
    with pytest.raises(ConfigError, match="comes back to it"):
        load_recipe(folder / "child.yaml")


def test_a_recipe_that_ships_is_loaded_by_its_name_too():
    assert load_recipe("mini-demo") == load_recipe(located("package:recipes") / "mini-demo.yaml")


def test_a_recipe_is_one_run(folder, tmp_path):
    child = folder / "child.yaml"
    assert load_runs(child, tmp_path / "out") == [Run("", 3, tmp_path / "out", load_recipe(child))]


def test_a_suite_is_a_run_for_each_row_and_seed(folder, tmp_path):
    path = suite(
        folder,
        "rows:\n  plain: {recipe: child.yaml}\n"
        "  more: {recipe: child.yaml, set: {distill.optim.updates: 1}, seeds: [4, 5]}\n",
    )
    runs = load_runs(path, tmp_path, ["distill.optim.ema=0.2"])
    folders = [str(run.folder.relative_to(tmp_path)) for run in runs]
    assert folders == ["plain/seed-0", "more/seed-4", "more/seed-5"]
    trained = [(run.recipe.seed, run.recipe.distill.optim.updates, run.recipe.distill.optim.ema) for run in runs]
    assert trained == [(0, 9, 0.2), (4, 1, 0.2), (5, 1, 0.2)]
    assert [run.row for run in load_runs(path, tmp_path, only=["plain"])] == ["plain"]


@pytest.mark.parametrize(
    ("text", "only", "words"),
    [
        ("rows: {a: {recipe: nowhere.yaml}}", [], "nowhere.yaml does not exist"),
        ("rows: {a: {recipe: child.yaml, sets: []}}", [], "unknown key 'rows.a.sets'; did you mean 'set'"),
        ("rows: {a: {recipe: child.yaml, set: {distil.ema: 1}}}", [], "unknown key 'distil'; did you mean 'distill'"),
        ("rows: {}", [], "rows"),
        ("rows: {a: {recipe: child.yaml}}", ["b"], "has no row 'b'; it has: a"),
        ("rows: {a: {recipe: child.yaml}}\ntables: {t: {title: T, rows: [b]}}", [], "no row 'b' to show"),
        ("rows: {a: {recipe: child.yaml}}\nclaims: [{says: S, of: a/x, over: b/x}]", [], "no row 'b' to show"),
        ("rows: {a: {recipe: child.yaml}}\nclaims: [{says: S, of: a, over: b, within: 1}]", [], "no row 'b' to show"),
        (
            "rows: {a: {recipe: child.yaml}}\nclaims: [{says: S, of: a, over: a, within: 0}]",
            [],
            "claims.0.within must be above 0",
        ),
        ("rows: {a: {recipe: child.yaml}}\nclaims: [{says: S, of: a, over: a, withn: 1}]", [], "key 'claims.0.withn'"),
        ("rows: {a: {recipe: child.yaml}}\nclaims: [7]", [], "claims.0"),
        ("rows: {a: {recipe: child.yaml}}\ncompute: {rows: [a, b]}", [], "no row 'b' to show"),
        ("rows: {a: {recipe: child.yaml}}\ncompute: {rows: [a], reach: b}", [], "no row 'b' to show"),
        ("rows: {a: {recipe: child.yaml}}\npictures: {interference: [b/student]}", [], "no row 'b' to show"),
    ],
)
def test_a_wrong_suite_is_refused(folder, tmp_path, text, only, words):
    with pytest.raises(ConfigError, match=words):
        load_runs(suite(folder, text), tmp_path, only=only)


def test_rows_are_for_suites(folder, tmp_path):
    with pytest.raises(ConfigError, match="is a recipe and has no rows"):
        load_runs(folder / "child.yaml", tmp_path, only=["a"])


def test_a_claim_is_of_quality_or_of_compute_by_its_keys(folder):
    claims = "claims: [{says: S, of: a/x, over: a/y}, {says: T, of: a, over: a, within: .1}]"
    path = suite(folder, "rows: {a: {recipe: child.yaml}}\n" + claims)
    assert [type(claim) for claim in load_suite(path).claims] == [Claim, Reach]
