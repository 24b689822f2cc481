"""Mutated replies of reward servers and chat endpoints, and mutated requests: a verdict in range, or a refusal.

Servers that drip, drown or drop their clients are met in tests/judges/test_remote.py and test_http.py.
"""

import json
from base64 import b64encode
from io import BytesIO

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from flowopd.prompts import Prompt
from flowopd.rewards import wire
from flowopd.rewards.base import JudgeConfig
from flowopd.rewards.http import Endpoint
from flowopd.rewards.qwenvl import QwenVl
from flowopd.rewards.remote import Remote

HEALTH = {"reward": "fake", "version": "1", "ready": True, "limits": {"bytes": 10**6, "pictures": 8, "pixels": 10**6}}
VERDICT = {"value": [0.5, 1.0], "details": {"strict": [0.0, 1.0]}}
MODELS = {"data": [{"id": "judge"}]}
CHAT = {"choices": [{"message": {"content": "Score: 4"}}]}
PICTURES = np.zeros((2, 4, 4, 3), np.uint8)
PROMPTS = [Prompt("a ring", "l"), Prompt("two rings", "l")]

PIECES = [
    b"null",
    b"NaN",
    b"1e999",
    b"-1",
    b"9" * 400,
    b"[" * 5000,
    b"{",
    b'"',
    b"<html>",
    b"\xff",
    b"\0",
    b"",
    b"true",
]
HEADERS = [{}, {"Retry-After": "9" * 400}, {"Retry-After": "x"}]
STATUSES = [200, 200, 200, 200, 204, 301, 400, 401, 413, 422, 429, 500, 503, 999]


@st.composite
def damaged(draw, tree):
    """The JSON of a tree with none to two changes."""
    content = json.dumps(tree).encode()
    for _ in range(draw(st.integers(0, 2))):
        i = draw(st.integers(0, len(content)))
        j = draw(st.integers(i, min(len(content), i + 12)))
        content = content[:i] + draw(st.sampled_from(PIECES) | st.binary(max_size=4)) + content[j:]
    return content


def answers(good):
    """Answers as status, headers and content."""
    return st.tuples(st.sampled_from(STATUSES), st.sampled_from(HEADERS), damaged(good))


@pytest.fixture
def said(monkeypatch):
    """What every endpoint is answered, by the end of the path that is asked for."""
    replies = {}

    def send(self, method, path, body, deadline):
        return next(reply for end, reply in replies.items() if path.endswith(end))

    monkeypatch.setattr(Endpoint, "_send", send)
    return replies


CONFIG = JudgeConfig(url="http://localhost:1", retries=0)


@given(health=answers(HEALTH), verdict=answers(VERDICT))
@example(health=(200, {}, json.dumps(HEALTH).encode()), verdict=(200, {}, b'{"value": [true, 1]}'))
@example(health=(200, {}, b"[" * 100_000), verdict=(200, {}, b""))
def test_a_server_that_says_anything_is_judged_by_what_it_says(lawful, said, health, verdict):
    said |= {"health": health, "score": verdict}
    scores = lawful(lambda: Remote("fake", CONFIG)(PICTURES, PROMPTS))
    if scores is not None:
        assert health[0] == verdict[0] == 200
        assert scores.value.shape == (2,) and ((scores.value >= 0) & (scores.value <= 1)).all()
        assert all(numbers.shape == (2,) and np.isfinite(numbers).all() for numbers in scores.details.values())
        assert json.loads(verdict[2])["value"] == scores.value.tolist()


@given(models=answers(MODELS), chat=answers(CHAT))
def test_an_endpoint_that_says_anything_is_judged_by_what_it_says(lawful, said, models, chat):
    said |= {"models": models, "completions": chat}
    scores = lawful(lambda: QwenVl(CONFIG)(PICTURES, PROMPTS))
    if scores is not None:
        assert models[0] == chat[0] == 200
        assert ((scores.value >= 0.2) & (scores.value <= 1)).all()


def png():
    file = BytesIO()
    Image.fromarray(PICTURES[0]).save(file, "PNG")
    return file.getvalue()


@st.composite
def pictures(draw, content):
    """A PNG with none to two changes, in base64."""
    for _ in range(draw(st.integers(0, 2))):
        i = draw(st.integers(0, len(content)))
        j = draw(st.integers(i, min(len(content), i + 8)))
        content = content[:i] + draw(st.binary(max_size=8)) + content[j:]
    return b64encode(content).decode()


@given(data=st.data())
def test_a_request_of_anything_is_a_batch_or_refused(lawful, data):
    pair = [data.draw(pictures(png())), data.draw(pictures(png()))]
    good = {"prompts": [{"text": "a", "label": "l"}, {"text": "b"}], "pictures": pair}
    body = data.draw(damaged(good)) if data.draw(st.booleans()) else json.dumps(good).encode()
    batch = lawful(wire.read_batch, body, wire.Limits(pixels=1000))
    if batch is not None:
        decoded, prompts = batch
        assert decoded.dtype == np.uint8 and decoded.ndim == 4 and decoded.shape[-1] == 3
        assert len(decoded) == len(prompts) and decoded[..., 0].size <= 1000
