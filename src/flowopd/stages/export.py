"""The trained model as others take it home: written aside, read back as they read it, compared, and only then there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path

import torch

from flowopd.durable import new_folder
from flowopd.errors import ConfigError
from flowopd.formats import FORMATS, WHOLE, Trained
from flowopd.hub import check_repository, public_name, push_folder
from flowopd.names import file_name
from flowopd.processes import only_main
from flowopd.results import STUDENT
from flowopd.session import Session
from flowopd.stages.card import write_card
from flowopd.stages.readback import Reference
from flowopd.stages.sample import adapter_folder, available_models, model_lora

EXPORTS = "export"
"""The folder of a run that its exports go to, one a format."""

DTYPES = ("float32", "bfloat16", "float16")


def export(
    session: Session,
    to: Sequence[str] = ("diffusers",),
    model: str = STUDENT,
    dest: Path | None = None,
    *,
    dtype: str | None = None,
    push: str | None = None,
    private: bool = False,
) -> list[Path]:
    """Write a model of a run in these formats (see `formats.FORMATS`), each a folder of its own; returns the folders.

    `model` is a row's name: `student`, `merge`, `teacher:NAME`. The folders are OUT/export/FORMAT, or `dest` for a
    single format, which `push` uploads as the hub's model OWNER/NAME, a private one if it is new and `private`.
    `dtype` is that of `merged` weights, by default the base's.

    Each export is read back by the programs it is for and its velocity compared at random states with that of the base
    with the trained adapter, in fp32. The base is in memory once: what is read back shares its tensors, adapters lie
    beside it, and a merged transformer keeps only the weights that differ; a base in bf16 is widened to fp32 in place
    for the comparison and narrowed again.

    Raises ConfigError for an unknown format, model or dtype, and a folder that is not empty; CheckpointError for an
    export that is not the trained adapter, cannot be written, or does not reach the hub. Of a failed one nothing stays,
    but for one that was only not uploaded.
    """
    formats = _known(to)
    _check_settings(formats, dest, dtype, push, private)
    folders = {name: Path(dest) if dest else session.out / EXPORTS / name for name in formats}
    for folder in folders.values():
        _refuse_taken(folder)
    trained = _trained(session, model, dtype)

    def write() -> None:
        reference = Reference(session, trained)
        for name, folder in folders.items():
            with _written_aside(folder) as aside:
                FORMATS[name].write(aside, trained)
                check = reference.compared(name, aside)
                write_card(aside, session, model, name, push or folder.resolve().name, trained, check)
            if push is not None:
                push_folder(folder, push, private)

    only_main(write)
    return list(folders.values())


def _known(to: Sequence[str]) -> list[str]:
    """The formats named, each once. Raises ConfigError for an unknown one."""
    for name in to:
        if name not in FORMATS:
            near = get_close_matches(name, FORMATS, n=1, cutoff=0.0)[0]
            raise ConfigError(f"unknown format {name!r}; did you mean {near!r}? There are: {', '.join(FORMATS)}")
    if not to:
        raise ConfigError(f"an export needs a format; there are: {', '.join(FORMATS)}")
    return list(dict.fromkeys(to))


def _check_settings(
    formats: Sequence[str], dest: Path | None, dtype: str | None, push: str | None, private: bool
) -> None:
    """Raises ConfigError for settings that do not go together."""
    if len(formats) > 1 and (dest or push):
        raise ConfigError(f"dest and push take one format, got {', '.join(formats)}; export each by itself")
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}; take one of {', '.join(DTYPES)}")
    if dtype is not None and WHOLE not in formats:
        raise ConfigError(f"dtype is for {WHOLE} weights, adapters are in fp32; leave it out, or export to {WHOLE}")
    if push is not None:
        check_repository(push)
    elif private:
        raise ConfigError("private is for what is pushed; give push OWNER/NAME too")


def _refuse_taken(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        state = "not empty" if folder.is_dir() else "no folder"
        raise ConfigError(f"{folder} is {state}; choose another --dest, or delete it")


def _trained(session: Session, model: str, dtype: str | None) -> Trained:
    lora = model_lora(session, model)
    if lora is None:
        available_models(session, [model])
        known = [row for row in available_models(session) if adapter_folder(session, row) is not None]
        raise ConfigError(f"{model} has no adapter to export; those that have one: {', '.join(known) or 'none yet'}")
    return Trained(
        lora=lora,
        model=session.model,
        name=f"{session.out.resolve().name}-{file_name(model)}",
        base=public_name(session.recipe.base),
        dtype=getattr(torch, dtype or session.recipe.dtype),
    )


@contextmanager
def _written_aside(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the block ends well, and is gone when it does not.

    Raises CheckpointError if it cannot be written.
    """
    folder = folder.resolve()
    missing = [above for above in folder.parents if not above.exists()]
    try:
        with new_folder(folder, mend="make room there, or choose --dest") as aside:
            yield aside
    finally:
        for above in missing:
            with suppress(OSError):
                above.rmdir()
