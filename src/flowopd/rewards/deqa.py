"""DeQA-Score (2501.11561): how good a picture looks, by a language model that sees it and finishes a sentence.

The model is an mPLUG-Owl2 whose code comes with its files; it runs here only if it is trusted. The five words it may
finish with are the levels that people rated pictures by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPImageProcessor

from flowopd.errors import CheckpointError, ConfigError
from flowopd.hub import fetched
from flowopd.prompts import Prompt
from flowopd.rewards.base import JudgeConfig, Scores
from flowopd.rewards.pairs import check_pairs

MODEL = "zhiyuanyou/DeQA-Score-Mix3"

SENTENCE = (
    "USER: How would you rate the quality of this image?\n",
    "\nASSISTANT: The quality of the image is",
)
"""What stands before and after the picture: the words that the model was trained to go on from."""

PICTURE = -200
"""The token id for which the model's code puts the picture."""

LEVELS = ("excellent", "good", "fair", "poor", "bad")
BEST, WORST = 5, 1
"""What the first and the last level count; those between go down by one."""


class Deqa:
    """Scores pictures (B, H, W, 3), whatever their prompts. Details: `deqa` (B,) in 1..5; value = deqa / 5.

    It is tried once when it is built, so that code which does not run here fails at once. Raises ConfigError unless
    `trust_remote_code`, CheckpointError if the model cannot be loaded or its code does not run, DataError if pictures
    and prompts differ in number.
    """

    def __init__(
        self,
        *,
        model: str = MODEL,
        trust_remote_code: bool = False,
        device: str | torch.device = "cpu",
        batch: int = 8,
    ) -> None:
        self.check(JudgeConfig(model=model, trust_remote_code=trust_remote_code))
        self._device, self._batch = device, batch
        self._processor: Any = fetched(CLIPImageProcessor, model)
        try:
            tokenizer = fetched(AutoTokenizer, model, trust_remote_code=True)
            self._sentence, self._levels = sentence(tokenizer), level_ids(tokenizer)
            net = fetched(AutoModelForCausalLM, model, trust_remote_code=True, attn_implementation="eager")
            self._net: Any = net.half().eval().requires_grad_(False).to(device)
            self._rate(np.zeros((1, 8, 8, 3), np.uint8))
        except (ImportError, NameError, AttributeError, TypeError) as error:
            raise CheckpointError(
                f"the code of {model} does not run with transformers {transformers.__version__} "
                f"({' '.join(str(error).split())}); take a model whose code does, as judges.deqa.model, or serve deqa "
                "where it runs (flowopd serve-reward deqa) and set judges.deqa.url"
            ) from error

    @classmethod
    def check(cls, config: JudgeConfig) -> None:
        """Raises ConfigError if the model's code is not trusted."""
        if not config.trust_remote_code:
            raise ConfigError(
                f"deqa runs code that comes with {config.model or MODEL}; allow it with "
                "judges.deqa.trust_remote_code=true, or in an environment of its own by judges.deqa.url"
            )

    def __call__(self, pictures: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        check_pairs(pictures, prompts)
        parts = [self._rate(pictures[i : i + self._batch]) for i in range(0, len(pictures), self._batch)]
        score = torch.cat(parts).cpu().double().numpy()
        return Scores(score / BEST, {"deqa": score})

    @torch.inference_mode()
    def _rate(self, pictures: np.ndarray) -> Tensor:
        """The scores (B,) of pictures (B, H, W, 3)."""
        ground = tuple(int(255 * share) for share in self._processor.image_mean)
        seen = self._processor(images=[squared(picture, ground) for picture in pictures], return_tensors="pt")
        words = torch.tensor([self._sentence] * len(pictures), device=self._device)
        out = self._net(input_ids=words, images=seen["pixel_values"].half().to(self._device))
        return expected_level(out["logits"][:, -1, self._levels])


def expected_level(logits: Tensor) -> Tensor:
    """What levels count on average (B,), from BEST to WORST, at the logits (B, 5) of the LEVELS in their order."""
    worth = torch.linspace(BEST, WORST, len(LEVELS), device=logits.device)
    return logits.float().softmax(-1) @ worth


def sentence(tokenizer: Any) -> list[int]:
    """The tokens of SENTENCE with PICTURE between its halves; a token that begins texts stands at the front alone."""
    before, after = (tokenizer(half)["input_ids"] for half in SENTENCE)
    begins = after[:1] == [tokenizer.bos_token_id]
    return [*before, PICTURE, *after[int(begins) :]]


def level_ids(tokenizer: Any) -> list[int]:
    """The first token of each level."""
    return [tokenizer(level, add_special_tokens=False)["input_ids"][0] for level in LEVELS]


def squared(picture: np.ndarray, ground: tuple[int, ...]) -> Image.Image:
    """A picture (H, W, 3) in the middle of a square of a colour."""
    height, width, _ = picture.shape
    side = max(height, width)
    square = Image.new("RGB", (side, side), ground)
    square.paste(Image.fromarray(picture), ((side - width) // 2, (side - height) // 2))
    return square
