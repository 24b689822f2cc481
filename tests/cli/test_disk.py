"""A disk that is full, or may not be written to, ends a command with code 2 and one line; room made, it goes on."""

import errno
import json
import os
import shutil
import subprocess

import pytest

from flowopd import durable

QUICK = ["distill.optim.updates=3", "distill.optim.checkpoint_every=1"]
SETS = [part for change in QUICK for part in ("--set", change)]


@pytest.fixture
def recipe(world, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(world.whole()))
    return file


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """The student of a run whose disk has room."""
    from flowopd.pipeline import run
    from flowopd.recipe import make_recipe

    out = tmp_path_factory.mktemp("whole") / "out"
    tree = world.whole()
    del tree["evaluate"]
    run(make_recipe(tree, QUICK), out)
    return content(out / "student")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refuse(patch, number, word, skip=0):
    """The system refuses, from the `skip`th time on, to write a file whose path has this word in it."""
    write, calls = durable._all, iter(range(1_000))

    def refusing(stream, text):
        if word in str(stream.name) and next(calls) >= skip:
            write(stream, text[: len(text) // 2])
            raise OSError(number, os.strerror(number))
        write(stream, text)

    patch.setattr(durable, "_all", refusing)


PLACES = {
    "manifest.json": ("manifest.json", 0),
    "the cache": ("cache", 0),
    "coldstart": ("coldstart", 0),
    "metrics.jsonl": ("metrics.jsonl", 1),
    "the weights of a checkpoint": ("step-2.", 0),
    "the facts of a checkpoint": ("step-2.", 1),
    "the student": ("student", 0),
    "scores.json": ("scores.json", 0),
    "results.json": ("results.json", 0),
    "a picture": ("samples", 0),
    "report.html": ("report.html", 0),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_full_disk_is_one_line_and_after_room_is_made_nothing_is_lost(
    flowopd, recipe, whole, tmp_path, monkeypatch, place
):
    word, skip = PLACES[place]
    command = ("run", recipe, "--out", tmp_path / "out", *SETS)
    with monkeypatch.context() as patch:
        refuse(patch, errno.ENOSPC, word, skip)
        outcome = flowopd(*command)
    line = outcome.err.splitlines()[-1]
    assert outcome.code == 2 and "Traceback" not in outcome.err
    assert line.startswith(f"error: {tmp_path / 'out'}") and word.strip(".") in line
    assert "No space left on device" in line and "bytes needed" in line and "make room" in line
    assert {file.name for file in (tmp_path / "out").rglob(".*")} <= {".lock"}
    assert flowopd(*command).code == 0
    assert content(tmp_path / "out" / "student") == whole


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_may_not_be_written_to_is_one_line(flowopd, recipe, tmp_path, monkeypatch, number):
    refuse(monkeypatch, number, "")
    outcome = flowopd("run", recipe, "--out", tmp_path / "out", *SETS)
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome.err
    assert "manifest.json cannot be written" in outcome.err and f"make {tmp_path / 'out'} writable" in outcome.err


@pytest.fixture
def disk(tmp_path):
    """A file system of 8 MiB; skips where none can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here; it takes root and Linux")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk, left):
    """Leave so many bytes free."""
    (disk / "ballast").write_bytes(bytes(max(0, shutil.disk_usage(disk).free - left)))


@pytest.mark.parametrize("left", [0, 2**15, 2**17, 2**18])
def test_a_real_full_disk_is_one_line_and_after_room_is_made_nothing_is_lost(flowopd, recipe, whole, disk, left):
    command = ("run", recipe, "--out", disk / "out", *SETS, "--set", "evaluate=null")
    fill(disk, left)
    outcome = flowopd(*command)
    assert outcome.code == 2 and "Traceback" not in outcome.err
    assert "No space left on device" in outcome.err.splitlines()[-1]
    (disk / "ballast").unlink()
    assert flowopd(*command).code == 0
    assert content(disk / "out" / "student") == whole


def test_a_real_read_only_disk_is_one_line(flowopd, recipe, disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    outcome = flowopd("run", recipe, "--out", disk / "out")
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome.err
    assert f"{disk / 'out'} cannot be written (Read-only file system); make {disk} writable" in outcome.err


def test_an_evaluation_that_finds_no_room_keeps_the_one_before(flowopd, done, monkeypatch):
    before, scores = ((done / name).read_bytes() for name in ("results.json", "scores.json"))
    refuse(monkeypatch, errno.ENOSPC, "results.json", skip=1)
    outcome = flowopd("eval", "--out", done, "--limit", "2")
    assert outcome.code == 2 and f"error: {done / 'results.json'} cannot be written" in outcome.err
    assert (done / "results.json").read_bytes() == before
    monkeypatch.undo()
    assert flowopd("eval", "--out", done, "--limit", "2").code == 0
    (kept,) = (done / "evaluations").iterdir()
    assert (kept / "results.json").read_bytes() == before and (kept / "scores.json").read_bytes() == scores
