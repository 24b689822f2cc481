"""How far what was written is from what was trained: both velocities at the same random states, in fp32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flowopd.errors import CheckpointError
from flowopd.formats import FORMATS, Trained
from flowopd.formats.base import full_precision
from flowopd.noise import seed_of
from flowopd.session import Session
from flowopd.types import Condition
from flowopd.velocity import VelocityField

LIMIT = 1e-5
"""Largest difference of an export's velocity from the trained adapter's, in units of the largest velocity."""

STATES, SIDE = 3, 16
"""Random states of a comparison, and the most rows and columns of their latents: enough to see every weight at work."""

REFERENCE = "the trained adapter"


@dataclass(frozen=True)
class Check:
    """How far an export is from the trained adapter, in units of the largest velocity.

    `stored` is as the files are, `exact` before they were rounded to their dtype. For example
    `Check(stored=2e-7, exact=2e-7)`; a merged bf16 model has a larger `stored`.
    """

    stored: float
    exact: float


class Reference:
    """The velocity of the base with the trained adapter, which every export has to have.

    The base is in memory once: what is read back shares its tensors. Elsewhere than here they are what they were.
    """

    def __init__(self, session: Session, trained: Trained) -> None:
        self.session, self.trained = session, trained
        generator, device = torch.Generator().manual_seed(seed_of(session.recipe.seed, "export")), session.device
        channels, height, width = session.latent_shape()
        x = torch.randn(STATES, channels, min(height, SIDE), min(width, SIDE), generator=generator)
        blank = session.model.blank(STATES).tensors
        cond = Condition({name: torch.randn(value.shape, generator=generator) for name, value in blank.items()})
        self.x, self.t = x.to(device), torch.rand(STATES, generator=generator).to(device)
        self.cond = cond.to(device)
        self.velocity = self._trained_velocity()

    def compared(self, form: str, folder: Path) -> Check:
        """How far the export in `folder` is from it.

        Raises CheckpointError if that is further than LIMIT, whatever the rounding.
        """
        make_field = self.session.model.make_field
        with full_precision(self.session.model.transformer), torch.no_grad():
            transformer = FORMATS[form].reloaded(folder, self.trained)
            stored = exact = self._distance(make_field(transformer))
            if not stored <= LIMIT:
                exact = self._distance(make_field(FORMATS[form].unrounded(transformer, self.trained)))
        if not exact <= LIMIT:
            raise CheckpointError(
                f"read back, the {form} export of {self.trained.name} moves the velocity by {exact:.1e} of its scale "
                f"(limit {LIMIT:g}) and is not kept; compare the versions of diffusers and peft with flowopd's"
            )
        return Check(stored=stored, exact=exact)

    def _trained_velocity(self) -> Tensor:
        """By an adapter that is here for as long as it is asked."""
        adapters, model = self.session.adapters, self.session.model
        with full_precision(model.transformer), torch.no_grad():
            adapters.load(REFERENCE, self.trained.lora, allow_zero=True)
            try:
                return adapters.field(REFERENCE, model.make_field)(self.x, self.t, self.cond)
            finally:
                adapters.remove(REFERENCE)

    def _distance(self, field: VelocityField) -> float:
        difference = field(self.x, self.t, self.cond) - self.velocity
        return float(difference.abs().max() / self.velocity.abs().max())
