"""The two learned judges of drawing quality, and how they are taught: small nets that tell how far a picture
is spoiled.

Each net gives the logit of p = (q - 1)/4 for a picture of quality q in 1..5. Truth is known by construction:
a drawn picture has p = 1, and a degradation of severity s takes away the share s of what p there was, so that
two of them leave (1 - s1)(1 - s2). Pictures come in pairs that differ in the severity of the last degradation
alone, and the net also learns that the more severe one is the worse one.

`python -m flowopd.mini.quality` teaches both judges anew and writes their assets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, relu

from flowopd.durable import packed, replace_bytes, replace_text
from flowopd.errors import CheckpointError
from flowopd.mini.degrade import DEGRADATIONS, ELSEWHERE, FURTHER, degrade, to_bytes
from flowopd.mini.draw import draw
from flowopd.mini.wishes import grant, random_wish
from flowopd.mini.world import TASKS

ASSETS = Path(__file__).parent / "assets"

SLACK = 1.5
"""Noise, in grey levels, that every picture of a lesson may have for free: what no eye sees is no fault."""


class Gauge(nn.Module):
    """Convolutions down to 8 x 8 cells, their mean and maximum: (B, 3, 64, 64) in -1..1 -> logits (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.Sequential(
            nn.Conv2d(3, 16, 5, 2, 2),
            nn.SiLU(),
            nn.Conv2d(16, 24, 3, 1, 1),
            nn.SiLU(),
            nn.Conv2d(24, 48, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(48, 64, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(64, 64, 3, 1, 1),
            nn.SiLU(),
        )
        self.head = nn.Sequential(nn.Linear(128, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        cells = self.cells(x)
        logits: Tensor = self.head(torch.cat([cells.mean((2, 3)), cells.amax((2, 3))], 1))
        return logits.squeeze(1)


class Patches(nn.Module):
    """A bag of 256 overlapping patches, its mean and spread: (B, 3, 64, 64) in -1..1 -> logits (B,)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            nn.Conv2d(3, width, 8, 4, 2),
            nn.GELU(),
            nn.Conv2d(width, width, 3, 1, 1),
            nn.GELU(),
            nn.Conv2d(width, width, 1),
            nn.GELU(),
        )
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x)
        logits: Tensor = self.head(torch.cat([patches.mean((2, 3)), patches.std((2, 3))], 1))
        return logits.squeeze(1)


@dataclass(frozen=True)
class Judge:
    """A judge's asset name, net, the degradations it is taught, and the seed of its lessons."""

    name: str
    net: Callable[[], nn.Module]
    families: tuple[str, ...]
    seed: int


QUALITY = Judge("quality", Gauge, (*DEGRADATIONS, *FURTHER), 11)
"""The judge that experts may be trained on."""

HOLDOUT = Judge("holdout", Patches, (*DEGRADATIONS, *ELSEWHERE), 23)
"""The judge that nothing is trained on: another net, partly other degradations, other pictures."""


def load_judge(judge: Judge) -> nn.Module:
    """The taught net, in evaluation mode. Raises CheckpointError if its asset is missing."""
    path = ASSETS / f"{judge.name}.safetensors"
    if not path.exists():
        raise CheckpointError(f"{path} is missing; install the package anew, or run: python -m flowopd.mini.quality")
    net = judge.net()
    net.load_state_dict(load_file(path))
    return net.eval().requires_grad_(False)


@torch.inference_mode()
def qualities(net: nn.Module, pictures: np.ndarray, batch: int = 32) -> np.ndarray:
    """The quality q in 1..5 of each picture: (B, 64, 64, 3) uint8 -> (B,) float64."""
    logits = [net(to_tensor(pictures[i : i + batch])) for i in range(0, len(pictures), batch)]
    return 1 + 4 * torch.cat(logits).double().sigmoid().numpy()


def train_quality(
    judge: Judge,
    *,
    steps: int = 1500,
    pairs: int = 24,
    scenes: int = 3000,
    learning_rate: float = 4e-3,
    ranking: float = 2.0,
    log: Callable[[dict[str, float]], None] = lambda row: None,
) -> nn.Module:
    """A net taught by cross-entropy, and a hinge that wants half of the true difference within a pair."""
    torch.manual_seed(judge.seed)
    rng = np.random.default_rng(judge.seed)
    clean = [_scene(rng) for _ in range(scenes)]
    net = judge.net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.1)
    for step in range(steps):
        lessons = [_lesson(clean[int(rng.integers(scenes))], judge.families, rng) for _ in range(pairs)]
        pictures, truth = np.concatenate([x for x, _ in lessons]), torch.tensor([p for _, p in lessons])
        logits = net(to_tensor(pictures)).unflatten(0, (pairs, 2))
        p = logits.sigmoid()
        value = binary_cross_entropy_with_logits(logits, truth)
        order = relu(0.5 * (truth[:, 0] - truth[:, 1]) - (p[:, 0] - p[:, 1])).mean()
        optimizer.zero_grad()
        (value + ranking * order).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        error = (p.detach() - truth).abs().mean().item()
        log({"step": step, "cross_entropy": value.item(), "order": order.item(), "error": error})
    return net


def _scene(rng: np.random.Generator) -> np.ndarray:
    return draw(grant(random_wish(str(rng.choice((*TASKS, "text"))), rng), rng))


def _lesson(
    clean: np.ndarray, families: Sequence[str], rng: np.random.Generator
) -> tuple[np.ndarray, tuple[float, float]]:
    """A pair (2, 64, 64, 3), the better one first, and the true p of both; half of the better ones lack the
    last fault.

    Both have the same fault, drawn from the same seed, on the same clean or already degraded picture.
    """
    picture, kept = clean, 1.0
    if rng.random() < 0.4:
        severity = rng.uniform(0.15, 0.9)
        picture, kept = degrade(clean, str(rng.choice(families)), severity, rng), 1 - severity
    name, seed = str(rng.choice(families)), int(rng.integers(2**63))
    least = rng.choice([0.0, rng.uniform(0.15, 0.8)])
    severities = (least, rng.uniform(least + 0.15, 1.0))
    pair = np.stack([degrade(picture, name, s, np.random.default_rng(seed)) for s in severities])
    noise = rng.uniform(0, SLACK) * rng.standard_normal(pair.shape)
    return to_bytes(pair + noise), (kept * (1 - severities[0]), kept * (1 - severities[1]))


def to_tensor(pictures: np.ndarray) -> Tensor:
    """(B, 64, 64, 3) uint8 -> (B, 3, 64, 64) in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def write_assets(judge: Judge, every: int = 20) -> None:
    """Teaches a judge and writes its weights, and its log: the mean of each `every` steps a line."""
    rows: list[dict[str, float]] = []
    net = train_quality(judge, log=rows.append)
    replace_bytes(ASSETS / f"{judge.name}.safetensors", packed(net.state_dict()))
    write_log(ASSETS / f"{judge.name}.jsonl", rows, every)


def write_log(file: Path, rows: Sequence[dict[str, float]], every: int) -> None:
    """The mean of each `every` rows a line."""
    means = [
        {key: round(float(np.mean([row[key] for row in part])), 5) for key in rows[0]}
        for part in (rows[i : i + every] for i in range(0, len(rows), every))
    ]
    replace_text(file, "".join(json.dumps(row) + "\n" for row in means))


if __name__ == "__main__":
    for taught in (QUALITY, HOLDOUT):
        write_assets(taught)
