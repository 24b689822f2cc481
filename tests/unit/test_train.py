"""The loop that every stage shares, on one number: its average, its resume, its record, and bad gradients."""

import json

import pytest
import torch
from torch import nn

from flowopd.checkpoint import Checkpoints
from flowopd.errors import DataError, NumericsError
from flowopd.tracking import Tracker
from flowopd.train import Average, TrainConfig, Trainer


def trainer(**changes):
    config = TrainConfig(**{"updates": 6, "learning_rate": 0.1, "warmup": 0, "checkpoint_every": 2} | changes)
    return Trainer({"x": nn.Parameter(torch.tensor([1.0, -2.0]))}, config)


def run(trained, folder, stop=None, poison=None, stopped=KeyboardInterrupt):
    """Follow the gradient of `|x|^2`, whose update depends on the step; `stop` fails there, `poison` gives nan."""
    (x,) = trained.parameters

    def update(step):
        if step == stop:
            raise stopped
        x.grad = 2 * x.detach() * (1 + step) * (float("nan") if step == poison else 1.0)
        return {"loss": x.detach().square().sum()}

    trained.run(update, Tracker(folder, "distill", 6), Checkpoints(folder / "checkpoints", {"seed": 0}))
    return x.detach()


def test_the_average_is_its_recursion():
    values = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    average = Average([values[0]], decay=0.5)
    expected = values[0]
    for n, value in enumerate(values[1:], 1):
        average.update([value])
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.values[0], expected)


def test_the_average_shares_no_memory_with_the_parameters():
    x = nn.Parameter(torch.ones(3))
    average = Average([x], decay=0.9)
    with torch.no_grad():
        x.zero_()
    assert (average.values[0] == 1).all()
    average.copy_to([x])
    average.values[0].zero_()
    assert (x == 1).all()


def test_a_run_ends_with_its_average(tmp_path):
    trained = trainer()
    assert torch.equal(run(trained, tmp_path), trained.average.values[0])


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_stopped_run_resumes_bit_for_bit(tmp_path, stop):
    whole = run(trainer(decay=True), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(trainer(decay=True), tmp_path / "parts", stop=stop)
    assert torch.equal(run(trainer(decay=True), tmp_path / "parts"), whole)
    records = [
        [
            {key: value for key, value in json.loads(line).items() if key != "seconds"}
            for line in (tmp_path / part / "metrics.jsonl").read_text().splitlines()
        ]
        for part in ("whole", "parts")
    ]
    assert records[0] == records[1] and [row["step"] for row in records[0]] == list(range(6))


def test_a_gradient_that_is_not_finite_stops_the_run_with_the_weights_kept(tmp_path):
    trained = trainer()
    with pytest.raises(NumericsError, match="update 3"):
        run(trained, tmp_path, poison=3)
    assert trained.parameters[0].isfinite().all()


@pytest.mark.parametrize("step", [1, 3, 4])
def test_an_update_that_fails_loses_none_before_it(tmp_path, step):
    whole = run(trainer(decay=True, checkpoint_every=50), tmp_path / "whole")
    with pytest.raises(DataError, match="no answer"):
        run(trainer(decay=True, checkpoint_every=50), tmp_path / "parts", stop=step, stopped=DataError("no answer"))
    assert Checkpoints(tmp_path / "parts" / "checkpoints", {"seed": 0}).latest().step == step
    assert torch.equal(run(trainer(decay=True, checkpoint_every=50), tmp_path / "parts"), whole)


def test_a_first_update_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(DataError):
        run(trainer(), tmp_path, stop=0, stopped=DataError("no answer"))
    assert Checkpoints(tmp_path / "checkpoints", {"seed": 0}).latest() is None


def test_metrics_go_to_tensorboard(tmp_path):
    run(trainer(), tmp_path)
    assert list((tmp_path / "tensorboard" / "distill").glob("events.*"))
