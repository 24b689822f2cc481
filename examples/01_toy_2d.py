"""Two experts of points in the plane become one student: the whole method on a flow whose velocity is known exactly.

Each expert knows the exact velocity of one shape, made of Gaussians: `ring`, or `cross`. The student, a small network
that is told which shape is wanted, learns from both at the points that it visits itself. About a minute of one core.

    python examples/01_toy_2d.py --out runs/toy.png
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from torch import Tensor, nn

from flowopd import Condition, DistillConfig, FieldDistiller, Ode
from flowopd.noise import Noise
from flowopd.rollout import record
from flowopd.schedule import sigma_grid

matplotlib.use("Agg")
from matplotlib import pyplot

SPREAD = 0.12
"""Standard deviation of each Gaussian of a shape."""

ANGLES = torch.arange(8) * math.pi / 4
WAVES = (1, 2, 4, 8)
SHAPES = {
    "ring": 1.5 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1),
    "cross": torch.tensor([[0.0, 0.0], [0.8, 0.8], [-0.8, 0.8], [0.8, -0.8], [-0.8, -0.8], [1.6, 1.6], [-1.6, -1.6]]),
}
CONDITIONS = {name: Condition({"shape": torch.eye(len(SHAPES))[[i]]}) for i, name in enumerate(SHAPES)}


@dataclass(frozen=True)
class Mixture:
    """The exact velocity `E[eps - x_0 | x_t]` of a mixture of Gaussians around `centres` (M, 2)."""

    centres: Tensor

    def __call__(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The velocity (B, 2) at points x (B, 2) and time t: each Gaussian's own, by how likely it made the point."""
        variance = ((1 - t) * SPREAD) ** 2 + t**2
        away = x[:, None] - (1 - t) * self.centres
        share = torch.softmax(-away.square().sum(-1) / (2 * variance), 1)[..., None]
        velocity = (t - (1 - t) * SPREAD**2) / variance * away - self.centres
        return (share * velocity).sum(1)


class Student(nn.Module):
    """A small network v(x, t, cond) that sees waves of the point's coordinates."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(7 + 4 * len(WAVES) + len(SHAPES), width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2),
        )  # fmt: skip

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The velocity (B, 2) at points x (B, 2) and time t."""
        t = t.expand(len(x), 1)
        waves = [wave(k * x) for k in WAVES for wave in (torch.sin, torch.cos)]
        times = [t, t.square(), (t + 0.05).log()]
        return self.layers(torch.cat([x, x / (t + 0.1), *times, *waves, cond["shape"]], 1))


def walk(field: object, name: str, count: int = 400, steps: int = 40) -> Tensor:
    """The points (steps + 1, count, 2) that a field leads noise along."""
    noise = Noise(range(count))
    return record(field, Ode(), noise.initial((2,)), sigma_grid(steps, 1), CONDITIONS[name].expand(count), None).states


def on_target(points: Tensor, name: str) -> float:
    """The share of points (B, 2) within three standard deviations of a Gaussian of the shape."""
    return float((torch.cdist(points, SHAPES[name]).amin(1) < 3 * SPREAD).float().mean())


def draw(student: nn.Module, file: Path) -> None:
    """The experts' and the student's ways from noise to each shape, as one picture; makes the folder of the file."""
    figure, axes = pyplot.subplots(2, len(SHAPES), figsize=(8, 8), sharex=True, sharey=True)
    for column, name in enumerate(SHAPES):
        for row, (who, field) in enumerate({"expert": Mixture(SHAPES[name]), "student": student}.items()):
            ways, axis = walk(field, name), axes[row, column]
            axis.plot(ways[:, :120, 0], ways[:, :120, 1], color="0.8", linewidth=0.5)
            axis.plot(*ways[-1].T, ".", color="tab:blue" if who == "expert" else "tab:orange", markersize=3)
            axis.set_title(f"{who}: {name}")
            axis.set_aspect("equal")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120, bbox_inches="tight")


def main() -> None:
    """Distil, say how well it went, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/toy.png"), help="the picture to write")
    parser.add_argument("--updates", type=int, default=600, help="updates of the student")
    options = parser.parse_args()
    torch.manual_seed(0)
    student = Student()
    before = {name: on_target(walk(student, name)[-1], name) for name in SHAPES}
    FieldDistiller(
        student=student,
        teachers={name: Mixture(centres) for name, centres in SHAPES.items()},
        conditions=CONDITIONS,
        shape=(2,),
        config=DistillConfig(
            samples_per_label=64,
            micro_batch=128,
            sampling={"steps": 16},
            query={"kind": "random", "k": 4},
            optim={"updates": options.updates, "learning_rate": 6e-3, "decay": True, "ema": 0.95},
        ),
    ).train()
    for name in SHAPES:
        expert, own = (on_target(walk(field, name)[-1], name) for field in (Mixture(SHAPES[name]), student))
        print(f"{name}: {own:.0%} of the student's points are on it, {before[name]:.0%} before, expert {expert:.0%}")
    draw(student, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
