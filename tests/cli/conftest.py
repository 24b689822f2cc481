"""The commands run on the same tiny world as the stages; `flowopd(...)` is one call of the program."""

import shutil
import sys
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from flowopd.cli import main


def _of_stages():
    path = Path(__file__).parents[1] / "stages" / "conftest.py"
    spec = spec_from_file_location("tiny_world_of_stages", path)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


stages = _of_stages()
world, finished, distilling = stages.world, stages.finished, stages.distilling


@dataclass(frozen=True)
class Outcome:
    """What a call left: its exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def flowopd(monkeypatch, capsys):
    """Calls the program in this process."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["flowopd", *map(str, args)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return call


@pytest.fixture
def done(finished, tmp_path):
    """A copy of a finished run, to work on."""
    return shutil.copytree(finished, tmp_path / "done")
