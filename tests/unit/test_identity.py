"""What a trained model depends on, and how a change of it is said."""

from typing import Annotated

from pydantic import BaseModel

from flowopd.identity import HARMLESS, differences, lasting


class Inner(BaseModel):
    kept: int = 1
    free: Annotated[int, HARMLESS] = 2


class Outer(BaseModel):
    one: Inner = Inner()
    named: dict[str, Inner] = {"free": Inner()}
    many: tuple[Inner, ...] = (Inner(),)
    free: Annotated[Inner | None, HARMLESS] = None


def test_harmless_settings_are_left_out_at_any_depth_and_names_are_no_settings():
    assert lasting(Outer()) == {"one": {"kept": 1}, "named": {"free": {"kept": 1}}, "many": [{"kept": 1}]}


def test_what_is_equal_differs_in_nothing():
    tree = {"a": {"b": 1, "c": [1, 2]}}
    assert differences(tree, {"a": {"c": [1, 2], "b": 1}}) == ""


def test_a_change_is_said_with_its_path_and_both_values():
    before = {"seed": 0, "distill": {"loss": "closed_form", "anchor": {"weight": 0.02}}}
    now = {"seed": 1, "distill": {"loss": "log_ratio", "anchor": None}}
    assert differences(before, now) == (
        "seed (0 -> 1), distill.loss ('closed_form' -> 'log_ratio'), distill.anchor.weight (0.02 -> none)"
    )


def test_many_changes_are_counted_and_long_values_cut():
    before, now = {str(i): "x" * 100 for i in range(5)}, {str(i): "y" * 100 for i in range(5)}
    said = differences(before, now)
    assert said.endswith("and 2 more") and "..." in said and len(said) < 600


def test_what_is_none_is_as_what_is_not_there():
    assert differences({"a": None}, {}) == ""
