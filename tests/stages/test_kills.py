"""A run that is killed at random moments ends where one ends that never was, bit for bit.

The moments are drawn anew in each run of the tests; FLOWOPD_KILL_SEED=N draws those of an earlier one again.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import pytest

UPDATES = 20
OPTIM = {"updates": UPDATES, "learning_rate": 1e-3, "warmup": 2, "decay": True, "ema": 0.9, "checkpoint_every": 1}
ADAPTER = {"rank": 2, "alpha": 4, "targets": ["to_q", "to_v", "ff.net.2", "proj_out"]}
GRPO = {
    "reward": "mini_quality",
    "prompts": "quality",
    "prompts_per_update": 1,
    "group": 2,
    "sampling": {"steps": 2, "sampler": "sde", "window": 1},
    "adapter": ADAPTER,
    "optim": OPTIM,
}
DISTILL = {
    "samples_per_label": 1,
    "sampling": {"steps": 2, "sampler": "sde"},
    "query": {"kind": "random", "k": 1},
    "adapter": {**ADAPTER, "targets": ["to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "proj_out"]},
    "optim": OPTIM,
}
SFT = {"kind": "sft", "images": 2, "batch": 2, "sampling": {"steps": 1}, "optim": OPTIM}
PARTS = {
    "distill": {"coldstart": {"kind": "merge"}, "distill": DISTILL},
    "teacher": {"teachers": {"quality": {"train": GRPO}}},
    "sft": {"coldstart": SFT, "distill": None},
}
STAGES = {
    "distill": ("student", "checkpoints/distill"),
    "teacher": ("teachers/quality", "checkpoints/teachers/quality"),
    "sft": ("coldstart", "checkpoints/sft"),
}
SOME = [("distill", 1, 10), ("teacher", 1, 4), ("sft", 1, 4), ("distill", 2, 3)]
ALL = [(name, processes, 10) for name in STAGES for processes in (1, 2)]
CASES = [*SOME, *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in SOME)]


@dataclass(frozen=True)
class Blow:
    """When a run is struck: `delay` seconds after it has logged so many rows."""

    rows: int
    delay: float


class Nursery:
    """A process that starts the program by forks of itself; see victims.py."""

    def __init__(self, log):
        self.log = log
        environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        command = [sys.executable, str(Path(__file__).with_name("victims.py"))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log.open("a")}
        self._process = subprocess.Popen(command, text=True, env=environment, **pipes)

    def __call__(self, *args, **order):
        """What became of a call of the program; its output goes to the log."""
        order = {"args": [str(arg) for arg in args], "log": str(self.log), "port": free_port(), **order}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait(60)


def free_port():
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    started = Nursery(tmp_path_factory.mktemp("nursery") / "log.txt")
    yield started
    started.close()


@pytest.fixture
def recipe(world, tmp_path):
    """Writes the recipe of a stage; returns its file."""

    def write(name):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(world.tree(**PARTS[name])))
        return file

    return write


def rows(out):
    """The rows of a run without their times."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def state(out, name):
    """Every byte that a stage ends with: its adapter, and its last checkpoint with weights, moments and average."""
    adapter, checkpoints = STAGES[name]
    folders = (out / adapter, out / checkpoints / f"step-{UPDATES}")
    return {path.relative_to(out): path.read_bytes() for folder in folders for path in folder.iterdir()}


def assert_ended_alike(killed, whole, name):
    assert rows(killed) == rows(whole) and len(rows(whole)) == UPDATES
    assert state(killed, name) == state(whole, name)
    assert {file.name for file in killed.rglob(".*")} <= {".lock"}


def made(out, name):
    """How many updates the checkpoints of a run hold."""
    return max((int(path.name.removeprefix("step-")) for path in (out / STAGES[name][1]).glob("step-*")), default=0)


def paces(out, seconds):
    """Seconds of a whole run before its first update, and of one update."""
    times = [json.loads(line)["seconds"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    pace = (times[-1] - times[0]) / (UPDATES - 1)
    return max(0.05, seconds - pace * UPDATES), pace


def drawn(chance, left, kills_left, start, pace):
    """A moment in the start of a run, in an update, or in the save after it, so that progress lasts for all kills."""
    after = chance.randint(0, max(0, 2 * left // (kills_left + 1) - 1))
    return Blow(after, chance.uniform(0, start if after == 0 else 1.5 * pace))


def kill_often(strike, out, name, kills, pace, chance):
    """Kill a run so many times while it runs; a moment after its end does not count, and is drawn again."""
    hits = 0
    while hits < kills:
        before = out.with_name("before")
        shutil.rmtree(before, ignore_errors=True)
        if out.exists():
            shutil.copytree(out, before)
        blow = drawn(chance, UPDATES - made(out, name), kills - hits, *pace)
        if strike(blow):
            hits += 1
        else:
            shutil.rmtree(out)
            if before.exists():
                shutil.copytree(before, out)
    return hits


def seed():
    return int(os.environ.get("FLOWOPD_KILL_SEED", random.SystemRandom().randrange(10**6)))


@pytest.mark.parametrize(("name", "processes", "kills"), CASES)
def test_killed_at_random_is_uninterrupted(nursery, recipe, tmp_path, name, processes, kills):
    chance, whole, out = random.Random(number := seed()), tmp_path / "whole", tmp_path / "killed"
    print(f"FLOWOPD_KILL_SEED={number}; the program's own words are in {nursery.log}")
    call = ("run", recipe(name), "--out")
    once = nursery(*call, whole, processes=processes)
    assert once["codes"] == [0] * processes

    def strike(blow):
        done = nursery(*call, out, processes=processes, signal=signal.SIGKILL, **asdict(blow))
        assert done["struck"] or done["codes"] == [0] * processes, done
        return done["struck"] and done["codes"][0] == -signal.SIGKILL

    assert kill_often(strike, out, name, kills, paces(whole, once["seconds"]), chance) == kills
    assert nursery(*call, out, processes=processes)["codes"] == [0] * processes
    assert_ended_alike(out, whole, name)


def launched(file, out, log):
    """Two processes of the program by torch's launcher."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [*launcher, "-m", "flowopd", "run", str(file), "--out", str(out)]
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def killed(process, out, blow):
    """Kill the launcher with all that it started, at a moment; whether that came before their end."""
    there = made_rows(out)
    while process.poll() is None and made_rows(out) < there + blow.rows:
        time.sleep(0.01)
    time.sleep(blow.delay)
    ended = process.poll() is not None
    family = [] if ended else psutil.Process(process.pid).children(recursive=True)
    for member in (*family, process):
        member.kill()
    process.wait()
    psutil.wait_procs(family, timeout=30)
    return not ended


def made_rows(out):
    return (out / "metrics.jsonl").read_bytes().count(b"\n") if (out / "metrics.jsonl").exists() else 0


@pytest.mark.slow
def test_a_launcher_killed_with_all_its_processes_is_uninterrupted(recipe, tmp_path):
    chance, whole, out = random.Random(number := seed()), tmp_path / "whole", tmp_path / "killed"
    print(f"FLOWOPD_KILL_SEED={number}")
    file = recipe("distill")
    with (tmp_path / "log.txt").open("w") as log:
        start = time.monotonic()
        assert launched(file, whole, log).wait(300) == 0
        pace = paces(whole, time.monotonic() - start)
        kill_often(lambda blow: killed(launched(file, out, log), out, blow), out, "distill", 10, pace, chance)
        assert launched(file, out, log).wait(300) == 0
    assert_ended_alike(out, whole, "distill")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_stops_all_processes_after_the_same_update(nursery, recipe, tmp_path, number, code, processes):
    call = ("run", recipe("distill"), "--out", tmp_path / "out")
    log = tmp_path / "log.txt"
    stopped = nursery(*call, processes=processes, signal=number, hit=1, rows=2, log=str(log))
    assert stopped["codes"] == [code] * processes
    told = [line for line in log.read_text().splitlines() if "run the same command again" in line]
    assert (
        len(told) == 1 and f"distill stopped after update {made(tmp_path / 'out', 'distill')} of {UPDATES}" in told[0]
    )
    assert len(rows(tmp_path / "out")) == made(tmp_path / "out", "distill") >= 2
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_before_training_a_signal_ends_the_program_at_once(nursery, recipe, tmp_path, number, code):
    log = tmp_path / "log.txt"
    call = ("run", recipe("distill"), "--out", tmp_path / "out")
    stopped = nursery(*call, signal=number, delay=0.1, log=str(log))
    assert stopped["codes"] == [code]
    last = log.read_text().splitlines()[-1]
    assert last.startswith("stopped by SIG") and "Traceback" not in log.read_text()


def test_a_run_of_one_process_goes_on_with_two(nursery, recipe, tmp_path):
    call = ("run", recipe("distill"), "--out", tmp_path / "out")
    assert nursery(*call, signal=signal.SIGTERM, rows=3)["codes"] == [143]
    assert nursery(*call, processes=2)["codes"] == [0, 0]
    assert [row["step"] for row in rows(tmp_path / "out")] == list(range(UPDATES))
