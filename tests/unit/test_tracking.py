"""What a stage writes and shows: plain lines now and then, quiet, sparklines, and the boards."""

import json
import sys
import types

import numpy as np
import pytest
from PIL import Image

from flowopd.errors import ConfigError
from flowopd.quiet import QUIET
from flowopd.tracking import Tracker, by_step, show_picture
from flowopd.tracking.boards import Place, TensorBoard, open_boards
from flowopd.tracking.screen import Bar, Lines, Pace, Silent, open_screen, sparkline, summary

METRICS = {"gap": 0.5, "gap/a/0": 1.0, "gap/a/1": 0.25, "gap/a": 0.625, "gap/b": 0.1, "grad_norm": 2.0}


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def lines(monkeypatch):
    """Plain lines of a stage of 100 updates with 4 samples each, a second apart, and what they said."""
    said, clock = [], Clock()
    monkeypatch.setattr("flowopd.tracking.screen.console.print", lambda line, **_: said.append(line))
    shown = Lines("distill", 100, 4, clock=clock, every=10)

    def go(first, last):
        for done in range(first, last + 1):
            clock.now += 1
            shown.show(done, {"gap": 1 / done}, "")

    return shown, go, said


def test_plain_lines_come_now_and_then_and_at_the_end(lines):
    shown, go, said = lines
    shown.start()
    go(1, 100)
    shown.stop()
    assert [line.split(",")[0] for line in said] == [f"distill {n}/100" for n in (*range(1, 100, 10), 100)]
    assert said[1] == "distill 11/100, 4 samples/s, 1:29 left, gap 0.0909"


def test_a_stage_that_ends_early_tells_its_last_update(lines):
    shown, go, said = lines
    go(1, 4)
    shown.stop()
    assert [line.split(",")[0] for line in said] == ["distill 1/100", "distill 4/100"]


def test_a_stage_that_goes_on_says_so_and_counts_its_pace_from_there(lines):
    shown, go, said = lines
    shown.resume(40)
    go(41, 42)
    shown.stop()
    assert said[0] == "distill goes on after 40/100" and "4 samples/s, 0:58 left" in said[-1]


@pytest.mark.parametrize(("done", "left"), [(1, "1:39:00 left"), (50, "0:50 left"), (100, "")])
def test_the_time_that_is_left(done, left):
    clock = Clock()
    pace = Pace(1, clock)
    clock.now = 60.0 if done == 1 else float(done)
    assert pace.left(done, 100) == left


def test_the_summary_is_the_main_figure_and_each_label():
    assert summary(METRICS) == "gap 0.5, a 0.625, b 0.1"
    assert summary({"reward": 0.5, "reward/x": 0.25, "loss": 1.0}) == "reward 0.5, x 0.25"


@pytest.mark.parametrize(
    ("values", "line"),
    [([], ""), ([1, 1], "▁▁"), ([0, 7], "▁█"), ([0, float("nan"), 1], "▁ █"), (range(8), "▁▂▃▄▅▆▇█")],
)
def test_a_sparkline_spans_its_values(values, line):
    assert sparkline(list(values)) == line


def test_the_screen_is_chosen_by_where_it_goes(monkeypatch):
    monkeypatch.setattr("flowopd.tracking.screen.console", types.SimpleNamespace(is_terminal=False))
    assert isinstance(open_screen("s", 1, 1), Lines)
    monkeypatch.setattr("flowopd.tracking.screen.console", types.SimpleNamespace(is_terminal=True))
    monkeypatch.setattr("flowopd.tracking.screen.Progress", lambda *_, **__: None)
    assert isinstance(open_screen("s", 1, 1), Bar)
    monkeypatch.setenv(QUIET, "1")
    assert isinstance(open_screen("s", 1, 1), Silent)


def test_a_bar_shows_the_labels_the_rate_and_the_way(monkeypatch):
    from rich.console import Console

    console = Console(force_terminal=True, width=160, record=True)
    monkeypatch.setattr("flowopd.tracking.screen.console", console)
    bar = Bar("distill", 2, 4)
    bar.start()
    bar.show(1, METRICS, "")
    bar.show(2, {"gap": 0.25}, "")
    bar.stop()
    text = console.export_text()
    assert "distill" in text and "2/2" in text and "samples/s" in text and "gap 0.25 █▁" in text


# Boards


def test_metrics_of_single_steps_come_in_their_order():
    metrics = {"gap/a/10": 3.0, "gap/a/2": 2.0, "gap/a": 9.0, "gap/b/0": 1.0}
    assert by_step(metrics) == {"gap/a": [2.0, 3.0], "gap/b": [1.0]}


def run_of(folder, track):
    with Tracker(folder, "teacher:x", 1, track=track, settings={"seed": 3}) as tracker:
        tracker.rewind(0)
        tracker.log(0, METRICS)
    show_picture(folder, "wall", Image.new("RGB", (4, 3), "red"), track, {})


def test_tensorboard_gets_curves_a_histogram_by_step_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_of(tmp_path, ["tensorboard"])
    events = EventAccumulator(str(tmp_path / "tensorboard" / "teacher-x"), size_guidance={"histograms": 0})
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(METRICS)
    (histogram,) = events.Histograms("gap/a/by_step")
    assert histogram.histogram_value.bucket[1:] == [1.0, 0.25]
    pictures = EventAccumulator(str(tmp_path / "tensorboard" / "samples"))
    pictures.Reload()
    assert pictures.Images("wall")[0].width == 4


def test_wandb_runs_offline_with_its_real_library(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    logged = []
    log = wandb.Run.log
    monkeypatch.setattr(wandb.Run, "log", lambda self, row, **kw: logged.append((row, kw)) or log(self, row, **kw))
    run_of(tmp_path, ["wandb"])
    assert logged[0] == (METRICS, {"step": 0})
    assert logged[1][0]["gap/a/by_step"].histogram == [1.0, 0.25]
    assert isinstance(logged[2][0]["wall"], wandb.Image)
    assert len(list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))) == 2


def test_wandb_without_a_key_is_a_mistake_with_its_mend(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def refuse(**_):
        raise wandb.errors.UsageError("api_key not\nconfigured (no-tty).")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ConfigError, match=r"api_key not configured.*`wandb login`, or set WANDB_MODE=offline"):
        open_boards(["wandb"], Place(tmp_path, "distill", {}))


class FakeTrackio(types.ModuleType):
    """What of trackio is used, as its reference has it; it remembers its calls."""

    def __init__(self):
        super().__init__("trackio")
        self.__spec__ = types.SimpleNamespace(name="trackio")
        self.calls = []

    def init(self, project, name=None, group=None, config=None, resume="never", embed=True):
        assert resume in ("never", "allow", "must")
        self.calls.append(("init", project, group, config))

    def log(self, metrics, step=None):
        self.calls.append(("log", step, metrics))

    def finish(self):
        self.calls.append(("finish",))

    def Image(self, value, caption=None):
        assert isinstance(value, np.ndarray) and value.dtype == np.uint8
        return value.shape


def test_trackio_is_called_as_its_reference_says(tmp_path, monkeypatch):
    trackio = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    run_of(tmp_path / "mine", ["trackio"])
    assert trackio.calls == [
        ("init", "flowopd", "mine", {"seed": 3}),
        ("log", 0, METRICS),
        ("finish",),
        ("init", "flowopd", "mine", {}),
        ("log", 0, {"wall": (3, 4, 3)}),
        ("finish",),
    ]


def test_several_boards_each_get_everything_once(tmp_path, monkeypatch):
    trackio = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    made = open_boards(["tensorboard", "trackio", "trackio"], Place(tmp_path, "distill", {}))
    assert [type(board).__name__ for board in made] == ["TensorBoard", "Trackio"]


def test_the_default_is_tensorboard_if_it_is_installed(tmp_path, monkeypatch):
    assert [type(board) for board in open_boards(None, Place(tmp_path, "distill", {}))] == [TensorBoard]
    monkeypatch.setattr("flowopd.tracking.boards.find_spec", lambda name: None)
    assert open_boards(None, Place(tmp_path, "distill", {})) == []


def test_a_board_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("flowopd.tracking.boards.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="--track wandb needs wandb, which is not installed: pip install wandb"):
        open_boards(["wandb"], Place(tmp_path, "distill", {}))


def test_a_stage_that_goes_on_finds_its_board_again(tmp_path):
    here, again = (Place(tmp_path / "run", "distill", {}) for _ in range(2))
    others = [Place(tmp_path / "run", "sft", {}), Place(tmp_path / "other", "distill", {})]
    assert here.identity == again.identity and here.identity not in {other.identity for other in others}


def test_rows_are_written_whatever_is_shown(tmp_path, monkeypatch):
    monkeypatch.setenv(QUIET, "1")
    run_of(tmp_path, [])
    (row,) = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert row["stage"] == "teacher:x" and row["gap/a"] == 0.625
