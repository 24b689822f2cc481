"""A reward, a router and an objective of one's own, ten lines each, in a run of the mini world.

An expert is trained on the reward by Flow-GRPO; then it and a shipped expert become one student, routed by what a
prompt says, with a loss that is less afraid of outliers; and the reward judges all of them. With the default of two
updates it shows how things fit together, not how good they become: the expert may well be less warm than another.

    python examples/04_own_reward.py --out runs/own-reward --updates 2
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowopd import Distiller, Prompt, Scores, Step
from flowopd.dynamics import Dynamics

FEW = 50
"""Updates below which the numbers at the end mean nothing."""


class Warmth:
    """How warm a picture is: its red against its blue, in 0..1."""

    def __call__(self, pictures: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        """One value for each of the pictures (B, H, W, 3), 0 to 255; `details` are further views of it."""
        red, blue = (pictures[..., channel].mean((1, 2)) / 255 for channel in (0, 2))
        return Scores((1 + red - blue) / 2, {"red": red, "blue": blue})


def by_words(prompts: Sequence[Prompt]) -> Tensor:
    """Weights (B, 2) over the experts `signs` and `warm`: a prompt with a quoted word is a sign, others are shared."""
    return torch.tensor([[1.0, 0.0] if '"' in prompt.text else [0.3, 0.7] for prompt in prompts])


def huber(step: Step, dynamics: Dynamics, target: Tensor, weight: Tensor) -> Tensor:
    """Loss (B,) of the student's velocity `step.v` against the experts', which far-away elements rule less."""
    return weight * torch.nn.functional.huber_loss(step.v, target, reduction="none").flatten(1).mean(1)


def main() -> None:
    """Train the expert, distil, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/own-reward", help="the run's folder")
    parser.add_argument("--updates", type=int, default=2, help="updates of the expert and of the student")
    options = parser.parse_args()
    reward, optim = f"{Path(__file__).stem}:Warmth", {"updates": options.updates, "learning_rate": 1e-3}
    trained = {"reward": reward, "prompts": "warm", "prompts_per_update": 2, "group": 2, "optim": optim}
    distiller = Distiller(
        "package:mini/base",
        teachers={
            "signs": "package:mini/teachers/text",
            "warm": {"train": {**trained, "sampling": {"steps": 3, "sampler": "sde", "window": 1}}},
        },
        prompts={"signs": ['a sign that says "SUN"'], "warm": ["a red star", "an orange disc"]},
        out=options.out,
        router=by_words,
        objective=huber,
        trust=[reward],
        distill={"samples_per_label": 2, "sampling": {"steps": 3}, "adapter": {"rank": 16}, "optim": optim},
        evaluate={
            "metrics": {"warmth": {"reward": reward, "prompts": "warm", "owner": "warm"}},
            "split": "train",
            "sampling": {"steps": 3},
        },
    )
    distiller.train()
    for model, row in distiller.evaluate().models.items():
        print(f"{model}: warmth {row['warmth'].mean:.3f}")
    if options.updates < FEW:
        print(f"{options.updates} updates are too few to learn from: these numbers say that the parts fit, and no more")


if __name__ == "__main__":
    main()
