"""Where metrics go besides a run's own file: TensorBoard, Weights & Biases, trackio.

Each is used as its authors mean it, from its own library, which is imported only if it is asked for. Keys, projects and
offline modes are the libraries' own: WANDB_MODE=offline, WANDB_PROJECT, TRACKIO_SPACE_ID and so on.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from flowopd.durable import writing
from flowopd.errors import ConfigError

PROJECT = "flowopd"
"""The project of runs on W&B and trackio, where the environment names no other."""


@dataclass(frozen=True)
class Place:
    """Which stage of which run a board is for, and the settings that it shows."""

    run: Path
    stage: str
    settings: Mapping[str, Any]

    @property
    def group(self) -> str:
        """The run's name."""
        return self.run.resolve().name

    @property
    def name(self) -> str:
        """The stage's name within all runs."""
        return f"{self.group}/{self.stage}"

    @property
    def identity(self) -> str:
        """A short name of this folder and stage, by which a stage that goes on finds its board again."""
        return sha256(f"{self.run.resolve()}:{self.stage}".encode()).hexdigest()[:16]


class Board(Protocol):
    """One tracker of one stage."""

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of an update."""
        ...

    def by_step(self, step: int, name: str, values: Sequence[float]) -> None:
        """A value for each step of a rollout, as a histogram whose bins are the steps."""
        ...

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """A picture."""
        ...

    def close(self) -> None:
        """Everything is written."""
        ...


class TensorBoard:
    """Event files in OUT/tensorboard/STAGE. Raises CheckpointError if they cannot be written."""

    def __init__(self, place: Place) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = place.run / "tensorboard" / place.stage.replace(":", "-")
        with writing(self._folder):
            self._writer = SummaryWriter(str(self._folder))

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """One curve a metric."""
        with writing(self._folder):
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)

    def by_step(self, step: int, name: str, values: Sequence[float]) -> None:
        """Buckets (i, i + 1] as high as the value of step i."""
        n = len(values)
        total, squares = sum(i * v for i, v in enumerate(values)), sum(i * i * v for i, v in enumerate(values))
        edges, heights = [float(i) for i in range(n + 1)], [0.0, *values]
        with writing(self._folder):
            self._writer.add_histogram_raw(name, 0, n, math.fsum(values), total, squares, edges, heights, step)

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """An image."""
        with writing(self._folder):
            self._writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close."""
        with writing(self._folder):
            self._writer.close()


class Wandb:
    """A W&B run a stage, grouped by the flowopd run; its files lie in OUT/wandb."""

    def __init__(self, place: Place) -> None:
        import wandb

        self._wandb = wandb
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                dir=str(place.run),
                id=place.identity,
                name=place.name,
                group=place.group,
                job_type=place.stage,
                config=dict(place.settings),
                resume="allow",
                settings=wandb.Settings(silent=True),
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split())[:120]
            raise ConfigError(f"wandb refuses the run ({reason}); `wandb login`, or set WANDB_MODE=offline") from None

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row."""
        self._run.log(dict(metrics), step=step)

    def by_step(self, step: int, name: str, values: Sequence[float]) -> None:
        """A histogram whose bars are the values."""
        edges = list(range(len(values) + 1))
        self._run.log({name: self._wandb.Histogram(np_histogram=(list(values), edges))}, step=step)

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """An image."""
        self._run.log({name: self._wandb.Image(picture)}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Trackio:
    """A trackio run a stage, grouped by the flowopd run. It has no histograms: a value a step is among the metrics."""

    def __init__(self, place: Place) -> None:
        import trackio

        self._trackio = trackio
        trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{place.name}-{place.identity[:6]}",
            group=place.group,
            config=dict(place.settings),
            resume="allow",
            embed=False,
        )

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row."""
        self._trackio.log(dict(metrics), step=step)

    def by_step(self, step: int, name: str, values: Sequence[float]) -> None:
        """Nothing more than the metrics say."""

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """An image."""
        self._trackio.log({name: self._trackio.Image(np.asarray(picture.convert("RGB")))}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._trackio.finish()


BOARDS: Mapping[str, Callable[[Place], Board]] = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}


def open_boards(names: Sequence[str] | None, place: Place) -> list[Board]:
    """The boards of these names; by default TensorBoard, if it is installed.

    Raises ConfigError for one whose library is not installed, or that refuses the run.
    """
    check_boards(names)
    if names is None:
        return [TensorBoard(place)] if find_spec("tensorboard") else []
    return [BOARDS[name](place) for name in dict.fromkeys(names)]


def check_boards(names: Sequence[str] | None) -> None:
    """Raises ConfigError for a board whose library is not installed."""
    missing = [name for name in names or () if find_spec(name) is None]
    if missing:
        raise ConfigError(f"--track {missing[0]} needs {missing[0]}, which is not installed: pip install {missing[0]}")
