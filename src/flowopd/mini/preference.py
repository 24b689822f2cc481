"""The learned judge of preference, and how it is taught: a small net that tells which of two pictures of one prompt
people would pick.

People of the mini world like a picture that shows what they asked for, is well drawn, and, a little, one on warm paper:
`liking` is their true utility, and the share of them who pick A over B is the logistic function of the difference
(Bradley-Terry). The net sees pixels and words alone and is taught these shares, as PickScore (2305.01569) is taught
picks; as PickScore begins from a CLIP, it also learns what each part of a picture shows. It is as imprecise as such
judges are, and its taste for paper is not the other experts'.

`python -m flowopd.mini.preference` teaches it anew and writes its asset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from flowopd.durable import packed, replace_bytes
from flowopd.errors import CheckpointError
from flowopd.mini.captions import DOMAINS, LEADS, caption, reworded
from flowopd.mini.degrade import DEGRADATIONS, FURTHER, degrade, to_bytes
from flowopd.mini.draw import draw
from flowopd.mini.layout import CLASSES, COLOUR_CLASSES, layout
from flowopd.mini.quality import ASSETS, SLACK, to_tensor, write_log
from flowopd.mini.wishes import Wish, grant, mistake, random_wish
from flowopd.mini.world import COLOURS, KINDS, NUMBERS, PAPERS, PLURALS, TASKS

ASSET = ASSETS / "preference.safetensors"
SEED = 37
WORDS, WIDTH, HEADS = 20, 64, 4
"""Words of a prompt that are read, and the width and heads of the net."""

FAULT, SPOILT, WARMTH = 1.5, 4.0, 0.5
"""What a mistake costs, what a fully spoilt picture costs, and what warm paper gains (cool paper loses as much)."""

DEAF = 3
"""Mistakes that a picture of something else altogether counts for."""

SIDES = {"plain": 0.0, "warm": 1.0, "cool": -1.0}
FAMILIES = (*DEGRADATIONS, *FURTHER)


@dataclass(frozen=True)
class Attempt:
    """A picture (64, 64, 3) uint8 that somebody drew for a wish, its layout (2, 8, 8) and its liking."""

    picture: np.ndarray
    layout: np.ndarray
    liking: float


def liking(mistakes: int, spoilt: float, paper: str) -> float:
    """The utility of a picture with so many mistakes, spoilt by a share in 0..1, on one of PAPERS."""
    return WARMTH * SIDES[paper] - FAULT * mistakes - SPOILT * spoilt


class Taste(nn.Module):
    """Each word, in its context, looks for itself in the picture's 8 x 8 cells: how well it is found at best and on
    average is what its liking depends on. (B, 3, 64, 64) in -1..1 and word ids (B, WORDS) -> likings (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.Sequential(
            nn.Conv2d(3, 24, 5, 2, 2),
            nn.SiLU(),
            nn.Conv2d(24, 48, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(48, WIDTH, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, 1, 1),
        )
        self.shows = nn.Conv2d(WIDTH, CLASSES + COLOUR_CLASSES, 1)
        self.words = nn.Embedding(len(vocabulary()), WIDTH)
        self.order = nn.Parameter(0.02 * torch.randn(WORDS, WIDTH))
        self.context = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 2 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.places = nn.Parameter(0.02 * torch.randn(64, WIDTH))
        self.sought, self.shown_as = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH + CLASSES + COLOUR_CLASSES, WIDTH)
        self.verdict = nn.Sequential(nn.Linear(WIDTH + 2 * HEADS, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.head = nn.Sequential(nn.Linear(3 * WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.judged(x, ids)[0]

    def judged(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The likings, and logits (B, CLASSES, 8, 8), (B, COLOUR_CLASSES, 8, 8) of what each cell shows."""
        features = self.cells(x)
        shows = self.shows(features)
        unread = ids == 0
        words = self.context(self.words(ids) + self.order, src_key_padding_mask=unread)
        cells = torch.cat([features, shows.detach()], 1).flatten(2).mT
        sought = self.sought(words).unflatten(2, (HEADS, -1)).transpose(1, 2)
        found = (self.shown_as(cells) + self.places).unflatten(2, (HEADS, -1)).transpose(1, 2)
        match = sought @ found.mT / sought.shape[-1] ** 0.5
        best = torch.cat([match.amax(3), match.sigmoid().mean(3)], 1).mT
        read = self.verdict(torch.cat([words, best], 2))
        read = read.masked_fill(unread[:, :, None], 0).sum(1) / (~unread).sum(1, keepdim=True)
        likings: Tensor = self.head(torch.cat([read, features.mean((2, 3)), features.amax((2, 3))], 1)).squeeze(1)
        return likings, shows[:, :CLASSES], shows[:, CLASSES:]


@cache
def vocabulary() -> dict[str, int]:
    """Ids of the words that captions are made of; 0 is none, 1 any other word."""
    rng = np.random.default_rng(0)
    wishes = [random_wish(task, rng) for task in TASKS for _ in range(400)]
    said = {word for wish in wishes for domain in LEADS for word in reworded(wish, domain, rng).split()}
    said |= {word for leads in LEADS.values() for lead in leads for word in lead.split()}
    said |= {*KINDS, *PLURALS.values(), *COLOURS, *NUMBERS.values(), "left", "right", "above", "below", "of", "and"}
    return {"": 0, "?": 1} | {word: 2 + i for i, word in enumerate(sorted(said))}


def spelt(texts: Sequence[str]) -> Tensor:
    """Word ids (B, WORDS) of texts; what is longer is cut off."""
    known = vocabulary()
    rows = [[known.get(word, 1) for word in text.split()][:WORDS] or [1] for text in texts]
    return torch.tensor([row + [0] * (WORDS - len(row)) for row in rows])


def load_taste() -> tuple[nn.Module, float]:
    """The taught net, in evaluation mode, and the liking of an average picture. Raises CheckpointError if missing."""
    if not ASSET.exists():
        raise CheckpointError(
            f"{ASSET} is missing; install the package anew, or run: python -m flowopd.mini.preference"
        )
    tensors = load_file(ASSET)
    average = tensors.pop("average").item()
    net = Taste()
    net.load_state_dict(tensors)
    return net.eval().requires_grad_(False), average


@torch.inference_mode()
def likings(net: nn.Module, pictures: np.ndarray, texts: Sequence[str], batch: int = 32) -> np.ndarray:
    """The liking (B,) float64 of each picture (B, 64, 64, 3) uint8 for its own text."""
    parts = [slice(i, i + batch) for i in range(0, len(pictures), batch)]
    return torch.cat([net(to_tensor(pictures[part]), spelt(texts[part])) for part in parts]).double().numpy()


def attempt(wish: Wish, rng: np.random.Generator) -> Attempt:
    """A picture drawn for a wish by somebody: careful, careless or deaf, well or not, on any paper."""
    mistakes = int(rng.choice(4, p=(0.45, 0.25, 0.1, 0.2)))
    drawn = random_wish(str(rng.choice(TASKS)), rng) if mistakes == DEAF else wish
    for _ in range(mistakes % DEAF):
        drawn = mistake(drawn, rng)
    mistakes = mistakes if drawn != wish else 0
    paper = str(rng.choice(list(PAPERS)))
    scene, kept = grant(drawn, rng, paper), 1.0
    picture = draw(scene)
    for _ in range(int(rng.choice(3, p=(0.5, 0.35, 0.15)))):
        severity = rng.uniform(0.1, 0.9)
        picture, kept = degrade(picture, str(rng.choice(FAMILIES)), severity, rng), kept * (1 - severity)
    noise = rng.uniform(0, SLACK) * rng.standard_normal(picture.shape)
    return Attempt(to_bytes(picture + noise), layout(scene), liking(mistakes, 1 - kept, paper))


def asked(rng: np.random.Generator) -> tuple[Wish, str]:
    """A wish in the words of a domain of objects, mostly the bare words of `preference`."""
    domain = str(rng.choice(list(LEADS), p=(0.2, 0.2, 0.6)))
    wish = random_wish(str(rng.choice(DOMAINS[domain])), rng)
    return wish, (reworded if rng.random() < 0.35 else caption)(wish, domain, rng)


def train_taste(
    *,
    steps: int = 8000,
    pairs: int = 24,
    learning_rate: float = 2e-3,
    log: Callable[[dict[str, float]], None] = lambda row: None,
) -> tuple[nn.Module, float]:
    """A net taught the shares of people who pick the first of two, and what it thinks of an average picture."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    net = Taste()
    optimizer = torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.05)
    average = 0.0
    for step in range(steps):
        prompts = [asked(rng) for _ in range(pairs)]
        attempts = [attempt(wish, rng) for wish, _ in prompts for _ in range(2)]
        ids = spelt([text for _, text in prompts]).repeat_interleave(2, 0)
        scores, *shown = net.judged(to_tensor(np.stack([one.picture for one in attempts])), ids)
        scores = scores.unflatten(0, (pairs, 2))
        truth = torch.tensor([one.liking for one in attempts]).unflatten(0, (pairs, 2))
        wanted = (truth[:, 0] - truth[:, 1]).float()
        loss = binary_cross_entropy_with_logits(scores[:, 0] - scores[:, 1], wanted.sigmoid())
        targets = torch.from_numpy(np.stack([one.layout for one in attempts])).long().unbind(1)
        seen = sum(cross_entropy(logits, target) for logits, target in zip(shown, targets, strict=True))
        optimizer.zero_grad()
        (loss + seen).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average += 0.01 * (scores.detach().mean().item() - average)
        agree = ((scores[:, 0] > scores[:, 1]) == (wanted > 0)).float().mean().item()
        log({"step": step, "cross_entropy": loss.item(), "seen": float(seen.detach()), "agree": agree})
    return net, average


def write_asset(every: int = 200) -> None:
    """Teaches the judge and writes its weights, and its log: the mean of each `every` steps a line."""
    rows: list[dict[str, float]] = []
    net, average = train_taste(log=rows.append)
    replace_bytes(ASSET, packed({**net.state_dict(), "average": torch.tensor(average)}))
    write_log(ASSET.with_suffix(".jsonl"), rows, every)


if __name__ == "__main__":
    write_asset()
