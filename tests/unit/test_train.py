"""The loop that every stage shares, on one number: its average, its resume, its record, and bad gradients."""

import json
import os
import signal

import pytest
import torch
from torch import nn

from flowopd import durable
from flowopd.checkpoint import Checkpoints
from flowopd.errors import CheckpointError, ConfigError, DataError, Interrupted, NumericsError
from flowopd.tracking import Tracker
from flowopd.train import Average, TrainConfig, Trainer, Watch


def trainer(watch=None, **changes):
    config = TrainConfig(**{"updates": 6, "learning_rate": 0.1, "warmup": 0, "checkpoint_every": 2} | changes)
    return Trainer({"x": nn.Parameter(torch.tensor([1.0, -2.0]))}, config, watch)


def run(trained, folder, stop=None, poison=(), stopped=KeyboardInterrupt, call=lambda step: None, told=()):
    """Follow the gradient of `|x|^2`, whose update depends on the step; `stop` fails there, `poison` gives nan.

    `told` is what each update measures besides.
    """
    poison = {poison} if isinstance(poison, int) else set(poison)
    (x,) = trained.parameters

    def update(step):
        call(step)
        if step == stop:
            raise stopped
        x.grad = 2 * x.detach() * (1 + step) * (float("nan") if step in poison else 1.0)
        return {"loss": x.detach().square().sum()} | (told[step] if told else {})

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


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_an_update_whose_gradient_is_not_finite_is_skipped(tmp_path, poison, capsys):
    seen = {}
    trained = trainer()

    def update(step):
        (x,) = trained.parameters
        state = {name: tensor.clone() for name, tensor in trained._state().items()}
        seen[step] = state
        x.grad = x.detach() * (poison if step == 3 else 1.0)
        return {"loss": x.detach().sum() * (poison if step == 3 else 1.0)}

    trained.run(update, Tracker(tmp_path, "distill", 6), Checkpoints(tmp_path / "checkpoints", {}))
    assert seen[3].keys() == seen[4].keys()
    assert all(torch.equal(tensor, seen[4][name]) for name, tensor in seen[3].items())
    assert not torch.equal(seen[4]["weight.x"], seen[5]["weight.x"])
    assert [row["skipped"] for row in records(tmp_path)] == [0, 0, 0, 1, 0, 0]
    assert "loss" not in records(tmp_path)[3] and "loss" in records(tmp_path)[4]
    assert "update 3 is skipped" in capsys.readouterr().err


@pytest.mark.parametrize("most", [0, 1, 3])
def test_more_skips_in_a_row_than_allowed_stop_the_run_and_name_the_last_good_checkpoint(tmp_path, most):
    trained = trainer(max_skips=most, updates=9, checkpoint_every=1)
    last = 4 + most
    with pytest.raises(NumericsError, match=rf"^update {last}: its gradient is not finite; checkpoint .*step-3 is the"):
        run(trained, tmp_path, poison=range(4, 9))
    assert trained.parameters[0].isfinite().all()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-3", "step-4"]


def test_skips_that_are_not_in_a_row_do_not_stop_the_run(tmp_path):
    run(trainer(max_skips=1), tmp_path, poison=(1, 3, 5))
    assert [row["skipped"] for row in records(tmp_path)] == [0, 1, 0, 1, 0, 1]


def test_a_run_that_resumes_after_a_skip_is_the_same_bit_for_bit(tmp_path):
    whole = run(trainer(checkpoint_every=1), tmp_path / "whole", poison=1)
    with pytest.raises(KeyboardInterrupt):
        run(trainer(checkpoint_every=1), tmp_path / "parts", stop=4, poison=1)
    assert torch.equal(run(trainer(checkpoint_every=1), tmp_path / "parts", poison=1), whole)


def test_a_run_that_resumes_into_trouble_knows_its_last_good_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(trainer(checkpoint_every=1), tmp_path, stop=4)
    with pytest.raises(NumericsError, match=r"update 4: .*step-3 is the last known to be good"):
        run(trainer(checkpoint_every=1, max_skips=0), tmp_path, poison=4)


def test_without_a_good_checkpoint_it_is_said(tmp_path):
    with pytest.raises(NumericsError, match=r"update 0: .*; no checkpoint is the last known to be good; begin anew"):
        run(trainer(max_skips=0), tmp_path, poison=0)


BREAKING = {"learning_rate": 3e37, "weight_decay": 11.0}
"""Steps that no weight of the size of 1 survives in fp32."""


def test_a_learning_rate_that_breaks_the_weights_stops_the_run_before_they_are_kept(tmp_path):
    with pytest.raises(NumericsError, match="after update 0 weight x is not finite"):
        run(trainer(**BREAKING, checkpoint_every=1), tmp_path)
    assert list((tmp_path / "checkpoints").glob("*")) == []


def test_broken_weights_stop_the_run_at_once(tmp_path):
    with pytest.raises(NumericsError, match="update 1: weight x is not finite"):
        run(trainer(**BREAKING, checkpoint_every=5), tmp_path)


def test_a_tensor_that_no_gradient_reaches_is_named(tmp_path):
    x, y = (nn.Parameter(torch.ones(2)) for _ in range(2))

    def update(step):
        x.grad = torch.zeros(2)
        return {}

    with pytest.raises(NumericsError, match="no gradient reached y"):
        Trainer({"x": x, "y": y}, TrainConfig(updates=2)).run(
            update, Tracker(tmp_path, "distill", 2), Checkpoints(tmp_path / "checkpoints", {})
        )
    assert torch.equal(x, torch.ones(2))


def test_a_roll_back_takes_the_state_that_was_kept_at_half_the_rate(tmp_path):
    trained, passed = trainer(), Checkpoints(tmp_path / "passed", {})
    (x,) = trained.parameters
    for step in range(4):
        if step == 2:
            trained.snapshot(step, passed)
            kept = {name: tensor.clone() for name, tensor in trained._state().items()}
        x.grad = x.detach().clone()
        trained.step(step)
    trained.roll_back(passed)
    now = trained._state()
    assert all(torch.equal(tensor, now[name]) for name, tensor in kept.items() if name != "rate")
    assert trained.rate == 0.5 and float(now["rate"]) == 0.5
    before = x.detach().clone()
    x.grad = torch.full((2,), 1e9)
    trained.step(4)
    assert trained.optimizer.param_groups[0]["lr"] == 0.05 and not torch.equal(before, x)


def test_a_roll_back_to_the_start_forgets_the_moments(tmp_path):
    trained, passed = trainer(), Checkpoints(tmp_path / "passed", {})
    (x,) = trained.parameters
    trained.snapshot(0, passed)
    x.grad = x.detach().clone()
    trained.step(0)
    trained.roll_back(passed)
    assert x.tolist() == [1.0, -2.0] and not any(name.startswith("adam") for name in trained._state())
    x.grad = x.detach().clone()
    trained.step(1)


def test_a_resume_keeps_the_rate_that_roll_backs_left(tmp_path):
    class Once(Watch):
        def look(self, step, trainer):
            if step == 1 and trainer.rate == 1:
                trainer.snapshot(1, passed)
                trainer.roll_back(passed)
            return {}

    passed = Checkpoints(tmp_path / "passed", {})
    results = []
    for folder, stops in (("whole", [None]), ("parts", [3, None])):
        for stop in stops:
            trained = trainer(watch=Once(), checkpoint_every=1)
            try:
                results.append(run(trained, tmp_path / folder, stop=stop))
            except KeyboardInterrupt:
                assert stop == 3
    assert torch.equal(*results) and trained.rate == 0.5


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


def steps(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def logged(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_after_its_update_which_is_kept(tmp_path, number, code, capsys):
    whole = run(trainer(), tmp_path / "whole")

    def send(step):
        if step == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match="distill stopped after update 3 of 6 by SIG") as end:
        run(trainer(), tmp_path / "parts", call=send)
    assert end.value.code == code and steps(tmp_path / "parts") == ["step-2", "step-3"]
    assert torch.equal(run(trainer(), tmp_path / "parts"), whole)
    assert logged(tmp_path / "parts") == list(range(6))


def test_a_second_sigint_ends_the_run_within_its_update(tmp_path):
    def send(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        run(trainer(), tmp_path, call=send)
    assert steps(tmp_path) == ["step-2"]


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path):
    run(trainer(checkpoint_every=1, keep=1, best={"metric": "loss", "mode": "max"}), tmp_path)
    assert steps(tmp_path) == ["step-1", "step-6"]


def test_a_best_by_a_metric_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"optim.best.metric: .*'los'.*did you mean 'loss'"):
        run(trainer(best={"metric": "los"}), tmp_path)


def test_a_best_by_a_metric_of_a_part_waits_for_the_part(tmp_path, capsys):
    told = [{"gap/a": 3.0}, {"gap/b": 2.0}, {"gap/a": 1.0}, {"gap/b": 1.0}]
    run(trainer(updates=4, checkpoint_every=1, keep=1, best={"metric": "gap/b"}), tmp_path, told=told)
    assert steps(tmp_path) == ["step-4"]
    assert capsys.readouterr().err.count("there is no 'gap/b' among the metrics") == 1


def test_a_best_by_a_part_that_never_comes_is_said_once(tmp_path, capsys):
    run(trainer(best={"metric": "gap/c"}), tmp_path, told=[{"gap/a": 3.0}] * 6)
    assert capsys.readouterr().err.count("did you mean 'gap/a'?") == 1


def test_rows_that_were_lost_are_said_and_the_run_goes_on(tmp_path, capsys):
    run(trainer(), tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    run(trainer(), tmp_path)
    said = capsys.readouterr().err
    assert f"{tmp_path / 'metrics.jsonl'} holds 0 of the 6 rows of distill" in said.replace("\n", "")


def test_a_row_that_does_not_end_is_dropped(tmp_path):
    run(trainer(), tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"stage": "distill", "st')
    run(trainer(), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_rows_of_other_stages_stay_where_they_are(tmp_path):
    other = '{"stage": "eval", "step": 99}\n'
    (tmp_path / "metrics.jsonl").write_text(other)
    with pytest.raises(KeyboardInterrupt):
        run(trainer(), tmp_path, stop=3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(other)
    run(trainer(), tmp_path)
    assert logged(tmp_path) == [99, 0, 1, 99, 2, 3, 4, 5]


@pytest.mark.parametrize(("line", "said"), [("{", "is not JSON"), ("[]", "holds list where an object belongs")])
def test_a_broken_row_is_named(tmp_path, line, said):
    run(trainer(), tmp_path)
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "metrics.jsonl").write_text("\n".join([rows[0], line, *rows[1:]]) + "\n")
    with pytest.raises(DataError, match=f"metrics.jsonl:2 {said}.*mend or delete"):
        run(trainer(), tmp_path)


def test_an_average_that_took_fewer_updates_than_steps_goes_on_from_its_own_count(tmp_path):
    trained = trainer(checkpoint_every=1)
    run(trained, tmp_path)
    trained.average.updates = 4
    Checkpoints(tmp_path / "checkpoints", {"seed": 0}).save(6, trained._state())
    again = trainer()
    run(again, tmp_path)
    assert again.average.updates == 4


def test_processes_that_find_other_checkpoints_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("flowopd.train.everywhere", lambda value: [value, value + 2])
    with pytest.raises(CheckpointError, match=r"find \[0, 2\] updates .*all of them see"):
        run(trainer(), tmp_path)


def test_a_row_that_finds_no_room_ends_the_run_in_one_line_and_nothing_is_lost(tmp_path, monkeypatch):
    whole = run(trainer(), tmp_path / "whole")
    write = durable._all

    def full(stream, content):
        if str(stream.name).endswith("metrics.jsonl") and b'"step": 3' in content:
            write(stream, content[:5])
            raise OSError(28, "No space left on device")
        write(stream, content)

    with (
        monkeypatch.context() as patch,
        pytest.raises(CheckpointError, match=r"metrics.jsonl cannot be written .No sp"),
    ):
        patch.setattr(durable, "_all", full)
        run(trainer(), tmp_path / "parts")
    assert logged(tmp_path / "parts") == [0, 1, 2]
    assert torch.equal(run(trainer(), tmp_path / "parts"), whole)
    assert logged(tmp_path / "parts") == list(range(6))
