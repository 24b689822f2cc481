"""Mutated suites: the runs of an accepted one lie apart, in its folder, and all else is refused in one line."""

import copy

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from flowopd.errors import ConfigError
from flowopd.suite import load_runs, load_suite

TREE = {
    "rows": {
        "plain": {"recipe": "recipe.yaml"},
        "more": {"recipe": "recipe.yaml", "set": {"distill.optim.updates": 1, "seed": 9}, "seeds": [4, 5]},
    },
    "tables": {"t": {"title": "T", "rows": ["plain", "more"]}},
    "claims": [{"says": "S", "of": "plain/student", "over": "more/base", "at_least": 0.1}],
    "pictures": {"gaps": "plain"},
}
NAMES = ["../x", "/tmp/x", "a/b", "..", ".", "", "a.b", "a\\b", "x" * 99, "\0", "seed-0", "recipe.yaml", "nowhere.yaml"]
NAMES += ["../hostile0/recipe.yaml", "plain", "distill.seed", "seed", "base", ".".join(["a"] * 3000)]

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(NAMES) | st.text(max_size=5)
values = st.recursive(
    leaves,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(NAMES), below, max_size=3),
    max_leaves=5,
)


@st.composite
def suites(draw):
    """The suite with one to three changes somewhere in it."""
    tree = copy.deepcopy(TREE)
    for _ in range(draw(st.integers(1, 3))):
        nodes = [tree, *(node for part in tree.values() if isinstance(part, dict) for node in [part, *part.values()])]
        node = draw(st.sampled_from([node for node in nodes if isinstance(node, dict)]))
        key = draw(st.sampled_from([*node, *NAMES]))
        if key in node and draw(st.booleans()):
            moved = node.pop(key)
            node[draw(st.sampled_from(NAMES))] = moved
        else:
            node[key] = draw(values)
    return tree


@pytest.fixture(scope="session")
def folder(place):
    (place / "recipe.yaml").write_text("base: here\ndistill: {}\n")
    return place


@given(tree=suites())
@example(tree={"rows": {"a": {"recipe": "b/c.yaml"}}})
@example(tree={"rows": {"a": {"recipe": ""}}})
@example(tree={"rows": {"a": {"recipe": "recipe.yaml", "set": {".".join(["a"] * 3000): 1}}}})
def test_runs_of_a_mutated_suite_lie_apart_in_its_folder(lawful, folder, tree):
    (folder / "suite.yaml").write_bytes(yaml.safe_dump(tree).encode("utf-8", "surrogatepass"))
    runs = lawful(load_runs, folder / "suite.yaml", folder / "out")
    if runs is None:
        return
    places = [run.folder.resolve() for run in runs]
    assert len(set(places)) == len(places) > 0
    for place in places:
        assert place.parent.parent in ((folder / "out").resolve(), folder.resolve())
    for run in runs:
        assert run.recipe.seed == run.seed
        assert run.recipe.base == {**tree["rows"][run.row].get("set", {})}.get("base", "here")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{recipe: ../recipe.yaml}", "a row's recipe must name a file in the same folder, got '../recipe.yaml'"),
        ("{recipe: a/b.yaml}", "a row's recipe must name a file in the same folder, got 'a/b.yaml'"),
        ("{recipe: /etc/passwd}", "a row's recipe must name a file in the same folder"),
        ("{recipe: ..}", "a row's recipe must name a file in the same folder"),
        ("{recipe: recipe.yaml, seeds: [1, 1]}", "seed 1 stands twice in [1, 1]"),
        ("{recipe: recipe.yaml, seeds: [-1]}", "seeds.0 must be at least 0"),
        ("{recipe: recipe.yaml, seeds: [true]}", "seeds.0 must be a number, got 'True'"),
    ],
)
def test_a_row_that_reaches_elsewhere_or_collides_is_refused(folder, row, words):
    (folder / "row.yaml").write_text(f"rows: {{a: {row}}}")
    with pytest.raises(ConfigError) as refused:
        load_runs(folder / "row.yaml", folder / "out")
    assert words in str(refused.value)


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", "..", ".", "a.b", "''", '"\\0"', "x" * 61, "' a'"])
def test_a_row_that_cannot_name_a_folder_is_refused(folder, name):
    (folder / "row.yaml").write_text(f"rows: {{{name}: {{recipe: recipe.yaml}}}}")
    with pytest.raises(ConfigError):
        load_suite(folder / "row.yaml")
