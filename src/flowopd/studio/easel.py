"""Drawing for many browsers with one machine: one picture at a time, and none twice."""

from __future__ import annotations

import io
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, RLock
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from flowopd.errors import FlowOpdError

if TYPE_CHECKING:
    from flowopd.studio.models import Shelf

PICTURES = 512
"""Pictures that are kept, those asked for last."""

SHELVES = 2
"""Runs whose models stay loaded."""

WAITING = 24
"""Pictures that may wait for the model; more are refused."""

STRONGEST = 1.5


class BusyError(FlowOpdError):
    """More pictures are asked for than can be drawn soon."""


class Wish(BaseModel):
    """A picture: the model, what and with which noise, in how many steps, and how much its adapter counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(max_length=200)
    prompt: str = Field(min_length=1, max_length=2000)
    seed: int = Field(0, ge=0, lt=2**53)
    steps: int = Field(10, ge=1, le=100)
    strength: float = Field(1.0, ge=0, le=STRONGEST)


@dataclass(frozen=True)
class Drawn:
    """A picture as PNG, and the seconds it took, 0 if it was there already."""

    png: bytes
    seconds: float


class Easel:
    """The models of the runs that were asked for last, and the pictures they drew."""

    def __init__(self) -> None:
        self._model, self._books = RLock(), Lock()
        self._waiting = 0
        self._shelves: OrderedDict[tuple[Path, int], Shelf] = OrderedDict()
        self._pictures: OrderedDict[tuple[object, ...], bytes] = OrderedDict()

    def models(self, run: Path) -> dict[str, object]:
        """What can draw in a run, and the settings that they draw with."""
        with self._model:
            shelf = self._shelf(run)
            sampling = shelf.session.recipe.drawing.sampling
            return {
                "models": [{"name": choice.name, "adjustable": choice.adjustable} for choice in shelf.choices()],
                "steps": sampling.steps,
                "guidance": sampling.guidance,
                "sampler": sampling.sampler,
                "device": str(shelf.session.device),
            }

    def draw(self, run: Path, wish: Wish) -> Drawn:
        """A picture, drawn now or kept from before.

        Raises BusyError if too many wait; ConfigError and CheckpointError as `Shelf.using` does.
        """
        with self._books:
            if self._waiting >= WAITING:
                raise BusyError(f"{WAITING} pictures wait to be drawn already; ask again in a moment")
            self._waiting += 1
        try:
            with self._model:
                return self._drawn(run, wish)
        finally:
            with self._books:
                self._waiting -= 1

    def _drawn(self, run: Path, wish: Wish) -> Drawn:
        shelf = self._shelf(run)
        key = (run, wish, shelf.stamp(wish.model))
        if key in self._pictures:
            self._pictures.move_to_end(key)
            return Drawn(self._pictures[key], 0.0)
        start = time.monotonic()
        png = _painted(shelf, wish)
        self._pictures[key] = png
        while len(self._pictures) > PICTURES:
            self._pictures.popitem(last=False)
        return Drawn(png, time.monotonic() - start)

    def _shelf(self, run: Path) -> Shelf:
        """The models of a run as its manifest says. Its folder is only read."""
        from flowopd.manifest import MANIFEST
        from flowopd.pipeline import manifest_recipe
        from flowopd.session import Session
        from flowopd.studio.models import Shelf

        manifest = run / MANIFEST
        key = (run, manifest.stat().st_mtime_ns if manifest.exists() else 0)
        if key not in self._shelves:
            recipe = manifest_recipe(run).model_copy(update={"compile": False, "gradient_checkpointing": False})
            session = Session(recipe, run)
            session.open()
            self._shelves[key] = Shelf(session)
        self._shelves.move_to_end(key)
        while len(self._shelves) > SHELVES:
            self._shelves.popitem(last=False)
        return self._shelves[key]


def _painted(shelf: Shelf, wish: Wish) -> bytes:
    from PIL import Image

    from flowopd.stages.sample import draw_by

    sampling = shelf.session.recipe.drawing.sampling.model_copy(update={"steps": wish.steps})
    with shelf.using(wish.model, wish.strength, sampling.guidance) as field:
        (picture,) = draw_by(shelf.session, field, [wish.prompt], [wish.seed], sampling, shelf.encoded)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()
