"""Judges that are asked in words: a vision-language model behind an OpenAI-compatible endpoint (vLLM, SGLang, OpenAI).

What is asked and how the answer is read is a rubric's; this file asks it of every picture and reads what comes back.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from flowopd.errors import ConfigError, DataError
from flowopd.prompts import Prompt
from flowopd.rewards.base import JudgeConfig, Scores
from flowopd.rewards.http import Endpoint
from flowopd.rewards.pairs import check_pairs

AT_ONCE = 8
"""Questions that are under way at the same time."""

LONGEST = 2048
"""Tokens of an answer."""

WORST, BEST = 1.0, 5.0
"""The scale of every rubric."""

QUOTED = 80
"""Characters of an answer that an error shows."""


@dataclass(frozen=True)
class Rubric:
    """What a judge is asked: `question(prompt)` is the text beside the picture, `answer` finds the score in the reply.

    Of several places that `answer` finds the last one counts. `form` says in words what it looks for, `served` what to
    serve for it.
    """

    name: str
    served: str
    question: Callable[[str], str]
    answer: re.Pattern[str]
    form: str


class ChatJudge:
    """Scores pictures (B, H, W, 3) by a rubric. Details: the rubric's name (B,) in 1..5; value = score / 5.

    The endpoint is asked for its models when the judge is built, within seconds; `config.model` chooses one of several.
    Raises ConfigError if there is no url, no such endpoint or no such model; in use, DataError if pictures and prompts
    differ in number, the endpoint fails, or a reply holds no score in 1..5.
    """

    rubric: ClassVar[Rubric]

    def __init__(self, config: JudgeConfig) -> None:
        self.check(config)
        name = self.rubric.name
        self._endpoint = Endpoint(config.url or "", config.token, config.deadline, config.retries)
        self._model = chosen(served_models(self._endpoint.health("models"), name), config.model, name)

    @classmethod
    def check(cls, config: JudgeConfig) -> None:
        """Raises ConfigError if there is no url to ask."""
        if config.url is None:
            name, served = cls.rubric.name, cls.rubric.served
            raise ConfigError(
                f"{name} asks a model behind an OpenAI-compatible endpoint; serve {served} "
                f"and set judges.{name}.url, as in http://localhost:8000/v1"
            )

    def __call__(self, pictures: np.ndarray, prompts: Sequence[Prompt]) -> Scores:
        check_pairs(pictures, prompts)
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            score = np.array([*pool.map(self._rate, range(len(prompts)), pictures, prompts)], np.float64)
        finally:
            pool.shutdown(cancel_futures=True)
        return Scores(score / BEST, {self.rubric.name: score})

    def _rate(self, place: int, picture: np.ndarray, prompt: Prompt) -> float:
        """The score of one picture; `place` is its number in the batch, for errors."""
        reply = self._endpoint.post_json("chat/completions", asked(self._model, self.rubric, picture, prompt.text))
        try:
            return read_score(said(reply), self.rubric)
        except ValueError as error:
            raise DataError(f"{self.rubric.name} has no score of picture {place} ({prompt.text!r}): {error}") from None


def asked(model: str, rubric: Rubric, picture: np.ndarray, prompt: str) -> dict[str, Any]:
    """The body of a request: the picture (H, W, 3) as PNG within it, then the rubric's question; no chance in it."""
    content = [
        {"type": "image_url", "image_url": {"url": data_url(picture)}},
        {"type": "text", "text": rubric.question(prompt)},
    ]
    message = {"role": "user", "content": content}
    return {"model": model, "messages": [message], "temperature": 0, "max_tokens": LONGEST}


def data_url(picture: np.ndarray) -> str:
    """A picture (H, W, 3) uint8 as `data:image/png;base64,...`."""
    file = BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode('ascii')}"


def said(reply: Any) -> str:
    """The text of a chat completion. Raises ValueError if `reply` is none."""
    try:
        text = reply["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        raise ValueError(f"the endpoint answered {str(reply)[:QUOTED]!r}, no chat completion; is it the right url?")
    return text


def read_score(text: str, rubric: Rubric) -> float:
    """The score in 1..5 that a reply holds. Raises ValueError, quoting the reply, if it holds none."""
    found = rubric.answer.findall(text)
    shown = repr(" ".join(text.split())[:QUOTED])
    if not found:
        raise ValueError(f"the model said {shown}, without {rubric.form}; serve {rubric.served}, or one as able")
    score = float(found[-1])
    if not WORST <= score <= BEST:
        raise ValueError(f"the model said {shown}, and its score {score:g} is not in 1..5; serve {rubric.served}")
    return score


def served_models(listing: Any, judge: str) -> list[str]:
    """The names of an endpoint's models. Raises ConfigError if it lists none."""
    rows = listing.get("data") if isinstance(listing, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        rows = []
    names = [str(row["id"]) for row in rows if "id" in row]
    if not names:
        raise ConfigError(
            f"the endpoint of {judge} lists no models; give an OpenAI-compatible one as judges.{judge}.url"
        )
    return names


def chosen(served: Sequence[str], wanted: str | None, judge: str) -> str:
    """The wanted model, or the only one. Raises ConfigError if that is none of those served."""
    if wanted is None and len(served) == 1:
        return served[0]
    if wanted not in served:
        asked_for = "several models" if wanted is None else f"no model {wanted!r}"
        names = ", ".join(served[:8]) + (", ..." if len(served) > 8 else "")
        raise ConfigError(f"the endpoint of {judge} has {asked_for}; set judges.{judge}.model to one of: {names}")
    return str(wanted)
