"""Laws of the routing: rows sum to 1, routes have no state, and a mistake names itself."""

import pytest
import torch

from flowopd.errors import ConfigError, DataError
from flowopd.routing import LabelRouter, mix

TEACHERS = ("layout", "text")
TABLE = {"ocr": "text", "grid": "layout", "both": {"text": 1.0, "layout": 3.0}}


def test_rows_sum_to_1():
    routes = LabelRouter(TABLE, TEACHERS)(["ocr", "both", "grid"])
    torch.testing.assert_close(routes, torch.tensor([[0.0, 1.0], [0.75, 0.25], [1.0, 0.0]]))


def test_routes_have_no_state():
    router = LabelRouter(TABLE, TEACHERS)
    first = router(["ocr", "grid"])
    router(["grid"])
    assert torch.equal(router(["ocr", "grid"]), first)
    assert torch.equal(router(["grid", "ocr"]), first.flip(0))


def test_a_hard_route_mixes_to_its_teacher(generator):
    velocities = torch.randn(2, 3, 4, 5, generator=generator)
    routes = LabelRouter(TABLE, TEACHERS)(["ocr", "grid", "ocr"])
    expected = torch.stack([velocities[1, 0], velocities[0, 1], velocities[1, 2]])
    torch.testing.assert_close(mix(routes, velocities), expected)


def test_mixing_is_linear_and_in_float32(generator):
    routes = LabelRouter(TABLE, TEACHERS)(["both"])
    velocities = torch.randn(2, 1, 64, generator=generator).bfloat16()
    mixed = mix(routes, velocities)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, 0.75 * velocities[0].float() + 0.25 * velocities[1].float())


def test_no_labels_are_no_rows():
    assert LabelRouter(TABLE, TEACHERS)([]).shape == (0, 2)


def test_a_label_without_a_route_is_a_data_error():
    with pytest.raises(DataError, match=r"'poem'.*both, grid, ocr"):
        LabelRouter(TABLE, TEACHERS)(["ocr", "poem"])


def test_an_unknown_teacher_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match="'tekst'; did you mean 'text'"):
        LabelRouter({"ocr": "tekst"}, TEACHERS)


@pytest.mark.parametrize(
    ("table", "teachers"),
    [
        ({"ocr": {"text": -1.0, "layout": 2.0}}, TEACHERS),
        ({"ocr": {"text": float("nan")}}, TEACHERS),
        ({"ocr": {"text": float("inf")}}, TEACHERS),
        ({"ocr": {"text": 0.0}}, TEACHERS),
        ({"ocr": {}}, TEACHERS),
        ({}, TEACHERS),
        ({"ocr": "text"}, ()),
        ({"ocr": "text"}, ("text", "text")),
    ],
)
def test_tables_that_cannot_work_are_refused(table, teachers):
    with pytest.raises(ConfigError):
        LabelRouter(table, teachers)
