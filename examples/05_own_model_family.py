"""A model family of one's own: pictures of 8 x 8 pixels, drawn from words by a small network of linear layers.

A family is one class that offers what `flowopd.models.base.Model` names, entered into `FAMILIES` under the class that
the model's `model_index.json` states. Then everything works on it: experts by Flow-GRPO, merge, distillation, sampling,
evaluation. Here two experts learn to paint `warm` and `dark`, and one student learns both: 20 seconds of one core.

    python examples/05_own_model_family.py --out runs/pixels
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowopd import Condition, Distiller, Prompt, VelocityField
from flowopd.models import FAMILIES, Source
from flowopd.noise import seed_of
from flowopd.schedule import sigma_grid
from flowopd.shapes import Grid

SIDE, WIDTH, WORDS = 8, 64, 32
WEIGHTS = "weights.safetensors"


class Painter(nn.Module):
    """The network: pixels, time and words in, a velocity out. Adapters go on its linear layers by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(3 * SIDE * SIDE + 1 + WORDS, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.leave = nn.Linear(WIDTH, 3 * SIDE * SIDE)

    def forward(self, x: Tensor, t: Tensor, words: Tensor) -> Tensor:
        """The velocity (B, 3, 8, 8) at pixels x (B, 3, 8, 8), times t (B,) and words (B, WORDS)."""
        hidden = torch.tanh(self.enter(torch.cat([x.flatten(1), t[:, None], words], 1)))
        return x + self.leave(torch.tanh(self.middle(hidden))).view_as(x)


class Field:
    """The network as a velocity field."""

    def __init__(self, painter: nn.Module) -> None:
        self.painter = painter

    def __call__(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The velocity at x (B, 3, 8, 8) and t, a scalar or (B,)."""
        return self.painter(x, t.expand(len(x)), cond["words"])


class Pixels:
    """The family. What needs no loading, such as pixels instead of an autoencoder's latents, is simply done."""

    targets = ("enter", "middle", "leave")
    make_field = Field
    encoding = ("bag of words",)

    def __init__(self, source: Source, *, device: str = "cpu", dtype: torch.dtype = torch.float32, **_: Any) -> None:
        self.source, self.device, self.dtype = source, torch.device(device), dtype
        self.load_options, self.call_options = {}, {}
        self.transformer = Painter().to(self.device, dtype).requires_grad_(False).eval()
        self.transformer.load_state_dict(load_file(Path(source.path, WEIGHTS)))

    def grid(self, steps: int) -> Grid:
        """Even times from noise to data."""
        return sigma_grid(steps, shift=1)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """The pixels themselves."""
        return 3, SIDE, SIDE

    def cut(self, texts: Sequence[str]) -> list[str]:
        """Every word is read."""
        return []

    def encode(self, texts: Sequence[str]) -> Condition:
        """Each word of a prompt switches one of WORDS inputs on."""
        words = torch.zeros(len(texts), WORDS)
        for row, text in zip(words, texts, strict=True):
            row[[seed_of(word) % WORDS for word in text.split()]] = 1
        return Condition({"words": words})

    def decode(self, latents: Tensor) -> np.ndarray:
        """Pictures (B, 8, 8, 3) uint8 of pixels around 0."""
        return ((latents.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8)

    def free_encoders(self) -> None:
        """There are none."""

    def encoder_bytes(self) -> int:
        """There are none."""
        return 0

    def skeleton(self) -> nn.Module:
        """The network without weights, for `flowopd plan`."""
        with torch.device("meta"):
            return Painter()

    def blank(self, rows: int) -> Condition:
        """A condition without content, for `flowopd plan`."""
        return Condition({"words": torch.empty(rows, WORDS, device="meta")})

    def check_whole(self, source: Source) -> str | None:
        """Whole networks as teachers lie in folders of their own."""
        return None

    def whole(self, source: Source, offload: bool) -> VelocityField:
        """Another network of this family as a teacher."""
        return Field(Pixels(source, device=str(self.device), dtype=self.dtype).transformer)


FAMILIES["PixelPipeline"] = Pixels


class Warm:
    """Red against blue, in 0..1."""

    def __call__(self, pictures: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        """One value for each of the pictures (B, 8, 8, 3)."""
        return (255 + pictures[..., 0].mean((1, 2)) - pictures[..., 2].mean((1, 2))) / 510


class Dark:
    """How black a picture is, in 0..1."""

    def __call__(self, pictures: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
        """One value for each of the pictures (B, 8, 8, 3)."""
        return 1 - pictures.mean((1, 2, 3)) / 255


def write_base(folder: Path) -> None:
    """A base that draws grey noise, as a folder."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(Painter().state_dict(), folder / WEIGHTS)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "PixelPipeline"}))


def main() -> None:
    """Make a base, train two experts and a student, and judge them all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/pixels"), help="folder of the base and of the run")
    parser.add_argument(
        "--updates", type=int, default=40, help="updates of each expert; the student makes four times as many"
    )
    options = parser.parse_args()
    write_base(options.out / "base")
    rewards = {name: f"{Path(__file__).stem}:{name.title()}" for name in ("warm", "dark")}
    optim, adapter = {"updates": options.updates, "learning_rate": 1e-2}, {"rank": 8, "alpha": 8}
    sampling = {"steps": 5, "sampler": "sde", "window": 3}
    policy = {
        "group": 16,
        "prompts_per_update": 2,
        "clip": 1e-2,
        "sampling": sampling,
        "adapter": adapter,
        "optim": optim,
    }
    distiller = Distiller(
        options.out / "base",
        teachers={name: {"train": {"reward": path, "prompts": name, **policy}} for name, path in rewards.items()},
        prompts={name: [f"a {name} picture", f"something {name}"] for name in rewards},
        out=options.out / "run",
        trust=list(rewards.values()),
        distill={
            "samples_per_label": 16,
            "anchor": None,
            "sampling": {"steps": 5},
            "adapter": adapter,
            "optim": {**optim, "updates": 4 * options.updates},
        },
        evaluate={
            "metrics": {name: {"reward": path, "prompts": name, "owner": name} for name, path in rewards.items()},
            "split": "train",
            "images_per_prompt": 8,
            "sampling": {"steps": 5},
        },
    )
    distiller.train()
    for model, row in distiller.evaluate().models.items():
        print(f"{model:14} " + " ".join(f"{name} {row[name].mean:.2f}" for name in rewards))


if __name__ == "__main__":
    main()
