"""Judges behind a chat endpoint: what they are asked, whose answer is whose, and how each failure is told."""

import json
from base64 import b64decode
from io import BytesIO
from threading import Event, Lock

import numpy as np
import pytest
from PIL import Image

from flowopd.errors import ConfigError, DataError
from flowopd.prompts import Prompt
from flowopd.rewards import chat, http, make_reward
from flowopd.rewards.base import JudgeConfig
from flowopd.rewards.chat import AT_ONCE, read_score
from flowopd.rewards.drawn import golden
from flowopd.rewards.golden import faults
from flowopd.rewards.qwenvl import QwenVl
from flowopd.rewards.unifiedreward import UnifiedReward

MODELS = '{"object": "list", "data": [{"id": "judge-7b", "object": "model"}]}'
FORMS = {"unifiedreward": "It fits well.\nFinal Score: {}", "qwenvl": "<Thought>ok</Thought>\n<Score>{}</Score>"}
JUDGES = {"unifiedreward": UnifiedReward, "qwenvl": QwenVl}

both = pytest.mark.parametrize("name", JUDGES)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(http, "sleep", lambda _: None)


def completion(text):
    return json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]})


def picture_of(body):
    """The picture within a request."""
    (message,) = body["messages"]
    url = message["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/png;base64,")
    return np.asarray(Image.open(BytesIO(b64decode(url.partition(",")[2]))))


def shade_of(body):
    return int(picture_of(body)[0, 0, 0])


def endpoint(serve, answer):
    """A server with one model; `answer(body, count)` gives the text of a completion, or a whole answer."""

    def respond(method, path, body, count):
        if method == "GET":
            return (200, MODELS) if path == "/v1/models" else (404, "")
        assert path == "/v1/chat/completions"
        given = answer(body, count - 1)
        return given if isinstance(given, tuple) else (200, completion(given))

    return serve(respond)


def scoring(name):
    """Answers with a score that the picture's shade tells."""
    return lambda body, _: FORMS[name].format(1 + shade_of(body) / 50)


def shades(count):
    pictures = np.stack([np.full((6, 8, 3), 10 * i, np.uint8) for i in range(count)])
    return pictures, [Prompt(f"picture {i}", "pick") for i in range(count)]


def judge(name, server, **config):
    return make_reward(name, config=JudgeConfig(url=server.url, **config))


@both
def test_scores_are_what_the_model_says(serve, name):
    scores = judge(name, endpoint(serve, scoring(name)))(*shades(5))
    assert scores.details.keys() == {name}
    assert np.allclose(scores.details[name], [1, 1.2, 1.4, 1.6, 1.8])
    assert np.allclose(scores.value, scores.details[name] / 5)


@both
def test_a_request_holds_the_picture_the_question_and_no_chance(serve, name):
    server = endpoint(serve, scoring(name))
    pictures = np.random.default_rng(0).integers(0, 150, (1, 7, 9, 3), dtype=np.uint8)
    judge(name, server)(pictures, [Prompt('a sign that says "{0}"', "pick")])
    _, (_, _, _, body) = server.requests
    text = body["messages"][0]["content"][1]["text"]
    assert np.array_equal(picture_of(body), pictures[0])
    assert body["model"] == "judge-7b" and body["temperature"] == 0 and body["max_tokens"] == 2048
    assert JUDGES[name].rubric.question('a sign that says "{0}"') == text


def test_unifiedreward_is_asked_about_the_prompt_and_qwenvl_is_not():
    asked = UnifiedReward.rubric.question('a "K7" {sign}')
    assert asked.endswith('Text Caption: [a "K7" {sign}]') and "'Final Score:'" in asked and "1 to 5" in asked
    assert QwenVl.rubric.question("a sign") == QwenVl.rubric.question("a ring")
    assert "<Score>" in QwenVl.rubric.question("") and "1 to 5" in QwenVl.rubric.question("")


@both
def test_answers_belong_to_their_pictures_in_whatever_order_they_come(serve, name):
    later = {i: Event() for i in range(AT_ONCE + 1)}
    later[AT_ONCE].set()
    finished = []

    def answer(body, _):
        place = shade_of(body) // 10
        assert later[place + 1].wait(10)
        finished.append(place)
        later[place].set()
        return scoring(name)(body, 0)

    scores = judge(name, endpoint(serve, answer))(*shades(AT_ONCE))
    assert finished == sorted(finished, reverse=True)
    assert np.allclose(scores.details[name], 1 + np.arange(AT_ONCE) / 5)


def test_so_many_are_asked_at_once_and_no_more(serve):
    inside, peak, full, lock = set(), [], Event(), Lock()

    def answer(body, count):
        with lock:
            inside.add(count)
            peak.append(len(inside))
            if len(inside) == AT_ONCE:
                full.set()
        assert full.wait(10)
        serve.stopped.wait(0.05)
        with lock:
            inside.remove(count)
        return scoring("qwenvl")(body, count)

    assert len(judge("qwenvl", endpoint(serve, answer))(*shades(2 * AT_ONCE)).value) == 2 * AT_ONCE
    assert max(peak) == AT_ONCE


@both
def test_a_failure_that_passes_is_not_noticed(serve, name):
    failed = set()

    def answer(body, _):
        first = shade_of(body) not in failed
        failed.add(shade_of(body))
        return (500, "out of memory") if first else scoring(name)(body, 0)

    server = endpoint(serve, answer)
    assert np.allclose(judge(name, server)(*shades(3)).details[name], [1, 1.2, 1.4])
    assert len(server.requests) == 7


@both
@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((200, "<html>Welcome</html>"), "chat/completions answered HTML and no JSON .*<html>Welcome"),
        ((200, '{"error": "no"}'), r"picture 1 \('picture 1'\): the endpoint answered .*no chat completion"),
        ((200, '{"choices": []}'), "picture 1 .*no chat completion"),
        ((200, completion(None)), "picture 1 .*no chat completion"),
        ((400, '{"error": "no such model"}'), "chat/completions refuses the request with status 400 .*no such model"),
        ("I cannot\nrate " + "x" * 90, r"picture 1 \('picture 1'\): the model said 'I cannot rate x{66}', without '"),
    ],
    ids=["HTML", "an error object", "no choice", "no text", "refused", "another form"],
)
def test_an_answer_that_is_none_is_told(serve, name, answer, told):
    server = endpoint(serve, lambda body, _: answer if shade_of(body) == 10 else scoring(name)(body, 0))
    with pytest.raises((DataError, ConfigError), match=told) as error:
        judge(name, server, retries=0)(*shades(3))
    assert "\n" not in str(error.value)


@both
@pytest.mark.parametrize("score", ["7", "0", "-3", "5.5"])
def test_a_score_off_the_scale_is_told(serve, name, score):
    server = endpoint(serve, lambda *_: FORMS[name].format(score))
    with pytest.raises(DataError, match=rf"{name} has no score of picture 0 .*score {score} is not in 1\.\.5"):
        judge(name, server)(*shades(1))


@pytest.mark.parametrize(
    ("name", "reply", "score"),
    [
        ("unifiedreward", "cat (object): 1\nFinal Score: 3.8", 3.8),
        ("unifiedreward", "**Final Score:** 4/5", 4),
        ("unifiedreward", "Final Score: **2**.", 2),
        ("unifiedreward", "'Final Score: 1' would be harsh.\nfinal score: 5", 5),
        ("qwenvl", "<Thought>sharp, 3 or 4</Thought>\n<Score>4</Score>", 4),
        ("qwenvl", "<score> 3.5 </score>", 3.5),
        ("qwenvl", "<Score>1</Score> for the light; in all <Score>2</Score>", 2),
    ],
)
def test_scores_are_found_where_models_put_them(name, reply, score):
    assert read_score(reply, JUDGES[name].rubric) == score


@pytest.mark.parametrize(
    ("name", "reply"),
    [("unifiedreward", "Score: 4"), ("unifiedreward", "Final Score: four"), ("qwenvl", "4"), ("qwenvl", "<Score>4")],
)
def test_a_number_elsewhere_is_no_score(name, reply):
    with pytest.raises(ValueError, match="without"):
        read_score(reply, JUDGES[name].rubric)


def test_an_endpoint_that_hangs_is_given_up(serve):
    server = endpoint(serve, lambda *_: (serve.stopped.wait(30), "")[1])
    with pytest.raises(DataError, match=rf"{server.url}/chat/completions gave no answer within 0\.2 s"):
        judge("qwenvl", server, deadline=0.2, retries=0)(*shades(2))


@both
def test_a_url_is_needed(name):
    with pytest.raises(ConfigError, match=rf"set judges\.{name}\.url, as in http://localhost:8000/v1") as error:
        make_reward(name)
    assert JUDGES[name].rubric.served in str(error.value)


@both
def test_a_dead_endpoint_is_told_when_the_judge_is_built(dead_url, name):
    with pytest.raises(ConfigError, match=f"no server at {dead_url}/models"):
        make_reward(name, config=JudgeConfig(url=dead_url))


def test_an_endpoint_that_does_not_answer_is_told_when_the_judge_is_built(serve, monkeypatch):
    monkeypatch.setattr(http, "HEALTH", 0.2)
    server = serve(lambda *_: (serve.stopped.wait(30), (200, MODELS))[1])
    with pytest.raises(DataError, match=rf"{server.url}/models gave no answer within 0\.2 s"):
        judge("qwenvl", server, deadline=600)


def test_the_token_goes_with_every_request_and_is_not_shown(serve, monkeypatch):
    monkeypatch.setenv("JUDGE_TOKEN", "s3cret")
    server = endpoint(serve, scoring("qwenvl"))
    judge("qwenvl", server, token="JUDGE_TOKEN")(*shades(2))
    assert [headers["Authorization"] for _, _, headers, _ in server.requests] == ["Bearer s3cret"] * 3
    leaking = endpoint(serve, lambda *_: (500, "bad key s3cret"))
    with pytest.raises(DataError) as error:
        judge("qwenvl", leaking, token="JUDGE_TOKEN", retries=0)(*shades(1))
    assert "s3cret" not in str(error.value)


def test_a_missing_token_is_told_before_anything_is_sent(serve, monkeypatch):
    monkeypatch.delenv("JUDGE_TOKEN", raising=False)
    server = endpoint(serve, scoring("qwenvl"))
    with pytest.raises(ConfigError, match="JUDGE_TOKEN"):
        judge("qwenvl", server, token="JUDGE_TOKEN")
    assert server.requests == []


SEVERAL = json.dumps({"data": [{"id": "a-7b"}, {"id": "b-72b"}]})


def test_one_of_several_models_is_chosen_by_name(serve):
    server = serve(lambda m, *_: (200, SEVERAL) if m == "GET" else (200, completion("<Score>3</Score>")))
    judge("qwenvl", server, model="b-72b")(*shades(1))
    assert server.requests[1][3]["model"] == "b-72b"


@pytest.mark.parametrize(("model", "told"), [(None, "several models"), ("c-3b", "no model 'c-3b'")])
def test_a_model_that_is_not_served_is_told(serve, model, told):
    server = serve(lambda *_: (200, SEVERAL))
    with pytest.raises(ConfigError, match=rf"{told}; set judges\.qwenvl\.model to one of: a-7b, b-72b"):
        judge("qwenvl", server, model=model)


@pytest.mark.parametrize("listing", ["[]", "{}", '{"data": []}', '{"data": "x"}', '{"data": ["x"]}'])
def test_an_endpoint_without_models_is_told(serve, listing):
    server = serve(lambda *_: (200, listing))
    with pytest.raises(ConfigError, match=r"lists no models; give .* judges\.unifiedreward\.url"):
        judge("unifiedreward", server)


@both
@pytest.mark.parametrize("marks", [("1",), ("2", "4")])
def test_a_sound_judge_of_few_marks_is_not_taken_for_a_broken_one(serve, name, marks):
    server = endpoint(serve, lambda body, _: FORMS[name].format(marks[shade_of(body) % len(marks)]))
    assert not [fault for fault in faults(judge(name, server), golden(name)) if fault.certain]


def test_numbers_have_to_match(serve):
    pictures, prompts = shades(3)
    with pytest.raises(DataError, match="3 pictures came with 2 prompts"):
        judge("qwenvl", endpoint(serve, scoring("qwenvl")))(pictures, prompts[:2])


def test_after_a_failure_the_rest_is_not_asked(serve, monkeypatch):
    monkeypatch.setattr(chat, "AT_ONCE", 1)
    server = endpoint(serve, lambda *_: "no idea")
    with pytest.raises(DataError, match="picture 0"):
        judge("qwenvl", server)(*shades(25))
    assert len(server.requests) < 10
