"""How well a picture shows the string that its prompt puts between quotes, read by PP-OCRv4 (rapidocr, on the
CPU).

The target stands between the prompt's first two double quotes. Recognised strings are joined, spaces removed,
lower case; a target of n characters that they contain scores 1, else 1 - min(d, n)/n with d the Levenshtein
distance.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowopd.errors import ConfigError, DataError
from flowopd.prompts import Prompt
from flowopd.rewards.base import JudgeConfig, Scores
from flowopd.rewards.pairs import check_pairs

LEAST_SIDE = 96
"""Pixels to which the shorter side of a small picture is enlarged before text is looked for."""

LINE_HEIGHT = 48
"""Pixels to which the recogniser scales a line of text, and the least width it is given."""


class Ocr:
    """Reads pictures (B, H, W, 3) of any size. Details: `exact` (B,) is 1 where the target is contained, else
    0.

    It takes as many threads as torch has when it is built. Raises ConfigError if rapidocr is not installed,
    DataError if a prompt has nothing between quotes, or pictures and prompts differ in number.
    """

    def __init__(self) -> None:
        self._engine = _engine(torch.get_num_threads())

    @staticmethod
    def check(_config: JudgeConfig) -> None:
        """Raises ConfigError if rapidocr cannot be imported."""
        _library()

    @staticmethod
    def check_prompt(prompt: Prompt) -> None:
        """Raises DataError if a prompt has nothing between quotes."""
        target(prompt.text)

    def __call__(self, pictures: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        check_pairs(pictures, prompts)
        targets = [target(prompt.text) for prompt in prompts]
        value = np.array([score(self.read(picture), wanted) for picture, wanted in zip(pictures, targets, strict=True)])
        return Scores(value, {"exact": (value == 1.0).astype(np.float64)})

    def read(self, picture: np.ndarray) -> str:
        """All text on a picture (H, W, 3) uint8, top to bottom and left to right, plain as targets are."""
        lines, _ = self._engine(np.ascontiguousarray(picture[:, :, ::-1]), use_cls=False)
        return _plain("".join(text for _, text, _ in lines or ()))


def target(prompt: str) -> str:
    """The string to be shown, without spaces, lower case. Raises DataError if there is none."""
    quoted = re.search('"([^"]*)"', prompt)
    wanted = _plain(quoted[1]) if quoted else ""
    if not wanted:
        raise DataError(f'prompt {prompt!r} has no text between double quotes; write it as in: a sign that says "ART"')
    return wanted


def score(read: str, wanted: str) -> float:
    """1 where `read` contains `wanted`, else one minus their distance per character wanted, 0 at least."""
    if wanted in read:
        return 1.0
    return 1 - min(levenshtein(read, wanted), len(wanted)) / len(wanted)


def levenshtein(a: str, b: str) -> int:
    """Fewest insertions, deletions and replacements of one character that turn `a` into `b`."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def _plain(text: str) -> str:
    return "".join(text.split()).lower()


def _library() -> Any:
    """rapidocr, or what to do without it: where it is installed, it may still miss a library of the system."""
    try:
        import rapidocr_onnxruntime
    except ImportError as error:
        raise ConfigError(
            f"the reward `ocr` needs rapidocr, which cannot be imported ({error}): pip install rapidocr-onnxruntime, "
            "or serve it where that works, and set judges.ocr.url"
        ) from None
    return rapidocr_onnxruntime


def _engine(threads: int) -> Any:
    """Detector and recogniser; lines go one by one, no wider than they are: quicker than padded batches."""
    rapidocr_onnxruntime = _library()
    engine = rapidocr_onnxruntime.RapidOCR(
        det_limit_side_len=LEAST_SIDE,
        det_limit_type="min",
        text_score=0.0,
        rec_img_shape=[3, LINE_HEIGHT, LINE_HEIGHT],
        rec_batch_num=1,
    )
    models = Path(rapidocr_onnxruntime.__file__).parent / "models"
    engine.text_det.infer.session = _session(models / "ch_PP-OCRv4_det_infer.onnx", threads)
    engine.text_rec.session.session = _session(models / "ch_PP-OCRv4_rec_infer.onnx", threads)
    return engine


def _session(path: Path, threads: int) -> Any:
    """A session that keeps its memory between runs, as rapidocr's own does not: a quarter less time."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
