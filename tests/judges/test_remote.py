"""A reward behind a server says what it says here, of each picture for its prompt; all else is told as what it is."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import zlib
from base64 import b64encode
from io import BytesIO
from threading import Event, Thread

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

from flowopd.errors import ConfigError, DataError
from flowopd.hub import located
from flowopd.prompts import Prompt, read_prompts
from flowopd.rewards import Scores, http, make_reward, server, wire
from flowopd.rewards.base import JudgeConfig
from flowopd.rewards.registry import check_reward
from flowopd.rewards.remote import Item, Remote, packed

COUNT = 7
NOISE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


class Fake:
    """A reward whose numbers tell pictures, texts, labels and metadata apart; `calls` has what it was given."""

    def __init__(self):
        self.calls = []

    def __call__(self, pictures, prompts):
        self.calls.append((pictures, list(prompts)))
        light = pictures.reshape(len(pictures), -1).mean(1) / 255
        words = np.array([len(p.text) + len(p.label) + p.metadata["count"] for p in prompts], np.float64)
        return Scores(light / np.sqrt(words), {"third": -light / 3, "tiny": words * 5e-324, "count": words})


class Held:
    """A reward that holds its first batch until it is let go."""

    def __init__(self):
        self.begun, self.free, self.calls = Event(), Event(), 0

    def __call__(self, pictures, prompts):
        self.calls += 1
        self.begun.set()
        assert self.free.wait(60)
        return Scores(np.full(len(prompts), 0.5))


def answering(scores):
    return lambda pictures, prompts: scores


def failing(error):
    def reward(pictures, prompts):
        raise error

    return reward


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(http, "PAUSE", 0.01)


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 6, 8, 3), np.uint8)


@pytest.fixture
def prompts():
    words = ["a ring", 'a sign "Ä7"', "two\nbolts", "日本", "a\u2028b", "\\", "x"]
    return [Prompt(text, f"label {i}", {"count": i, "include": [{"at": [0.1, None]}]}) for i, text in enumerate(words)]


@pytest.fixture
def held():
    reward = Held()
    yield reward
    reward.free.set()


def judge(url, **options):
    return JudgeConfig(url=url, **options)


def png(picture=None, mode="RGB", size=(8, 6), kind="PNG"):
    stream = BytesIO()
    (Image.new(mode, size) if picture is None else Image.fromarray(picture)).save(stream, kind)
    return stream.getvalue()


def body(*files, **changes):
    sent = [b64encode(file).decode() for file in files]
    return {"prompts": [{"text": "x", "metadata": {"count": 1}} for _ in files], "pictures": sent, **changes}


def post(url, tree, **options):
    return httpx.post(f"{url}/score", json=tree, trust_env=False, timeout=60, **options)


PART = 1000


def flooded(app):
    """What an application answers to a very long request, and how many parts of it were read."""
    read, answered = [], []

    async def receive():
        read.append(1)
        return {"type": "http.request", "body": b" " * PART, "more_body": len(read) < 1000}

    async def send(message):
        answered.append(message.get("status"))

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/score", "headers": headers, "query_string": b""}
    asyncio.run(app(scope, receive, send))
    return answered[0], len(read)


def same(scores, others):
    assert np.array_equal(scores.value, others.value) and scores.value.dtype == np.float64
    assert scores.details.keys() == others.details.keys()
    assert all(np.array_equal(scores.details[name], numbers) for name, numbers in others.details.items())


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [
        ({}, [7]),
        ({"pictures": 3}, [3, 3, 1]),
        ({"pictures": 1}, [1] * 7),
        ({"pixels": 2 * 48 + 47}, [2, 2, 2, 1]),
        ({"bytes": 1300}, None),
    ],
)
def test_a_server_scores_as_its_reward_does_bit_for_bit(reward_server, pictures, prompts, limits, sizes):
    there, here = Fake(), Fake()
    served = reward_server(there, limits=wire.Limits(**limits))
    same(Remote("fake", judge(served.url))(pictures, prompts), here(pictures, prompts))
    given = [len(asked) for _, asked in there.calls]
    assert given == sizes if sizes else len(given) > 1 and sum(given) == COUNT
    assert np.array_equal(np.concatenate([part for part, _ in there.calls]), pictures)
    received = [prompt for _, asked in there.calls for prompt in asked]
    assert received == prompts and [p.metadata for p in received] == [p.metadata for p in prompts]


def test_every_picture_is_scored_beside_its_own_prompt(reward_server, pictures, prompts):
    remote = Remote("fake", judge(reward_server(Fake(), limits=wire.Limits(pictures=2)).url))
    forth, back = remote(pictures, prompts), remote(pictures[::-1].copy(), prompts[::-1])
    assert len(set(forth.value)) == COUNT and np.array_equal(forth.value, back.value[::-1])


def test_pictures_without_prompts_are_not_sent(reward_server, pictures, prompts):
    fake = Fake()
    remote = Remote("fake", judge(reward_server(fake).url))
    with pytest.raises(DataError, match="7 pictures came with 6 prompts"):
        remote(pictures, prompts[:-1])
    assert remote(pictures[:0], []).value.shape == (0,) and not fake.calls


@pytest.mark.parametrize(("size", "count", "parts"), [(9, 9, [3, 1]), (99, 2, [2, 2]), (2, 9, [1, 1, 1, 1])])
def test_requests_are_filled_in_order(size, count, parts):
    items = [Item({"text": str(i)}, "", 3 - len(',"",')) for i in range(4)]
    made = list(packed(items, size, count))
    assert [len(part) for part in made] == parts and [item for part in made for item in part] == items


def test_the_size_of_an_item_is_what_it_adds_to_a_request(pictures, prompts, reward_server):
    remote = Remote("fake", judge(reward_server(Fake()).url))
    items = [remote._item(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]
    batch = {"prompts": [item.prompt for item in items], "pictures": [item.picture for item in items]}
    sent = len(httpx.Request("POST", "http://x", json=batch).content)
    assert sent <= sum(item.size for item in items) + 28 <= sent + 2


@pytest.mark.parametrize("limits", [{"bytes": 200}, {"pixels": 47}])
def test_a_picture_larger_than_a_request_is_told(reward_server, pictures, prompts, limits):
    url = reward_server(Fake(), limits=wire.Limits(**limits)).url
    with pytest.raises(DataError, match=f"{url}/score takes no picture of 8 x 6 pixels .* larger --max-mib"):
        Remote("fake", judge(url))(pictures, prompts)


@pytest.mark.parametrize("metadata", [{"x": {1, 2}}, {"x": float("nan")}, {"x": "\ud800"}])
def test_metadata_that_is_no_json_is_told(reward_server, pictures, metadata):
    remote = Remote("fake", judge(reward_server(Fake()).url))
    with pytest.raises(DataError, match=r"prompt 'a ring' cannot be sent as JSON .* mend its metadata"):
        remote(pictures[:1], [Prompt("a ring", "", metadata)])


# Who is there


def test_a_dead_port_is_told_with_the_url(dead_url):
    with pytest.raises(ConfigError, match=f"judges.fake: no server at {dead_url}/health .Connection refused.; start"):
        Remote("fake", judge(dead_url))


HEALTHY = {"reward": "fake", "version": "1", "ready": True}


@pytest.mark.parametrize(
    ("status", "text", "told"),
    [
        (200, "<html><body>It works!</body></html>", "answered HTML and no JSON .*It works.*is it the right url"),
        (200, '{"models": []}', "no reward server .reward: Field required.*; mend its url"),
        (200, "[1]", "is no reward server"),
        (200, json.dumps({**HEALTHY, "ready": "yes"}), "is no reward server .ready"),
        (200, json.dumps({**HEALTHY, "limits": {"bytes": 0}}), "is no reward server .limits.bytes"),
        (200, json.dumps({**HEALTHY, "reward": "ocr"}), "serves 'ocr'; start one for 'fake', or mend its url"),
        (200, json.dumps({**HEALTHY, "ready": False}), "is stuck in an earlier request; start it again"),
        (404, "Not Found", "status 404 .*mend the url"),
        (307, "", "status 307"),
        (503, "starting", "status 503"),
        (401, "", "refuses access with status 401; name the environment variable"),
    ],
)
def test_another_service_is_told_with_the_url(serve, status, text, told):
    there = serve(lambda *_: (status, text))
    with pytest.raises(ConfigError, match=told) as error:
        Remote("fake", judge(there.url))
    said = str(error.value)
    assert said.startswith("judges.fake: ") and f"{there.url}/health" in said and "\n" not in said
    assert len(there.requests) == 1


def test_a_server_that_does_not_say_hello_is_given_up_in_seconds(raw_server, monkeypatch):
    assert http.HEALTH == 5
    monkeypatch.setattr(http, "HEALTH", 0.2)
    url = raw_server(b"", b"HTTP/1.1 200 OK\r\nX: ")
    with pytest.raises(ConfigError, match=f"judges.fake: {url}/health gave no answer within 0.2 s"):
        Remote("fake", judge(url, deadline=600))


def test_a_server_of_somebody_else_needs_to_say_little(serve):
    def answer(method, path, sent, _count):
        if method == "GET":
            return 200, json.dumps({**HEALTHY, "reward": "theirs", "more": 1})
        return 200, json.dumps({"value": [0.25] * len(sent["pictures"])})

    url = serve(answer).url
    check_reward("theirs", judge(url))
    scores = make_reward("theirs", "cpu", judge(url))(np.zeros((3, 4, 4, 3), np.uint8), [Prompt("x", "")] * 3)
    assert scores.value.tolist() == [0.25] * 3 and not scores.details


@pytest.mark.parametrize(("key", "value"), [("model", "x"), ("trust_remote_code", True)])
def test_settings_of_a_reward_here_are_refused_beside_a_url(key, value):
    told = f"fake takes no '{key}' beside its url, got {value!r}; leave .* start its server with --set {key}={value}"
    with pytest.raises(ConfigError, match=told):
        Remote("fake", judge("http://localhost:1", **{key: value}))


def test_a_url_is_needed():
    with pytest.raises(ConfigError, match=r"judges.fake has no url; add the one that `flowopd serve-reward fake`"):
        Remote("fake", JudgeConfig())
    with pytest.raises(ConfigError, match="no reward 'theirs'"):
        check_reward("theirs", JudgeConfig())


def test_the_url_of_a_chat_judge_is_its_own_affair(dead_url):
    with pytest.raises(ConfigError, match=f"no server at {dead_url}/models"):
        make_reward("qwenvl", "cpu", judge(dead_url, model="x"))


def test_a_device_that_is_not_here_is_told():
    with pytest.raises(ConfigError, match=r"no device 'cuda:77' here .*; take cpu, cuda or cuda:N"):
        make_reward("mini_quality", "cuda:77")


# Tokens


def test_a_token_opens_the_server(reward_server, pictures, prompts, monkeypatch, capfd):
    monkeypatch.setenv("GOOD", "s3cret")
    monkeypatch.setenv("BAD", "s3cret2")
    url = reward_server(Fake(), token="s3cret").url
    same(Remote("fake", judge(url, token="GOOD"))(pictures, prompts), Fake()(pictures, prompts))
    for wrong in (judge(url), judge(url, token="BAD")):
        with pytest.raises(ConfigError, match=f"{url}/health refuses access with status 401") as told:
            Remote("fake", wrong)
        assert "s3cret" not in str(told.value)
    assert post(url, body(png())).status_code == 401
    printed = capfd.readouterr()
    assert "s3cret" not in printed.out + printed.err


def test_a_request_without_the_token_is_not_read():
    assert flooded(server.create_app("fake", Fake(), wire.Limits(), token="x")) == (401, 0)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org"])
def test_a_server_for_others_wants_a_token_before_anything_is_built(host):
    with pytest.raises(ConfigError, match=f"host {host} can be reached from .*--token-env .*--token-file"):
        server.serve("fake", lambda: pytest.fail("built"), server.ServerConfig(host=host))


def test_a_token_that_is_not_set_is_told_before_anything_is_built(monkeypatch):
    monkeypatch.delenv("A_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=r"variable A_TOKEN, .* is not set"):
        server.serve("fake", lambda: pytest.fail("built"), server.ServerConfig(token_env="A_TOKEN"))


def test_a_token_may_lie_in_a_file(monkeypatch, tmp_path):
    class Bound(Exception):
        pass

    def bound(config):
        raise Bound

    monkeypatch.setattr(server, "_bound", bound)
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    config = server.ServerConfig(host="0.0.0.0", token_file=file)
    assert server._token(config) == "s3cret"
    with pytest.raises(Bound):
        server.serve("fake", lambda: pytest.fail("built"), config)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read .No such file"),
        (b"", "holds no token"),
        (b"s3cr\xff", "not UTF-8"),
        (b"s3 \n cr", "holds"),
    ],
)
def test_a_file_that_holds_no_token_is_told_and_not_shown(tmp_path, content, told):
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"the token file {file} .*{told}") as error:
        server.serve("fake", lambda: pytest.fail("built"), server.ServerConfig(token_file=file))
    assert "s3" not in str(error.value)


def test_one_token_is_enough(tmp_path):
    with pytest.raises(ConfigError, match="either in a variable or in a file; give --token-env or --token-file"):
        server.serve("fake", lambda: pytest.fail("built"), server.ServerConfig(token_env="A", token_file=tmp_path))


def test_a_port_that_is_taken_is_told_before_anything_is_built():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is not to be had .*; choose another --port"):
            server.serve("fake", lambda: pytest.fail("built"), server.ServerConfig(port=port))


def test_fastapi_has_to_be_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "flowopd.rewards.server")
    with pytest.raises(ConfigError, match=r"needs fastapi and uvicorn.*pip install 'flowopd\[serve\]'"):
        import flowopd.rewards.server  # noqa: F401


# What a server refuses


def test_too_large_a_request_is_refused_before_it_is_there():
    app = server.create_app("fake", Fake(), wire.Limits(bytes=10 * PART))
    assert flooded(app) == (413, 11)


def test_too_large_a_request_is_told_what_is_allowed(reward_server):
    answer = post(reward_server(Fake(), limits=wire.Limits(bytes=100)).url, body(png()))
    assert answer.status_code == 413 and "more than 100 bytes; send fewer pictures" in answer.json()["detail"]


def test_a_request_that_says_it_is_too_large_is_refused_at_once(reward_server):
    served = reward_server(Fake())
    with socket.create_connection(("127.0.0.1", served.port)) as line:
        line.sendall(
            b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n"
        )
        assert b" 413 " in line.recv(1 << 16)


def bomb(width, height):
    """A small PNG that says it has that many pixels."""
    file = png()
    head = file[12:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + file[24:29]
    return file[:12] + head + zlib.crc32(head).to_bytes(4, "big") + file[33:]


REFUSED = {
    "no picture": (body(), "0 pictures came in one request; send 1 to 256"),
    "too many pictures": (body(*[png()] * 257), "257 pictures came in one request; send 1 to 256"),
    "more pictures than prompts": (body(png(), png(), prompts=[{"text": "x"}]), "2 pictures came with 1 prompts"),
    "no base64": (body(pictures=["@@"], prompts=[{"text": "x"}]), "picture 0 is no base64"),
    "letters beyond base64": (body(pictures=["ä"], prompts=[{"text": "x"}]), "picture 0 is no base64"),
    "a JPEG": (body(png(), png(kind="JPEG")), "picture 1 is no PNG; send RGB"),
    "a pickle": (body(b"\x80\x04N."), "picture 0 is no PNG"),
    "a PNG with alpha": (body(png(mode="RGBA")), "picture 0 is a PNG of mode RGBA; send RGB"),
    "a PNG with a palette": (body(png(mode="P")), "picture 0 is a PNG of mode P; send RGB"),
    "a truncated PNG": (
        body(png(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8))[:-60]),
        "picture 0 is a damaged PNG",
    ),
    "two sizes": (body(png(), png(size=(8, 7))), "pictures of (8, 6) and of (8, 7) pixels"),
    "a bomb": (body(bomb(9000, 9000)), "1 pictures of 9000 x 9000 pixels came in one request, more than 67108864"),
    "a great bomb": (body(bomb(60000, 60000)), "picture 0 has more pixels than any picture"),
    "many small bombs": (body(*[bomb(8000, 8000)] * 2), "2 pictures of 8000 x 8000 pixels"),
    "an unknown key": (body(png(), pickle="x"), "pickle: Extra inputs are not permitted"),
    "a text that is none": (body(png(), prompts=[{"text": 1}]), "prompts.0.text must be a text"),
    "a text without end": (
        body(png(), prompts=[{"text": "x" * 30000}]),
        "prompts.0.text must be 20000 characters long at most",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_batch_is_refused_and_never_decoded(reward_server, monkeypatch, case):
    tree, told = REFUSED[case]
    fake = Fake()
    if "damaged" not in told:
        monkeypatch.setattr(wire, "_pixels", lambda *_: pytest.fail("decoded"))
    answer = post(reward_server(fake).url, tree)
    assert answer.status_code == 422 and told in answer.json()["detail"] and "\n" not in answer.json()["detail"]
    assert not fake.calls


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"prompts": [], "pictures": [' + "9" * 5000 + "]}", "\xff"])
def test_what_is_no_json_is_refused(reward_server, text):
    headers = {"Content-Type": "application/json"}
    url = reward_server(Fake()).url
    answer = httpx.post(f"{url}/score", content=text.encode("latin-1"), headers=headers, trust_env=False)
    assert answer.status_code == 422 and answer.json()["detail"].startswith("this is no batch to score: ")


def test_what_does_not_call_itself_json_is_refused(reward_server):
    answer = httpx.post(f"{reward_server(Fake()).url}/score", content=b"{}", trust_env=False)
    assert answer.status_code == 415 and "Content-Type: application/json" in answer.json()["detail"]


def test_a_request_that_never_ends_is_given_up(reward_server):
    served = reward_server(Fake(), deadline=0.2)
    with socket.create_connection(("127.0.0.1", served.port)) as line:
        line.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
        assert b" 408 " in line.recv(1 << 16)


# What a reward does


def test_what_a_reward_says_of_its_data_is_passed_on(reward_server, pictures, prompts):
    served = reward_server(failing(DataError("prompt 'x' has no text between double quotes; write it")))
    with pytest.raises(DataError, match=f"{served.url}/score .*422 .prompt 'x' has no text between double quotes; wri"):
        Remote("fake", judge(served.url))(pictures, prompts)


def test_a_failure_is_told_without_its_traceback_which_the_server_logs(reward_server, pictures, prompts, capfd):
    url = reward_server(failing(RuntimeError("out of\nmemory"))).url
    answer = post(url, body(png()))
    assert (answer.status_code, answer.json()) == (500, {"detail": "RuntimeError: out of memory"})
    with pytest.raises(DataError, match=r"failed with status 500 .RuntimeError: out of memory.; look at the server's"):
        Remote("fake", judge(url))(pictures, prompts)
    assert "test_remote.py" not in answer.text and "test_remote.py" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        (Scores(np.array([np.nan])), "value.0 must be a finite number, got 'nan'"),
        (Scores(np.array([1.5])), "value.0 must be at most 1, got '1.5'"),
        (Scores(np.array([0.5, 0.5])), "value has 2 numbers for 1 pictures"),
        (Scores(np.array([[0.5]])), "value.0 must be a number"),
        (Scores(np.array([0.5]), {"x": np.array([])}), "x has 0 numbers for 1 pictures"),
        (Scores(np.array([0.5]), {"x": np.array([np.inf])}), "details.x.0 must be a finite number"),
    ],
)
def test_a_server_does_not_pass_on_scores_that_are_none(reward_server, scores, told):
    answer = post(reward_server(answering(scores)).url, body(png()))
    assert answer.status_code == 500
    assert answer.json()["detail"].startswith(f"NumericsError: 'fake' gave no scores of 1 pictures: {told}")


def test_zeros_are_scores(reward_server, pictures, prompts):
    remote = Remote("fake", judge(reward_server(answering(Scores(np.zeros(COUNT)))).url))
    assert remote(pictures, prompts).value.tolist() == [0.0] * COUNT


def test_a_reward_that_hangs_is_told_and_the_server_is_ready_again_when_it_ends(reward_server, held, pictures, prompts):
    served = reward_server(held, deadline=0.3)
    remote = Remote("fake", judge(served.url, retries=1))
    with pytest.raises(DataError, match=r"status 504 .'fake' did not score them within 0\.3 s; send fewer"):
        remote(pictures, prompts)
    with pytest.raises(DataError, match=r"status 503 .'fake' is busy; try again"):
        remote(pictures, prompts)
    with pytest.raises(ConfigError, match=f"{served.url}/health is stuck in an earlier request; start it again"):
        Remote("fake", judge(served.url))
    assert held.calls == 1
    held.free.set()
    while not httpx.get(f"{served.url}/health", trust_env=False).json()["ready"]:
        pass
    assert remote(pictures, prompts).value.tolist() == [0.5] * COUNT


def test_more_requests_than_may_wait_are_told_to_come_back(reward_server, held, monkeypatch):
    monkeypatch.setattr(server, "WAITING", 1)
    url, first = reward_server(held).url, []
    sending = Thread(target=lambda: first.append(post(url, body(png()))))
    sending.start()
    assert held.begun.wait(60)
    second = post(url, body(png()))
    assert second.status_code == 503 and "busy" in second.json()["detail"] and second.headers["Retry-After"] == "1"
    assert httpx.get(f"{url}/health", trust_env=False).json()["ready"]
    held.free.set()
    sending.join()
    assert first[0].json() == {"value": [0.5], "details": {}} and held.calls == 1


def test_a_request_that_waited_too_long_is_not_scored_later(reward_server, held):
    url, first = reward_server(held, deadline=0.5).url, []
    sending = Thread(target=lambda: first.append(post(url, body(png()))))
    sending.start()
    assert held.begun.wait(60)
    second = post(url, body(png()))
    assert second.status_code == 503 and "behind others" in second.json()["detail"]
    held.free.set()
    sending.join()
    assert first[0].status_code == 504
    while post(url, body(png())).status_code == 503:
        pass
    assert held.calls == 2


def test_requests_are_scored_one_at_a_time(reward_server):
    inside, most = [], []

    def reward(pictures, prompts):
        inside.append(1)
        most.append(len(inside))
        Event().wait(0.01)
        inside.pop()
        return Scores(np.zeros(1))

    url = reward_server(reward).url
    senders = [Thread(target=post, args=(url, body(png()))) for _ in range(6)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert most == [1] * 6


# What a client refuses


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("<html>busy</html>", "answered HTML and no JSON .'<html>busy</html>'"),
        ("[]", "no scores of 7 pictures: the whole must be"),
        ('{"value": null}', "no scores of 7 pictures: value must be a list"),
        (json.dumps({"value": [0.5] * 6}), "no scores of 7 pictures: value has 6 numbers for 7 pictures"),
        (json.dumps({"value": [0.5] * 8}), "value has 8 numbers for 7 pictures"),
        (json.dumps({"value": [0.5] * 7, "details": {"x": [1]}}), "x has 1 numbers for 7 pictures"),
        (json.dumps({"value": [0.5] * 6 + [float("nan")]}), "value.6 must be a finite number, got 'nan'"),
        (json.dumps({"value": [0.5] * 6 + [float("inf")]}), "value.6 must be"),
        (json.dumps({"value": [0.5] * 6 + [1.1]}), "value.6 must be at most 1, got '1.1'"),
        (json.dumps({"value": [0.5] * 6 + [-0.1]}), "value.6 must be at least 0"),
        (json.dumps({"value": [0.5] * 6 + ["1"]}), "value.6 must be a number, got '1'"),
        (json.dumps({"value": [0.5] * 6 + [True]}), "value.6 must be a number, got 'True'"),
        (json.dumps({"value": [0.5] * 7, "details": {"x": [float("nan")] * 7}}), "details.x.0 must be a fin"),
        (json.dumps({"value": [0.5] * 7, "trace": "x"}), "trace: Extra inputs"),
        ("[" * 100_000, "answered no JSON"),
    ],
)
def test_an_answer_that_is_no_verdict_is_told_with_the_url(serve, pictures, prompts, answer, told):
    there = serve(lambda method, *_: (200, json.dumps(HEALTHY) if method == "GET" else answer))
    with pytest.raises(DataError, match=told) as error:
        Remote("fake", judge(there.url))(pictures, prompts)
    assert f"{there.url}/score" in str(error.value) and "\n" not in str(error.value)
    assert len(there.requests) == 2


def test_details_that_change_from_request_to_request_are_told(serve, pictures, prompts):
    healthy = json.dumps({**HEALTHY, "limits": {"pictures": 4}})

    def answer(method, path, sent, count):
        many = len(sent["pictures"]) if sent else 0
        return 200, healthy if method == "GET" else json.dumps(
            {"value": [0] * many, "details": {f"{count}": [0] * many}}
        )

    there = serve(answer)
    with pytest.raises(DataError, match=f"{there.url}/score gives some pictures other details than others"):
        Remote("fake", judge(there.url))(pictures, prompts)


def test_an_answer_that_never_ends_is_given_up(serve, pictures, prompts):
    def drops():
        while not serve.stopped.wait(0.05):
            yield " "

    there = serve(lambda method, *_: (200, json.dumps(HEALTHY) if method == "GET" else drops()))
    with pytest.raises(DataError, match=f"{there.url}/score gave no answer within 0.3 s"):
        Remote("fake", judge(there.url, deadline=0.3))(pictures, prompts)
    assert len(there.requests) == 2


def test_a_server_that_is_started_again_is_found_again(reward_server, pictures, prompts, monkeypatch):
    served = reward_server(Fake())
    remote = Remote("fake", judge(served.url, retries=2))
    served.stop()
    pauses = []

    def back(pause):
        pauses.append(pause)
        reward_server(Fake(), port=served.port)

    monkeypatch.setattr(http, "sleep", back)
    same(remote(pictures, prompts), Fake()(pictures, prompts))
    assert len(pauses) == 1


def test_a_server_that_stays_away_is_told(reward_server, pictures, prompts, monkeypatch):
    served = reward_server(Fake())
    remote = Remote("fake", judge(served.url, retries=2))
    served.stop()
    pauses = []
    monkeypatch.setattr(http, "sleep", pauses.append)
    with pytest.raises(ConfigError, match=f"no server at {served.url}/score .Connection refused"):
        remote(pictures, prompts)
    assert len(pauses) == 2


# The command


def test_the_command_serves_a_reward_until_it_is_interrupted(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "s3cret")
    command = [sys.executable, "-m", "flowopd", "serve-reward", "mini_quality", "--port", "0", "--token-env", "A_TOKEN"]
    serving = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = serving.stdout.readline().strip()
        prompts = read_prompts(located("package:mini/prompts/test/quality.jsonl"), "quality")[:3]
        pictures = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), np.uint8)
        remote = make_reward("mini_quality", "cpu", judge(url, token="A_TOKEN"))
        same(remote(pictures, prompts), make_reward("mini_quality")(pictures, prompts))
    finally:
        serving.send_signal(signal.SIGINT)
        rest, told = serving.communicate(timeout=60)
    hint = yaml.safe_load(told.partition("in a recipe: judges: ")[2].partition("; stop with")[0])
    assert serving.returncode == 0 and not rest and "Traceback" not in told and "s3cret" not in told
    assert JudgeConfig(**hint["mini_quality"]) == judge(url, token="A_TOKEN")
