"""A request to a judge elsewhere: what is sent, what is sent again, and how each failure is told."""

import sys

import pytest

from flowopd.errors import ConfigError, DataError
from flowopd.rewards import http
from flowopd.rewards.http import Endpoint

OK = (200, '{"a": [1, 2.5]}')


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """The pauses that were made; none takes any time."""
    pauses = []
    monkeypatch.setattr(http, "sleep", pauses.append)
    return pauses


def test_json_goes_there_and_comes_back(serve):
    server = serve(lambda *_: OK)
    endpoint = Endpoint(server.url)
    assert endpoint.get_json("models") == endpoint.post_json("/chat/completions", {"x": "ä"}) == {"a": [1, 2.5]}
    (get, path, headers, _), (post, other, _, body) = server.requests
    assert (get, path, post, other) == ("GET", "/v1/models", "POST", "/v1/chat/completions")
    assert body == {"x": "ä"} and "Authorization" not in headers


@pytest.mark.parametrize("end", ["/", "?version=3"])
def test_paths_are_put_behind_the_url(serve, end):
    server = serve(lambda *_: OK)
    Endpoint(server.url + end).get_json("models")
    assert server.requests[0][1] == "/v1/models" + end.strip("/")


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_what_may_pass_is_sent_again(serve, at_once, status):
    server = serve(lambda _method, _path, _body, count: (status, "busy") if count < 2 else OK)
    assert Endpoint(server.url, retries=2).post_json("score", {}) == {"a": [1, 2.5]}
    assert len(server.requests) == 3 and at_once == [0.5, 1.0]


def test_a_server_may_ask_for_a_pause(serve, at_once):
    server = serve(lambda _method, _path, _body, count: (429, "busy", {"Retry-After": "7"}) if not count else OK)
    Endpoint(server.url).get_json("x")
    assert at_once == [7.0]


def test_no_pause_is_longer_than_the_longest(serve, at_once):
    server = serve(lambda *_: (503, "busy", {"Retry-After": "86400"}))
    with pytest.raises(DataError):
        Endpoint(server.url, retries=1).get_json("x")
    assert at_once == [http.LONGEST_PAUSE]


@pytest.mark.parametrize("retries", [0, 3])
def test_retries_are_bounded(serve, retries):
    server = serve(lambda *_: (500, "<h1>Out of\nmemory</h1>"))
    with pytest.raises(DataError, match=r"/v1/score failed with status 500 \('<h1>Out of memory</h1>'\)"):
        Endpoint(server.url, retries=retries).post_json("score", {})
    assert len(server.requests) == retries + 1


@pytest.mark.parametrize("status", [302, 400, 404])
def test_what_is_refused_is_sent_once(serve, status):
    server = serve(lambda *_: (status, "no model 'x'"))
    with pytest.raises(ConfigError, match=f"/v1/score refuses the request with status {status} .*no model") as told:
        Endpoint(server.url).post_json("score", {})
    assert len(server.requests) == 1 and server.url in str(told.value)


def test_nobody_there_is_told_with_the_url(dead_url, at_once):
    with pytest.raises(ConfigError, match=f"no server at {dead_url}/models .*refused") as told:
        Endpoint(dead_url, retries=1).get_json("models")
    assert len(at_once) == 1 and "\n" not in str(told.value)


def test_a_server_that_hangs_is_given_up(serve):
    server = serve(lambda *_: (serve.stopped.wait(30), OK)[1])
    with pytest.raises(DataError, match=f"{server.url}/x gave no answer within 0.2 s"):
        Endpoint(server.url, deadline=0.2, retries=1).get_json("x")
    assert len(server.requests) == 2


def test_a_server_that_drips_is_given_up(serve):
    def drops():
        while not serve.stopped.wait(0.05):
            yield " "

    server = serve(lambda *_: (200, drops()))
    with pytest.raises(DataError, match=r"no answer within 0\.3 s"):
        Endpoint(server.url, deadline=0.3, retries=0).get_json("x")


@pytest.mark.parametrize(
    ("said", "drops"), [(b"", b"HTTP/1.1 200 OK\r\nX: "), (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", b" ")]
)
def test_a_server_that_never_stops_dripping_is_given_up(raw_server, said, drops):
    with pytest.raises(DataError, match=r"no answer within 0\.4 s"):
        Endpoint(raw_server(said, drops), deadline=0.4, retries=0).get_json("x")


def test_no_more_of_an_answer_is_read_than_the_most(serve, monkeypatch):
    monkeypatch.setattr(http, "MOST_MIB", 1)
    sent = []

    def flood():
        while not serve.stopped.is_set():
            sent.append(1)
            yield " " * (1 << 16)

    server = serve(lambda *_: (200, flood()))
    with pytest.raises(DataError, match=f"{server.url}/x answers with more than 1 MiB"):
        Endpoint(server.url).get_json("x")
    assert len(server.requests) == 1


def test_an_answer_is_asked_for_unpacked(serve):
    server = serve(lambda *_: OK)
    Endpoint(server.url).get_json("x")
    assert server.requests[0][2]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("status", [429, 500, 502, 504])
def test_what_passes_is_for_the_caller_to_say(serve, at_once, status):
    server = serve(lambda *_: (status, "no"))
    with pytest.raises(DataError, match=f"status {status}"):
        Endpoint(server.url, passing=http.BUSY).get_json("x")
    assert len(server.requests) == 1 and not at_once


def test_whether_a_late_answer_is_asked_for_again_is_for_the_caller_to_say(serve, at_once):
    hung = serve(lambda *_: (serve.stopped.wait(30), OK)[1])
    with pytest.raises(DataError, match="no answer within"):
        Endpoint(hung.url, deadline=0.2, passing=http.BUSY).get_json("x")
    assert len(hung.requests) == 1 and not at_once


def test_a_busy_server_is_asked_again(serve, at_once):
    server = serve(lambda _method, _path, _body, count: (503, "busy") if not count else OK)
    assert Endpoint(server.url, passing=http.BUSY).get_json("x") == {"a": [1, 2.5]} and at_once == [0.5]


def test_a_server_that_was_away_is_asked_again(serve, dead_url, at_once, monkeypatch):
    server = serve(lambda *_: OK)
    endpoint = Endpoint(dead_url, passing=http.BUSY)

    def back(pause):
        at_once.append(pause)
        monkeypatch.setattr(endpoint, "_url", Endpoint(server.url)._url)

    monkeypatch.setattr(http, "sleep", back)
    assert endpoint.get_json("x") == {"a": [1, 2.5]} and at_once == [0.5]


@pytest.mark.parametrize("status", [413, 422])
def test_what_a_server_says_of_the_data_is_passed_on(serve, status):
    server = serve(lambda *_: (status, '{"detail": "prompt \\"x\\"\\nhas \\u001b[31mno text"}'))
    with pytest.raises(DataError) as told:
        Endpoint(server.url).post_json("score", {})
    place = f"{server.url}/score refuses what it was sent with status {status}"
    assert str(told.value) == f'{place} (prompt "x" has [31mno text)'


def test_this_machine_is_asked_without_a_proxy(serve, dead_url, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, dead_url)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert Endpoint(serve(lambda *_: OK).url).get_json("x") == {"a": [1, 2.5]}
    with pytest.raises(ConfigError, match=r"no server at http://192\.0\.2\.1/x .Connection refused"):
        Endpoint("http://192.0.2.1", retries=0).get_json("x")


@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_a_loopback_is_known(host, here):
    assert http.is_loopback(host) is here


def test_an_answer_that_breaks_off_is_told(serve):
    server = serve(lambda *_: (200, '{"a"', {"Content-Length": "100"}))
    with pytest.raises(DataError, match=f"{server.url}/x broke off its answer"):
        Endpoint(server.url, retries=0).get_json("x")


def test_an_answer_that_is_no_json_is_quoted(serve):
    server = serve(lambda *_: (200, "<html>\n" + "x" * 500))
    with pytest.raises(DataError, match=r"answered HTML and no JSON .* is it the right url") as told:
        Endpoint(server.url).get_json("x")
    assert "'<html> " + "x" * 73 + "'" in str(told.value) and len(server.requests) == 1
    with pytest.raises(DataError, match=r"x answered no JSON .'yes'."):
        Endpoint(serve(lambda *_: (200, "yes")).url).get_json("x")


def test_a_health_check_asks_once(serve, monkeypatch):
    server = serve(lambda *_: (serve.stopped.wait(30), OK)[1])
    monkeypatch.setattr(http, "HEALTH", 0.2)
    with pytest.raises(DataError, match=r"within 0\.2 s"):
        Endpoint(server.url, deadline=600, retries=5).health("models")
    assert len(server.requests) == 1


def test_the_token_is_sent_and_never_shown(serve, monkeypatch):
    monkeypatch.setenv("A_TOKEN", " s3cret\n")
    server = serve(lambda *_: (400, "wrong key s3cret"))
    endpoint = Endpoint(server.url, "A_TOKEN")
    with pytest.raises(ConfigError, match=r"wrong key \*\*\*") as told:
        endpoint.get_json("x")
    assert server.requests[0][2]["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in str(told.value) + repr(endpoint)


def test_a_password_in_the_url_is_used_and_never_shown(serve):
    server = serve(lambda *_: (500, "no"))
    with pytest.raises(DataError, match=f"{server.url}/x failed") as told:
        Endpoint(server.url.replace("://", "://me:pa55@"), retries=0).get_json("x")
    assert server.requests[0][2]["Authorization"].startswith("Basic ") and "pa55" not in str(told.value)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_told(serve, status):
    server = serve(lambda *_: (status, "who?"))
    with pytest.raises(ConfigError, match=f"refuses access with status {status}; name .* `token`"):
        Endpoint(server.url).get_json("x")


@pytest.mark.parametrize("value", [None, "", " "])
def test_a_missing_token_is_told_by_its_name(monkeypatch, value):
    monkeypatch.delenv("A_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("A_TOKEN", value)
    with pytest.raises(ConfigError, match="variable A_TOKEN, which `token` names, is not set; export it"):
        Endpoint("http://localhost:1", "A_TOKEN")


def test_a_token_that_cannot_be_sent_is_not_shown(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "s3crét")
    with pytest.raises(ConfigError, match="variable A_TOKEN, which `token` names, holds no token") as told:
        Endpoint("http://localhost:1", "A_TOKEN")
    assert "s3cr" not in str(told.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/x", "http://", "", "http://host:port/v1", "a/b"])
def test_what_is_no_address_is_told(url):
    with pytest.raises(ConfigError, match=r"is no address of a server; write it as in http://localhost:8000/v1"):
        Endpoint(url)


def test_httpx_has_to_be_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ConfigError, match=r"needs httpx.*pip install 'flowopd\[remote\]'"):
        Endpoint("http://localhost:1")
