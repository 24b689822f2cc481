"""What is written is there whole or not at all, whatever the disk says, and a sealed folder knows what it held."""

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load

from flowopd import durable
from flowopd.durable import (
    SEAL,
    append_text,
    fault,
    is_made,
    make_folder,
    new_folder,
    packed,
    remove_folder,
    remove_strays,
    replace_bytes,
    replace_picture,
    replace_text,
    write_folder,
)
from flowopd.errors import CheckpointError

FILES = {"weights.bin": bytes(range(256)) * 8, "facts.json": b'{"step": 1}'}
ENDED = 4_000_000
"""A number that no process has: it is above what Linux gives."""

WRITERS = {
    "a text": (lambda place: replace_text(place / "a.txt", "new\n"), "a.txt"),
    "a file": (lambda place: replace_bytes(place / "a.bin", b"new"), "a.bin"),
    "a picture": (lambda place: replace_picture(place / "a.png", Image.new("RGB", (8, 8))), "a.png"),
    "a line": (lambda place: append_text(place / "rows.jsonl", "new\n"), "rows.jsonl"),
    "a folder": (lambda place: write_folder(place / "made", FILES), "made"),
}


def refuse(monkeypatch, number, after=0):
    """From now on the system refuses to write, with half of what was to be written gone through."""
    calls = iter(range(1_000))

    def refusing(stream, content):
        if next(calls) < after:
            return stream.write(content)
        stream.write(content[: len(content) // 2])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(durable, "_all", refusing)


def content(place):
    return {path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.fixture
def place(tmp_path):
    """A folder with a file for each writer to replace or to go on with."""
    for name in ("a.txt", "a.bin", "a.png", "rows.jsonl"):
        (tmp_path / name).write_bytes(b"old\n")
    return tmp_path


@pytest.mark.parametrize("what", WRITERS)
def test_what_is_written_is_there_and_nothing_else(place, what):
    write, name = WRITERS[what]
    before = set(place.iterdir())
    write(place)
    assert set(place.iterdir()) == before | {place / name} and (place / name).exists()


def test_lines_are_added_at_the_end(place):
    append_text(place / "rows.jsonl", "new\n")
    append_text(place / "rows.jsonl", "newer\n")
    assert (place / "rows.jsonl").read_text() == "old\nnew\nnewer\n"


@pytest.mark.parametrize(
    ("number", "mend"),
    [
        (errno.ENOSPC, "make room, then run the same command again"),
        (errno.EDQUOT, "make room, then run the same command again"),
        (errno.EROFS, "writable, or choose another folder"),
        (errno.EACCES, "writable, or choose another folder"),
        (errno.EIO, "mend that, then run the same command again"),
    ],
)
@pytest.mark.parametrize("what", WRITERS)
def test_a_refusal_is_one_line_and_leaves_everything_as_it_was(place, monkeypatch, what, number, mend):
    write, name = WRITERS[what]
    before = content(place)
    refuse(monkeypatch, number)
    with pytest.raises(CheckpointError) as refused:
        write(place)
    line = str(refused.value)
    assert str(place / name) in line and os.strerror(number) in line and mend in line and "\n" not in line
    assert content(place) == before and not list(place.glob(".*"))


def test_a_full_disk_says_how_many_bytes_were_needed(place, monkeypatch):
    refuse(monkeypatch, errno.ENOSPC)
    with pytest.raises(CheckpointError, match=r"\(No space left on device, 3 bytes needed\)"):
        replace_bytes(place / "a.bin", b"new")


def test_a_folder_is_not_there_before_its_last_file_is(place, monkeypatch):
    for after in range(3):
        with monkeypatch.context() as patch, pytest.raises(CheckpointError):
            refuse(patch, errno.ENOSPC, after)
            write_folder(place / "made", FILES)
        assert not (place / "made").exists() and not list(place.glob(".*"))


def test_a_real_disk_that_is_full_keeps_what_it_had(small_disk):
    write_folder(small_disk / "made", FILES)
    replace_bytes(small_disk / "a.bin", b"old")
    append_text(small_disk / "rows.jsonl", "old\n")
    before = content(small_disk)
    for write in (
        lambda: replace_bytes(small_disk / "a.bin", bytes(2**21)),
        lambda: append_text(small_disk / "rows.jsonl", "x" * 2**21),
        lambda: write_folder(small_disk / "more", {"weights.bin": bytes(2**21)}),
    ):
        with pytest.raises(CheckpointError, match="No space left on device"):
            write()
    assert content(small_disk) == before and not list(small_disk.glob(".*"))


def test_a_real_disk_that_is_read_only_is_named(small_disk):
    replace_text(small_disk / "a.txt", "old")
    append_text(small_disk / "rows.jsonl", "old\n")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for write in (
        lambda: replace_text(small_disk / "a.txt", "new"),
        lambda: append_text(small_disk / "rows.jsonl", "new\n"),
        lambda: write_folder(small_disk / "made", FILES),
        lambda: make_folder(small_disk / "made"),
    ):
        with pytest.raises(CheckpointError, match=r"Read-only file system\); make .* writable"):
            write()
    assert (small_disk / "a.txt").read_text() == "old"


def test_everything_is_flushed_before_its_name_is_given(place, monkeypatch):
    said = []
    flush, replace, rename = durable._flush, os.replace, Path.rename
    monkeypatch.setattr(durable, "_flush", lambda at: (said.append(f"flush {at.name}"), flush(at)))
    monkeypatch.setattr(os, "replace", lambda old, new: (said.append("name"), replace(old, new)))
    monkeypatch.setattr(Path, "rename", lambda self, new: (said.append("name"), rename(self, new)))
    replace_text(place / "a.txt", "new")
    assert said == [f"flush .a.txt.{os.getpid()}", "name", f"flush {place.name}"]
    said.clear()
    write_folder(place / "made", FILES)
    named = said.index("name")
    assert set(said[:named]) == {f"flush {name}" for name in (*FILES, SEAL, f".made.{os.getpid()}")}
    assert said[named + 1 :] == [f"flush {place.name}"]


def test_what_a_killed_process_left_is_removed_when_the_same_is_written(place):
    for name in ("a.txt", "made", "made[1]"):
        (place / f".{name}.{ENDED}").mkdir()
        (place / f".{name}.{ENDED}" / "half").write_text("x")
    replace_text(place / "a.txt", "new")
    write_folder(place / "made", FILES)
    assert [path.name for path in place.glob(".*")] == [f".made[1].{ENDED}"]


def test_what_a_running_process_writes_aside_is_left_alone(place):
    (place / f".a.txt.{os.getppid()}").write_text("being written")
    (place / ".a.txt.backup").write_text("someone's")
    replace_text(place / "a.txt", "new")
    assert len(list(place.glob(".a.txt.*"))) == 2


def test_strays_of_a_pattern_go_whoever_left_them(place):
    for number in (ENDED, os.getppid()):
        (place / f".step-3.{number}").mkdir()
    (place / ".step-3.keep").mkdir()
    remove_strays(place, "step-*")
    assert [path.name for path in place.glob(".*")] == [".step-3.keep"]


def test_a_removed_folder_is_gone(place):
    write_folder(place / "made", FILES)
    remove_folder(place / "made")
    assert not (place / "made").exists() and not list(place.glob(".*"))


def test_a_folder_that_is_filled_in_a_block_appears_after_it(place):
    with new_folder(place / "made") as aside:
        (aside / "part").mkdir()
        (aside / "part" / "a").write_text("x")
        assert not (place / "made").exists()
    assert (place / "made" / "part" / "a").read_text() == "x"


def test_a_folder_is_not_written_over(place):
    write_folder(place / "made", FILES)
    before = content(place)
    write_folder(place / "made", FILES | {"facts.json": b'{"version": 2}'})
    assert content(place) == before
    with pytest.raises(CheckpointError, match=r"weights.bin is there and differs.*move or delete"):
        write_folder(place / "made", FILES | {"weights.bin": b"other"})
    with pytest.raises(CheckpointError, match="not empty"), new_folder(place / "made") as aside:
        (aside / "a").write_text("x")
    assert content(place) == before


def test_a_sealed_folder_is_whole_and_other_files_do_not_matter(place):
    write_folder(place / "made", FILES)
    (place / "made" / "README.md").write_text("mine")
    assert fault(place / "made") is None and is_made(place / "made")


@pytest.mark.parametrize("name", [*FILES, SEAL])
def test_every_bit_of_every_file_is_sealed(place, name):
    write_folder(place / "made", {key: value[:64] for key, value in FILES.items()})
    file = place / "made" / name
    whole = file.read_bytes()
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        assert fault(place / "made"), (name, bit)


@pytest.mark.parametrize("sixteenths", range(16))
@pytest.mark.parametrize("name", [*FILES, SEAL])
def test_a_file_that_is_cut_is_known(place, name, sixteenths):
    write_folder(place / "made", FILES)
    file = place / "made" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size * sixteenths // 16])
    assert name in fault(place / "made")


@pytest.mark.parametrize("name", [*FILES, SEAL])
def test_a_file_that_is_missing_is_named(place, name):
    write_folder(place / "made", FILES)
    (place / "made" / name).unlink()
    assert fault(place / "made") == f"{name} is missing"


@pytest.mark.parametrize("text", ["[]", "{", "7", '{"weights.bin": 7}', "\udcff"])
def test_a_seal_that_is_none_is_a_fault(place, text):
    write_folder(place / "made", FILES)
    (place / "made" / SEAL).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert fault(place / "made")


def test_a_folder_that_was_changed_is_not_taken_for_made(place):
    write_folder(place / "made", FILES)
    (place / "made" / "weights.bin").write_bytes(b"mine")
    with pytest.raises(
        CheckpointError, match=r"made was changed .* weights.bin is not what was written; restore it, or"
    ):
        is_made(place / "made")
    assert not is_made(place / "none")


def test_a_folder_without_a_seal_is_taken_as_it_is(place):
    (place / "old").mkdir()
    assert is_made(place / "old")


def test_the_same_tensors_are_the_same_bytes_with_what_is_said_of_them():
    tensors = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.ones(2, dtype=torch.int64)}
    said = {name: name.upper() for name in "zyxwv"}
    content = packed(tensors, said)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == sorted(said) and header["__metadata__"]["z"] == "Z"
    assert int.from_bytes(content[:8], "little") % 8 == 0
    assert all(torch.equal(tensor, load(content)[name]) for name, tensor in tensors.items())
