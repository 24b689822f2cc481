"""Every Python block of the documents runs, on a tiny world that lies where they expect things.

The guides in docs/change/ are played: their files go into a copy of the package, their changes are applied, and all
blocks run against that copy. A block that cannot run has a line `<!-- not run: REASON -->` above it.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r'^(?:<!-- not run: (?P<why>[^>]*) -->\n+)?```(?P<kind>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$',
    re.DOTALL | re.MULTILINE,
)
RUNNER = """
import json, sys
for name, blocks in json.load(open(sys.argv[1])).items():
    names = {"__name__": "page"}
    for line, text in blocks:
        exec(compile("\\n" * line + text, name, "exec"), names)
"""
"""Runs the blocks of each page in order, in one namespace; a traceback names page and line."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the lines before its text, its kind, title and text, and why it is not run, if so."""

    page: str
    line: int
    kind: str
    title: str | None
    text: str
    why: str | None


def blocks(path):
    content = path.read_text(encoding="utf-8")
    page = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    return [
        Block(
            page, content[: found.start("text")].count("\n"), found["kind"], found["title"], found["text"], found["why"]
        )
        for found in FENCE.finditer(content)
    ]


ALL = [block for path in PAGES for block in blocks(path)]
PYTHON = [block for block in ALL if block.kind == "python" and block.title is None]
FILES = [block for block in ALL if block.kind == "python" and block.title is not None]
CHANGES = [block for block in ALL if block.kind == "diff"]


def changed(text, diff):
    """A text after a change, whose lines begin with a space, a minus or a plus. The place must be there, once."""
    lines = [line for line in diff.splitlines() if line]
    before = "".join(f"{line[1:]}\n" for line in _numbered(lines, " -"))
    after = "".join(f"{line[1:]}\n" for line in _numbered(diff.splitlines(), " +"))
    assert text.count(before) == 1, f"{text.count(before)} places for\n{before}"
    return text.replace(before, after)


def _numbered(lines, signs):
    return [line for line in lines if line[:1] in signs]


def linked(source, target, own):
    """A copy of a folder by links, but for the files and folders on the way to `own`, which are real."""
    target.mkdir()
    for entry in source.iterdir():
        mine = [path for path in own if path == entry or entry in path.parents]
        if entry.name == "__pycache__":
            continue
        if entry.is_dir() and mine:
            linked(entry, target / entry.name, own)
        elif mine:
            (target / entry.name).write_text(entry.read_text(encoding="utf-8"), encoding="utf-8")
        else:
            (target / entry.name).symlink_to(entry)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with the package as the guides change it."""
    folder = tmp_path_factory.mktemp("changed") / "src"
    folder.mkdir()
    touched = {block.title for block in (*FILES, *CHANGES)}
    assert all(title.startswith("src/flowopd/") for title in touched)
    linked(ROOT / "src" / "flowopd", folder / "flowopd", {ROOT / title for title in touched})
    for block in FILES:
        file = folder.parent / block.title
        assert not (ROOT / block.title).exists(), f"{block.title} is in the package already"
        file.write_text(block.text, encoding="utf-8")
    for block in CHANGES:
        file = folder.parent / block.title
        file.write_text(changed(file.read_text(encoding="utf-8"), block.text), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory, world, finished):
    """A folder in which the documents' names mean the tiny world."""
    here = tmp_path_factory.mktemp("reader")
    (here / "recipes").mkdir()
    (here / "recipes" / "mini-demo.yaml").write_text(yaml.safe_dump(world.whole()))
    (here / "runs").mkdir()
    for run in ("mine", "seen"):
        (here / "runs" / run).symlink_to(finished)
    (here / "stabilityai").mkdir()
    (here / "stabilityai" / "stable-diffusion-3.5-medium").symlink_to(world.base)
    return here


def test_the_blocks_of_all_pages_run(package, place, tmp_path):
    pages = {}
    for block in PYTHON:
        if block.why is None:
            pages.setdefault(block.page, []).append((block.line, block.text))
    assert {"README.md", "docs/quickstart.md", "docs/evaluation.md"} <= set(pages)
    assert len([page for page in pages if page.startswith("docs/change/")]) == 4
    (tmp_path / "pages.json").write_text(json.dumps(pages))
    (tmp_path / "run.py").write_text(RUNNER)
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "pages.json")]
    own = {**os.environ, "PYTHONPATH": str(package), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=place, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (place / "sign.png").exists() and (place / "runs" / "huber" / "student").exists()


def test_a_block_that_is_not_run_says_why():
    assert [block for block in PYTHON if block.why is not None and len(block.why.split()) < 3] == []


def test_every_fence_of_code_is_seen():
    fences = sum(len(re.findall(r"^```python", path.read_text(encoding="utf-8"), re.MULTILINE)) for path in PAGES)
    assert fences == len(PYTHON) + len(FILES) >= 10


@pytest.mark.parametrize("block", FILES, ids=lambda b: b.title)
def test_a_file_of_a_guide_is_written_as_the_package_is(block, tmp_path):
    file = tmp_path / Path(block.title).name
    file.write_text(block.text)
    for check in (["check"], ["format", "--check"]):
        command = ["ruff", *check, "--config", str(ROOT / "pyproject.toml"), str(file)]
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_a_change_is_applied_where_it_belongs():
    assert changed("a\nb\nc\n", " a\n-b\n+x\n+\n+y\n") == "a\nx\n\ny\nc\n"


@pytest.mark.parametrize("text", ["a\n", "b\nb\n"])
def test_a_change_without_its_place_is_reported(text):
    with pytest.raises(AssertionError, match="places for"):
        changed(text, "-b\n+x\n")


def test_a_block_that_fails_is_reported_with_its_page_and_line(tmp_path):
    (tmp_path / "page.md").write_text("words\n\n```python\nx = 1\n\nassert x == 2\n```\n")
    (block,) = blocks(tmp_path / "page.md")
    (tmp_path / "pages.json").write_text(json.dumps({"page.md": [(block.line, block.text)]}))
    (tmp_path / "run.py").write_text(RUNNER)
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "pages.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and 'File "page.md", line 6' in done.stderr


def test_a_mark_belongs_to_the_block_below_it(tmp_path):
    (tmp_path / "page.md").write_text("<!-- not run: needs a card -->\n```python\nx\n```\n\n```python\ny\n```\n")
    assert [block.why for block in blocks(tmp_path / "page.md")] == ["needs a card", None]
