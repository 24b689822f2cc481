"""One process writes into a run; another is refused, and a dead one holds nothing."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowopd.errors import CheckpointError, ConfigError
from flowopd.lock import held
from flowopd.owner import OWNER, is_held, named

HOLDER = """
import sys, time
from pathlib import Path
from flowopd.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_run_that_another_process_writes_is_refused_by_its_name(other, tmp_path):
    words = rf"{tmp_path} is being written by process {other.pid} on .*; wait until it ends, or choose another --out"
    with pytest.raises(ConfigError, match=words), held(tmp_path):
        pass
    assert is_held(tmp_path) and named(tmp_path)[0] == other.pid


def test_a_killed_process_holds_nothing(other, tmp_path):
    other.kill()
    other.wait()
    assert is_held(tmp_path) is False
    with held(tmp_path):
        assert is_held(tmp_path) and named(tmp_path)[0] == os.getpid()
    assert is_held(tmp_path) is False


def test_a_process_may_hold_what_it_holds(tmp_path):
    with held(tmp_path):
        with held(tmp_path):
            pass
        assert is_held(tmp_path)
        held_by_another = subprocess.run([sys.executable, "-c", HOLDER, tmp_path], capture_output=True, text=True)
        assert "is being written by process" in held_by_another.stderr
    assert is_held(tmp_path) is False


def test_it_is_let_go_when_what_was_done_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), held(tmp_path):
        raise ZeroDivisionError
    assert is_held(tmp_path) is False


def test_of_another_machine_s_process_this_one_cannot_tell(tmp_path):
    assert is_held(tmp_path) is None
    with held(tmp_path):
        (tmp_path / OWNER).write_text("1 elsewhere")
        assert is_held(tmp_path) is None


def test_a_full_disk_is_told_and_holds_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(CheckpointError, match=r"cannot be written .*No space left"), held(tmp_path):
            pass
    with held(tmp_path):
        assert is_held(tmp_path)
