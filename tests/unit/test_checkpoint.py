"""The checkpoints of a stage: whatever becomes of the newest, the run goes on, and never from half of one."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from flowopd import durable
from flowopd.checkpoint import BestConfig, Checkpoints, Log
from flowopd.errors import CheckpointError

IDENTITY = {"seed": 0, "distill": {"loss": "closed_form"}, "sha256": {"base": "a" * 64}}
NAMES = ("state.safetensors", "state.json", "sha256.json")


def state(step):
    return {"weight": torch.full((4, 3), float(step)), "adam.step": torch.tensor(float(step))}


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "distill", IDENTITY)


@pytest.fixture
def two(checkpoints):
    """The checkpoints after one and two updates."""
    for step in (1, 2):
        checkpoints.save(step, state(step), Log(step, {"gap": 1 / step}))
    return checkpoints


def steps(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def same(found, step):
    return found.step == step and all(torch.equal(value, found.tensors[name]) for name, value in state(step).items())


def test_without_a_checkpoint_there_is_none(checkpoints):
    assert checkpoints.latest() is None


def test_what_was_saved_is_read(two):
    found = two.latest()
    assert same(found, 2) and found.tensors.keys() == state(2).keys()
    assert found.log == Log(2, {"gap": 0.5}) and found.identity == IDENTITY


def test_a_checkpoint_is_tensors_and_json(two):
    assert {path.name for path in (two.folder / "step-2").iterdir()} == set(NAMES)


def damage(file, how):
    whole = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how.startswith("cut"):
        file.write_bytes(whole[: len(whole) * int(how.split()[1]) // 16])
    else:
        place = int(how.split()[1]) * len(whole) // 16
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])


@pytest.mark.parametrize("how", ["missing", *(f"{how} {i}" for how in ("cut", "flip") for i in range(16))])
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(two, capsys, name, how):
    damage(two.folder / "step-2" / name, how)
    assert same(two.latest(), 1)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"checkpoint {two.folder / 'step-2'} is damaged (" in said and "step-1" in said


def test_without_a_whole_checkpoint_it_says_what_to_delete_and_changes_nothing(two, capsys):
    for step in (1, 2):
        damage(two.folder / f"step-{step}" / "state.safetensors", "cut 8")
    before = {path: path.read_bytes() for path in two.folder.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=f"step-2 is damaged .*none is whole; delete {two.folder} to begin anew"):
        two.latest()
    assert before == {path: path.read_bytes() for path in two.folder.rglob("*") if path.is_file()}
    assert capsys.readouterr().err == ""


def test_a_whole_checkpoint_survives_a_shorter_memory_beside_a_damaged_later_one(two):
    damage(two.folder / "step-2" / "state.json", "missing")
    shutil.move(two.folder / "step-2", two.folder / "step-9")
    two.save(3, state(3))
    two.prune(3, keep=1)
    assert steps(two) == ["step-3", "step-9"] and same(two.latest(), 3)


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(two):
    damage(two.folder / "step-2" / "state.json", "missing")
    two.save(2, state(2))
    assert same(two.latest(), 2)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seed", 1, r"another seed \(0 -> 1\)"),
        ("distill", {"loss": "log_ratio"}, r"another distill.loss \('closed_form' -> 'log_ratio'\)"),
        ("sha256", {"base": "b" * 64}, r"another file of base \(sha256 a{8} -> sha256 b{8}\)"),
        ("t5", False, r"another t5 \(none -> False\)"),
    ],
)
def test_another_run_is_refused_with_what_changed(two, key, value, said):
    with pytest.raises(CheckpointError, match=said):
        Checkpoints(two.folder, IDENTITY | {key: value}).latest()


def test_the_last_ones_stay(checkpoints):
    for step in range(1, 6):
        checkpoints.save(step, state(step))
        checkpoints.prune(step, keep=3)
    assert steps(checkpoints) == ["step-3", "step-4", "step-5"]


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 3)])
def test_the_best_one_stays_too(checkpoints, mode, best):
    for step, gap in enumerate((0.5, 0.1, 0.9, float("nan"), 0.4, 0.3), 1):
        checkpoints.save(step, state(step), Log(step, {"gap": gap}))
        checkpoints.prune(step, 1, BestConfig(metric="gap", mode=mode))
    assert steps(checkpoints) == sorted({f"step-{best}", "step-6"})


def test_without_the_metric_no_checkpoint_is_best(two):
    two.prune(2, 1, BestConfig(metric="reward"))
    assert steps(two) == ["step-2"]


def test_other_things_in_the_folder_are_no_checkpoints(two):
    (two.folder / "step-old").mkdir()
    (two.folder / "step-3.backup").mkdir()
    assert same(two.latest(), 2)


@pytest.mark.parametrize("when", ["start", "save"])
def test_what_a_killed_run_left_is_removed(two, when):
    for number in (1, 4_000_000):
        (two.folder / f".step-3.{number}").mkdir()
        (two.folder / f".step-3.{number}" / "state.safetensors").write_bytes(b"half")
    two.latest() if when == "start" else two.save(3, state(3))
    assert not list(two.folder.glob(".*"))


def test_a_full_disk_leaves_the_checkpoints_before(two, monkeypatch):
    def full(stream, content):
        stream.write(content[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = steps(two)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "_all", full)
        with pytest.raises(CheckpointError, match=r"step-3 cannot be written .No space .*bytes needed\); make room"):
            two.save(3, state(3))
    assert steps(two) == before and same(two.latest(), 2)


def test_a_small_disk_that_is_full_leaves_the_checkpoints_before(small_disk):
    checkpoints = Checkpoints(small_disk / "distill", IDENTITY)
    checkpoints.save(1, state(1))
    with pytest.raises(CheckpointError, match=r"step-2 cannot be written .No space left on device"):
        checkpoints.save(2, {"weight": torch.zeros(2**19)})
    assert steps(checkpoints) == ["step-1"] and same(checkpoints.latest(), 1)


def crash_after(calls):
    """Ends this process, as SIGKILL would, after so many changes of the disk; a write that is one ends half-way."""
    left = iter(range(calls - 1, -1, -1))

    def counted(act):
        def act_and_count(*args, **kwargs):
            done = act(*args, **kwargs)
            if next(left, 0) == 0:
                os._exit(9)
            return done

        return act_and_count

    def half(stream, content):
        if next(left, 0) == 0:
            stream.write(content[: len(content) // 2])
            os._exit(9)
        stream.write(content)

    for name in ("mkdir", "fsync", "rename", "replace", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    durable._all = half


def in_a_fork(act):
    """The exit code of a copy of this process that does one thing."""
    child = os.fork()
    if not child:
        try:
            act()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def save_and_crash(checkpoints, calls):
    def act():
        crash_after(calls)
        checkpoints.save(3, state(3), Log(3))
        checkpoints.prune(3, keep=2)

    return in_a_fork(act)


def test_a_crash_at_any_point_of_a_save_leaves_a_run_that_goes_on(tmp_path):
    codes, found = [], []
    for calls in range(1, 100):
        checkpoints = Checkpoints(tmp_path / str(calls), IDENTITY)
        for step in (1, 2):
            checkpoints.save(step, state(step), Log(step))
        codes.append(save_and_crash(checkpoints, calls))
        latest = checkpoints.latest()
        found.append(latest.step)
        assert same(latest, latest.step) and not list(checkpoints.folder.glob(".*")), calls
        checkpoints.save(4, state(4))
        checkpoints.prune(4, keep=2)
        assert same(checkpoints.latest(), 4), calls
        if codes[-1] == 0:
            break
    assert codes == [9] * (len(codes) - 1) + [0] and len(codes) > 12
    assert found == sorted(found) and set(found) == {2, 3}


def test_the_facts_are_readable(two):
    facts = json.loads((Path(two.folder) / "step-2" / "state.json").read_text())
    assert facts == {"step": 2, "rows": 2, "metrics": {"gap": 0.5}, "identity": IDENTITY}
