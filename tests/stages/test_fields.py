"""Distillation of fields of one's own: plain modules, without a model family."""

import json

import pytest
import torch
from torch import nn

from flowopd import Condition, ConfigError, DataError, DistillConfig, FieldDistiller, guided
from flowopd.step import closed_form

CONDITIONS = {"up": Condition({"way": torch.ones(2, 1)}), "down": Condition({"way": -torch.ones(3, 1)})}
TEACHERS = {"up": lambda x, t, cond: x + 1, "down": lambda x, t, cond: x - 1}


class Linear(nn.Module):
    """v = x + W way + b."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Linear(1, 2)
        nn.init.zeros_(self.shift.weight)
        nn.init.zeros_(self.shift.bias)

    def forward(self, x, t, cond):
        return x + self.shift(cond["way"])


def settings(updates=60, **parts):
    optim = {"updates": updates, "learning_rate": 0.1, "ema": 0.0, "weight_decay": 0.0, "warmup": 0}
    return DistillConfig(**{"samples_per_label": 4, "sampling": {"steps": 3}, "optim": optim, **parts})


def distiller(student, **changes):
    made = {"student": student, "teachers": TEACHERS, "conditions": CONDITIONS, "shape": (2,), "config": settings()}
    return FieldDistiller(**{**made, **changes})


def test_a_student_learns_what_each_label_s_teacher_says():
    student = Linear()
    distiller(student).train()
    torch.testing.assert_close(student.shift.weight, torch.ones(2, 1), atol=0.05, rtol=0)
    torch.testing.assert_close(student.shift.bias, torch.zeros(2), atol=0.05, rtol=0)


def test_a_router_decides_who_teaches():
    student = Linear()
    distiller(student, router=lambda prompts: torch.tensor([[1.0, 0.0]] * len(prompts))).train()
    torch.testing.assert_close(student.shift.bias, torch.ones(2), atol=0.1, rtol=0)


def test_an_objective_replaces_the_loss():
    student = Linear()
    distiller(student, objective=lambda step, dynamics, target, w: closed_form(step, dynamics, target + 5, w)).train()
    torch.testing.assert_close(student.shift.bias, torch.full((2,), 5.0), atol=0.4, rtol=0)


def test_an_objective_beside_a_loss_of_whole_trajectories_is_refused():
    config = settings(loss="log_ratio_to_go", sampling={"steps": 3, "sampler": "sde"})
    with pytest.raises(ConfigError, match="log_ratio_to_go was asked; leave one out"):
        distiller(Linear(), objective=closed_form, config=config).train()


@pytest.mark.parametrize("loss", ["log_ratio", "log_ratio_to_go"])
def test_a_student_learns_by_sampled_losses_too(loss):
    student, sampling = Linear(), {"steps": 3, "sampler": "sde"}
    distiller(student, config=settings(loss=loss, sampling=sampling, samples_per_label=64, anchor=None)).train()
    torch.testing.assert_close(student.shift.weight, torch.ones(2, 1), atol=0.4, rtol=0)


def test_an_anchor_holds_every_sample():
    student = Linear()
    config = settings(anchor={"weight": 1.0})
    distiller(student, anchor=lambda x, t, cond: x + 3, config=config).train()
    torch.testing.assert_close(student.shift.bias, torch.full((2,), 1.5), atol=0.2, rtol=0)


def test_a_stopped_training_goes_on_where_it_ended(tmp_path):
    whole, parts, config = Linear(), Linear(), settings(updates=6)
    distiller(whole, config=config).train(tmp_path / "whole")
    heard = []
    for _ in range(2):
        distiller(parts, config=config).train(tmp_path / "parts", lambda step, _: heard.append(step) or step == 2)
    assert heard == [0, 1, 2, 3, 4, 5]
    assert torch.equal(parts.shift.weight, whole.shift.weight)
    rows = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(6))


def test_a_folder_of_other_fields_is_refused(tmp_path):
    distiller(Linear(), config=settings(updates=2)).train(tmp_path)
    with pytest.raises(Exception, match="another teachers"):
        distiller(Linear(), config=settings(updates=2), teachers={**TEACHERS, "up": Linear()}).train(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config": settings(sampling={"guidance": 2.0})}, "wrap them by guided"),
        ({"config": settings(adapter={"rank": 2})}, "no adapter"),
        ({"config": settings(distillation=False)}, "give the anchor as the teacher"),
        ({"config": settings(anchor=None), "anchor": TEACHERS["up"]}, "give it a weight"),
        ({"student": Linear().requires_grad_(False)}, "switch on those to train"),
    ],
)
def test_what_would_be_ignored_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        distiller(**{"student": Linear(), **changes})


@pytest.mark.parametrize(
    ("rows", "said"),
    [([[0.5, 0.6]], "sums to 1"), ([[1.5, -0.5]], "not negative"), ([[1.0]], "one row a sample")],
)
def test_routes_that_are_no_weights_are_refused(rows, said):
    with pytest.raises(DataError, match=said):
        distiller(Linear(), router=lambda prompts: torch.tensor(rows * len(prompts))).train()


def test_a_label_without_a_teacher_is_refused():
    with pytest.raises(DataError, match="no route for label 'down'"):
        distiller(Linear(), teachers={"up": TEACHERS["up"]}).train()


def test_guidance_is_a_wrapper_of_the_field():
    student, null = Linear(), Condition({"way": torch.zeros(1, 1)})
    teacher = Linear()
    with torch.no_grad():
        teacher.shift.weight.fill_(1.0)
    distiller(student, teachers=dict.fromkeys(TEACHERS, guided(teacher, 3.0, null))).train()
    torch.testing.assert_close(student.shift.weight, torch.full((2, 1), 3.0), atol=0.2, rtol=0)
