"""Laws of the routing: rows sum to 1, routes have no state, and a mistake names itself."""

import pytest
import torch

from flowopd.errors import ConfigError, DataError
from flowopd.routing import LabelRouter, fit_classes, mix

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


# Classes by a linear fit


def clouds(generator, sizes=(40, 40, 20), features=6):
    """Rows around a place of each class."""
    classes = torch.tensor([k for k, size in enumerate(sizes) for _ in range(size)])
    places = 4 * torch.randn(len(sizes), features, generator=generator)
    return places[classes] + torch.randn(len(classes), features, generator=generator), classes


def test_classes_that_lie_apart_are_told_apart(generator):
    rows, classes = clouds(generator)
    assert torch.equal(fit_classes(rows, classes)(rows).argmax(1), classes)


def test_a_fit_minimises_the_error_of_the_classes_and_the_weights(generator):
    """No gradient is left at it: each class weighs as much as another, however many rows it has."""
    rows, classes = clouds(generator)
    fit = fit_classes(rows, classes, ridge=0.3)
    x = (rows.double() - rows.double().mean(0)) / rows.double().std(0, correction=0)
    weights, bias = fit.weights.clone().requires_grad_(), fit.bias.clone().requires_grad_()
    error = (x @ weights + bias - torch.eye(3, dtype=torch.float64)[classes]).square().sum(1)
    loss = torch.stack([error[classes == k].mean() for k in range(3)]).mean() + 0.3 * weights.square().sum()
    for gradient in torch.autograd.grad(loss, (weights, bias)):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)


def test_a_fit_depends_on_no_order_and_no_scale(generator):
    rows, classes = clouds(generator)
    order = torch.randperm(len(rows), generator=generator)
    new = torch.randn(5, rows.shape[1], generator=generator).double()
    scores = fit_classes(rows.double(), classes)(new)
    torch.testing.assert_close(fit_classes(rows.double()[order], classes[order])(new), scores)
    torch.testing.assert_close(fit_classes(100 * rows.double() + 7, classes)(100 * new + 7), scores)


def test_a_feature_that_never_changes_decides_nothing(generator):
    rows, classes = clouds(generator)
    constant = torch.full((len(rows), 1), 2.0)
    scores = fit_classes(torch.cat([rows, constant], 1), classes)(torch.cat([rows, constant], 1))
    torch.testing.assert_close(scores, fit_classes(rows, classes)(rows))
