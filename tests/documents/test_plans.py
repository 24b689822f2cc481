"""The figures of docs/machines.md are those that its commands print. Minutes: `pytest -m slow tests/documents`."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "machines.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| .*? \| `flowopd (plan .*?)` \| ([\d.]+) GiB \| ([\d.]+) s \|$", PAGE, re.MULTILINE)


def test_there_are_figures():
    assert len(ROWS) >= 4


@pytest.mark.slow
@pytest.mark.parametrize(("command", "memory", "seconds"), ROWS, ids=[row[0] for row in ROWS])
def test_a_figure_is_what_its_command_prints(command, memory, seconds):
    words = [sys.executable, "-m", "flowopd", *shlex.split(command), "--json"]
    planned = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert f"{planned['memory_gib']['total']:.1f} {planned['seconds_per_update']:.1f}" == f"{memory} {seconds}"
