"""Mutated recipes: what is accepted says what was written, and all else is refused in one line."""

import copy
import math

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from flowopd.errors import ConfigError
from flowopd.recipe import Recipe, load_recipe, make_recipe
from flowopd.untrusted import MOST_VALUES, json_values, yaml_values

TREE = {
    "base": "here",
    "seed": 3,
    "t5": False,
    "resolution": 64,
    "prompts": {"a": {"train": "a.txt", "test": "b.txt"}},
    "teachers": {
        "a": {"adapter": "owner/name", "subfolder": "x", "guidance": 4.5},
        "b": {"train": {"reward": "ocr", "prompts": "a", "adapter": {"rank": 4, "alpha": 8}, "kl": 0.0}},
    },
    "routes": {"a": {"a": 0.5, "b": 1.5}},
    "coldstart": {"kind": "merge", "weights": {"a": 1.0, "b": 2.0}},
    "distill": {"weighting": [0.5, 1.5], "anchor": {"weight": 0.5}, "optim": {"updates": 7, "ema": 0.5}},
    "judges": {"ocr": {"url": "http://localhost:1", "token": "A_TOKEN", "deadline": 2.0, "retries": 1}},
    "evaluate": {"metrics": {"m": {"reward": "ocr", "prompts": "a", "grouped": True}}, "limit": 4},
}
TEXT = yaml.safe_dump(TREE, sort_keys=False)

NAMES = ["", ".", "..", "../x", "a/b", "/etc", "a\\b", "a\0b", "~", "con.txt", "x" * 300, "\ud800", "\x1b[2J", "base"]
NUMBERS = [-1, 0, 1, 2**31, 2**63, 10**30, -(10**30), 1e308, -0.5, math.inf, -math.inf, math.nan, True, False]
PIECES = ["&a ", "*a", "<<: *a", "!!python/name:os.system ", "!!binary ", "? ", ": ", "- ", "\t", "\n", "{", "]", "#"]
PIECES += ["!!int ", "!!float ", "!!bool ", "'", '"', "|", ">", "%", "@", "`", "---\n", "\ufeff", "\0", "0x", "1:2"]

keys = st.sampled_from([*NAMES, "rank", "updates", "model", "extends", "sede"]) | st.text(max_size=8)
leaves = st.none() | st.sampled_from(NUMBERS) | st.sampled_from(NAMES) | st.text(max_size=8) | st.integers()
leaves |= st.floats()
values = st.recursive(leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(keys, v, max_size=3), max_leaves=6)


def places(tree, path=()):
    """The paths of every value of a tree."""
    below = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(found for key, value in below for found in places(value, (*path, key)))]


@st.composite
def trees(draw):
    """The tree with one to three changes: another value, one less, one more."""
    tree = copy.deepcopy(TREE)
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(places(tree)[1:]))
        node = tree
        for key in path:
            node = node[key]
        change = draw(st.sampled_from(["set", "set", "delete", "add"]))
        if change == "set":
            node[last] = draw(values)
        elif change == "delete":
            del node[last]
        elif isinstance(node, dict):
            node[draw(keys)] = draw(values)
        if not tree:
            return tree
    return tree


@st.composite
def texts(draw, text=TEXT):
    """The text with one to four changes: something inserted, cut out, or said again."""
    for _ in range(draw(st.integers(1, 4))):
        i = draw(st.integers(0, len(text)))
        j = draw(st.integers(i, min(len(text), i + 30)))
        new = draw(st.sampled_from([*PIECES, text[i:j] * 2, ""]) | st.text(max_size=4))
        text = text[:i] + new + text[j:]
    return text


def says(made, given):
    """Whether what was made of a value is that value; words may say numbers."""
    if isinstance(given, dict) and isinstance(made, dict):
        return given.keys() <= made.keys() and all(says(made[key], value) for key, value in given.items())
    if isinstance(given, list | tuple) and isinstance(made, list | tuple):
        return len(given) == len(made) and all(map(says, made, given))
    if isinstance(made, bool) or isinstance(given, bool) or made is None:
        return made is given
    return made == given or (isinstance(made, int | float) and float(given) == made)


def check(recipe, given):
    """What holds for every recipe that is accepted."""
    assert isinstance(recipe, Recipe)
    if isinstance(given, dict):
        assert says(recipe.model_dump(), given)
    assert make_recipe(recipe.model_dump(mode="json")) == recipe
    for name in (*recipe.teachers, *(recipe.evaluate.metrics if recipe.evaluate else ())):
        assert name.isprintable() and not set("./\\\0") & set(name)


@given(tree=trees())
@example(tree={**TREE, "seed": True})
@example(tree={**TREE, "t5": 1})
@example(tree={**TREE, "teachers": {"../../x": {"adapter": "a/b"}}})
@example(tree={**TREE, "seed": 2**63})
@example(tree={**TREE, "evaluate": {**TREE["evaluate"], "limit": 10**30}})
def test_a_mutated_tree_is_what_it_says_or_refused(lawful, tree):
    recipe = lawful(make_recipe, tree)
    if recipe is not None:
        check(recipe, tree)


@given(text=texts())
@example(text="base: x\nseed: 2001-99-99\n")
@example(text="base: x\nextends: ''\n")
@example(text="base: x\nextends: ..\n")
@example(text="[" * 10_000)
@example(text="!!bool\nbase: x\n")
@example(text="base: !!int [1]\n")
def test_a_mutated_file_is_what_it_says_or_refused(lawful, place, text):
    file = place / "mutated.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    recipe = lawful(load_recipe, file)
    if recipe is not None:
        check(recipe, None)


@given(path=st.lists(keys, min_size=1, max_size=4).map(".".join), text=texts("distill: {anchor: {weight: 1.0e-3}}"))
@example(path="a." * 5000 + "a", text="1")
def test_a_mutated_change_is_taken_or_refused(lawful, path, text):
    recipe = lawful(make_recipe, TREE, [f"{path}={text}"])
    if recipe is not None:
        check(recipe, None)


def bomb(width=10, levels=9):
    """Lists of aliases of lists of aliases."""
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * width)}]" for i in range(levels)]
    return "\n".join(lines)


REFUSED = {
    "an object of Python": ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
    "a name of Python": ("a: !!python/name:os.system", "could not determine a constructor"),
    "a tag of its own": ("a: !x b", "could not determine a constructor"),
    "bytes": ("a: !!binary aGk=", "could not determine a constructor"),
    "a bomb of aliases": (bomb(), f"stands for more than {MOST_VALUES} values"),
    "a bomb of merges": (bomb().replace("[x,", "[{k: 1},").replace("a9: &a9 ", "<<: "), "values"),
    "an alias within itself": ("a: &a [*a]", "an alias stands within its own anchor"),
    "deep nesting": ("{a: " * 500 + "}" * 500, "nested more than 32 deep"),
    "deeper nesting": ("[" * 100_000, "nested more than 32 deep"),
    "a repeated key": ("a: 1\nb: 2\na: 3", "the key 'a' stands there twice at line 3, column 1"),
    "a repeated key far down": ("a: {b: {c: 1, c: 2}}", "the key 'c' stands there twice"),
    "infinity": ("a: .inf", "not finite"),
    "no number": ("a: .nan", "not finite"),
    "an endless number": ("a: " + "9" * 5000, "more than 20 digits"),
    "a number to the base of 60": ("a: 1:30", "quotes"),
    "a zero character": ('a: "\\0"', "zero character"),
    "half a pair": ('a: "\\ud800"', "half of a surrogate pair"),
    "two documents": ("a: 1\n--- \nb: 2", "another document"),
    "more than a file may hold": ("a: " + "x" * 300_000, "256 KiB"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_yaml_that_is_more_than_plain_values_is_refused(kind):
    text, words = REFUSED[kind]
    with pytest.raises(ValueError, match=words):
        yaml_values(text)


def test_anchors_and_merge_keys_stay_what_they_are():
    assert yaml_values("a: &a {b: 1, c: 2}\nd: {<<: *a, c: 3}") == {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}
    assert yaml_values("day: 2001-01-01\nrate: 1.0e-3\nnone: ~") == {"day": "2001-01-01", "rate": 1e-3, "none": None}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' stands there twice"),
        ("NaN", "not finite"),
        ("[1e999]", "not finite"),
        ("9" * 5000, "more than 20 digits"),
        ("[" * 100_000, "nested more than 32 deep"),
        ("[" * 40 + "]" * 40, "nested more than 32 deep"),
        (r'"\ud800"', "half of a surrogate pair"),
        (r'["\u0000"]', "zero character"),
    ],
)
def test_json_that_is_more_than_plain_values_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        json_values(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("seed=true", "seed must be a number, got 'True'"),
        ("t5=1", "t5 must be true or false, got '1'"),
        ("t5='yes'", "t5 must be true or false, got 'yes'"),
        ("distill.weighting=[1, true]", "distill.weighting"),
        ("routes.a.b=false", "routes.a.b"),
        ("seed=-1", "seed must be at least 0"),
        ("seed=9223372036854775808", "seed must be below 9223372036854775808"),
        ("distill.anchor.weight='inf'", "distill.anchor.weight must be a finite number"),
        ("distill.optim.learning_rate='nan'", "distill.optim.learning_rate must be a finite number"),
        ("judges.ocr.deadline='inf'", "judges.ocr.deadline must be a finite number"),
        ("distill.sampling.noise='inf'", "distill.sampling.noise must be a finite number"),
        ("distill.sampling.steps=1000000000", "distill.sampling.steps must be at most 1000, got"),
        ("distill.adapter.rank=1000000000", "distill.adapter.rank must be at most"),
        ("base=''", "base must be 1 or more characters long"),
        ("judges.ocr.retries=100000", "judges.ocr.retries must be at most"),
    ],
)
def test_a_value_of_the_wrong_kind_or_size_is_refused(change, words):
    with pytest.raises(ConfigError) as refused:
        make_recipe(TREE, [change])
    assert words in str(refused.value)


def test_a_recipe_that_is_no_utf8_is_refused(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"base: \xff\xfe")
    with pytest.raises(ConfigError, match="byte 6 is no UTF-8; save it as UTF-8"):
        load_recipe(tmp_path / "r.yaml")


def test_a_byte_order_mark_is_passed_over(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbfbase: here")
    assert load_recipe(tmp_path / "r.yaml").base == "here"
