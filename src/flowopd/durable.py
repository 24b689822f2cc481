"""Files and folders that are there whole or not at all: written aside, flushed to the disk, then renamed.

What is written aside bears its process's number, `.NAME.PID`; what a killed process left of that kind is removed when
the same thing is written again. A folder is sealed: its `sha256.json` says what each file held when it was written, so
that a file that was cut, changed or lost since is known. Whatever the system refuses, such as a full disk, becomes one
CheckpointError that names the place and the mend; what stood there before stays.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from hashlib import sha256
from io import BytesIO, FileIO
from pathlib import Path

from PIL.Image import Image
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from flowopd.errors import CheckpointError

SEAL = "sha256.json"
"""The file of a sealed folder that holds the SHA-256 of the others."""

FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


def replace_bytes(path: Path, content: bytes, flush: bool = True) -> None:
    """`content` as the file `path`: readers see the old file or the new one.

    A file of a cache need not be flushed: after a power cut it may be damaged, and is made anew. Raises CheckpointError
    if it cannot be written.
    """
    with writing(path, len(content)):
        _make(path.parent)
        aside = _aside(path)
        try:
            _write(aside, content)
            if flush:
                _flush(aside)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        if flush:
            _flush(path.parent)


def replace_text(path: Path, text: str) -> None:
    """`text` as the file `path`, as `replace_bytes` does."""
    replace_bytes(path, text.encode())


def replace_picture(path: Path, picture: Image, optimize: bool = False) -> None:
    """A picture as the PNG file `path`, as `replace_bytes` does."""
    file = BytesIO()
    picture.save(file, "PNG", optimize=optimize)
    replace_bytes(path, file.getvalue())


def packed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Tensors as the content of a safetensors file; the same ones give the same bytes.

    The library puts the metadata in random order; here it is that of their names.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(plain, metadata=dict(metadata or {}))
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def append_text(path: Path, text: str) -> None:
    """`text` at the end of the file `path`, all of it or nothing; it is not flushed, see `flush_file`.

    Raises CheckpointError if it cannot be written.
    """
    with writing(path, len(text.encode())), path.open("ab", buffering=0) as stream:
        end = stream.tell()
        try:
            _all(stream, text.encode())
        except OSError:
            stream.truncate(end)
            raise


def flush_file(path: Path) -> None:
    """Have the disk hold what the file `path` has. Raises CheckpointError if it cannot."""
    with writing(path):
        _flush(path)


def make_folder(folder: Path) -> None:
    """The folder, with those above it. Raises CheckpointError if it cannot be made."""
    with writing(folder):
        _make(folder)


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """These files as a new folder, sealed; one that holds the same already stays as it is.

    What its JSON files say may differ then, as they name versions. Raises CheckpointError if the folder is there with
    other content, or cannot be written.
    """
    if folder.exists():
        _refuse_other(folder, files)
        return
    seal = json.dumps({name: sha256(content).hexdigest() for name, content in files.items()}, indent=1)
    with new_folder(folder, sum(map(len, files.values()))) as aside:
        write_files(aside, {**files, SEAL: seal.encode()})


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """These files into a folder that `new_folder` gave, which makes them whole."""
    for name, content in files.items():
        _write(folder / name, content)


@contextmanager
def new_folder(folder: Path, size: int | None = None, mend: str | None = None) -> Iterator[Path]:
    """Gives a folder to fill, with `size` bytes, which becomes `folder` in the end.

    Raises CheckpointError if it cannot be written, or `folder` is there and not empty; `mend` is what it advises.
    """
    with writing(folder, size, mend):
        _make(folder.parent)
        aside = _aside(folder)
        aside.mkdir()
        try:
            yield aside
            for place in (*aside.rglob("*"), aside):
                _flush(place)
            aside.rename(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        _flush(folder.parent)


def remove_folder(folder: Path) -> None:
    """No folder of that name from now on, not even a part of one. Raises CheckpointError if it cannot be removed."""
    with writing(folder):
        aside = _aside(folder)
        folder.rename(aside)
        shutil.rmtree(aside)


def remove_strays(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left of writing `name`, a pattern, in a folder that no other process writes to.

    Raises CheckpointError if it cannot be removed.
    """
    for stray in folder.glob(f".{name}.*"):
        if stray.name.rpartition(".")[2].isdecimal():
            with writing(stray):
                _remove(stray)


def fault(folder: Path) -> str | None:
    """What is wrong with a sealed folder, in a few words; None if every file is what was written."""
    try:
        seal = json.loads((folder / SEAL).read_bytes())
        wrong = [name for name, digest in seal.items() if sha256((folder / name).read_bytes()).hexdigest() != digest]
    except OSError as error:
        name = Path(error.filename or folder).name
        return f"{name} is missing" if isinstance(error, FileNotFoundError) else f"{name}: {error.strerror}"
    except (ValueError, AttributeError):
        return f"{SEAL} is not what was written"
    return f"{wrong[0]} is not what was written" if wrong else None


def is_made(folder: Path) -> bool:
    """Whether there is such a folder. Raises CheckpointError if it is sealed, and was changed since."""
    wrong = fault(folder) if (folder / SEAL).exists() else None
    if wrong:
        raise CheckpointError(
            f"{folder} was changed after it was made: {wrong}; restore it, or delete it to make it anew"
        )
    return folder.exists()


@contextmanager
def writing(path: Path, size: int | None = None, mend: str | None = None) -> Iterator[None]:
    """What the system refuses inside becomes a CheckpointError about `path`, to which `size` bytes were to go.

    It advises the mend, by default what fits the reason.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number, reason = getattr(error, "errno", None), getattr(error, "strerror", None) or " ".join(str(error).split())
        needed = f", {size} bytes needed" if number in FULL and size is not None else ""
        advice = mend or _mend(path, number)
        raise CheckpointError(f"{path} cannot be written ({reason}{needed}); {advice}") from error


def _mend(path: Path, number: int | None) -> str:
    """What to do about an error of this number."""
    if number in FORBIDDEN:
        return f"make {path.parent} writable, or choose another folder"
    first = "make room" if number in FULL else "mend that"
    return f"{first}, then run the same command again; what was kept before is whole"


def _refuse_other(folder: Path, files: Mapping[str, bytes]) -> None:
    """Raises CheckpointError unless the folder holds these files, those of JSON aside."""
    weights = {folder / name: content for name, content in files.items() if not name.endswith(".json")}
    other = [file for file, content in weights.items() if not file.is_file() or file.read_bytes() != content]
    if other:
        raise CheckpointError(
            f"{other[0]} is there and differs from what is made now; move or delete {folder} to go on"
        )


def _make(folder: Path) -> None:
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in new:
        _flush(place.parent)


def _aside(path: Path) -> Path:
    """Where to write what `path` is to be, with nothing there, and nothing that a killed process left beside it."""
    for stray in path.parent.glob(f".{escape(path.name)}.*"):
        number = stray.name.rpartition(".")[2]
        if number.isdecimal() and _is_over(int(number)):
            _remove(stray)
    return path.with_name(f".{path.name}.{os.getpid()}")


def _is_over(number: int) -> bool:
    """Whether no other process of this machine has that number."""
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return number == os.getpid()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb", buffering=0) as stream:
        _all(stream, content)


def _all(stream: FileIO, content: bytes) -> None:
    """A system may take a part at a time."""
    rest = memoryview(content)
    while rest:
        rest = rest[stream.write(rest) :]


def _flush(place: Path) -> None:
    """Have the disk hold a file's content, or a folder's list of names."""
    number = os.open(place, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
