"""Who may ask: the machine's own names, the studio's own pages, the holder of the token; and what pages may do."""

import re
from importlib.resources import files

import pytest
from fastapi.testclient import TestClient

from flowopd.studio.app import create_app
from flowopd.studio.guard import HEADERS, LARGEST_BODY, is_loopback, known, own_names

PAGES = files("flowopd") / "studio" / "pages"


@pytest.fixture
def app(run):
    return create_app([run.parent], own_names("127.0.0.1"))


@pytest.fixture
def ask(app):
    return TestClient(app, base_url="http://localhost")


@pytest.mark.parametrize("host", ["localhost", "localhost:8321", "127.0.0.1:9999", "[::1]:8321", "192.168.1.7"])
def test_own_names_and_addresses_are_answered(ask, host):
    assert ask.get("/api/runs", headers={"Host": host}).status_code == 200
    assert ask.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[", "a:b:c"])
def test_a_name_that_was_bound_to_this_address_is_refused(ask, host):
    for path in ("/api/runs", "/", "/js/main.js"):
        answer = ask.get(path, headers={"Host": host})
        assert answer.status_code == 403 and "does not go by the name" in answer.json()["error"]


def test_a_name_can_be_allowed(run):
    app = create_app([run.parent], own_names("127.0.0.1", ["Studio.Lan"]))
    assert TestClient(app, base_url="http://studio.lan").get("/api/runs").status_code == 200


def test_names_of_a_studio_that_others_reach():
    assert known("localhost", own_names("0.0.0.0")) and not known("other.lan", own_names("0.0.0.0"))
    assert known("box.lan:80", own_names("box.lan"))


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_what_only_this_machine_reaches(host, loopback):
    assert is_loopback(host) == loopback


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
    ],
    ids=str,
)
def test_other_pages_are_refused(ask, headers):
    assert ask.get("/api/runs", headers=headers).status_code == 403


def test_the_pages_of_the_studio_are_answered(ask):
    own = {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}
    assert ask.get("/api/runs", headers=own).status_code == 200


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer wrong", "Basic right", "Bearer right ", "Bearer rightx"])
def test_without_the_token_nothing_is_told(run, given):
    ask = TestClient(create_app([run.parent], ["localhost"], "right"), base_url="http://localhost")
    headers = {} if given is None else {"Authorization": given}
    for path in ("/api/runs", "/api/runs/x/picture?path=wall.png", "/api/nothing"):
        answer = ask.get(path, headers=headers)
        assert answer.status_code == 401 and "token" in answer.json()["error"]
        assert "a run" not in answer.text and "right" not in answer.text
    assert ask.post("/api/runs/x/draw", json={}, headers=headers).status_code == 401


def test_with_the_token_all_is_told(run):
    ask = TestClient(create_app([run.parent], ["localhost"], "right"), base_url="http://localhost")
    assert ask.get("/api/runs", headers={"Authorization": "Bearer right"}).json()["runs"]
    assert ask.get("/").status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_form_of_another_page_cannot_ask(ask, kind):
    answer = ask.post("/api/trials/x", content=b'{"choice": "left"}', headers={"Content-Type": kind})
    assert answer.status_code == 415


def test_a_question_has_a_length_and_a_limit(ask):
    kind = {"Content-Type": "application/json"}
    assert ask.post("/api/trials/x", content=b"x" * (LARGEST_BODY + 1), headers=kind).status_code == 413
    assert ask.post("/api/trials/x", content=iter([b"{}"]), headers=kind).status_code == 411


@pytest.mark.parametrize("path", ["/", "/api/runs", "/api/runs/x/gaps", "/js/main.js", "/nothing"])
def test_every_answer_says_what_pages_may_do(ask, path):
    headers = ask.get(path).headers
    assert {name: headers[name] for name in HEADERS} == HEADERS
    assert "access-control-allow-origin" not in headers


def test_there_is_no_page_that_fetches_from_elsewhere(ask):
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert ask.get(path).status_code == 404
    texts = {file.name: file.read_text() for file in PAGES.rglob("*") if file.is_file()}
    addresses = {name: set(re.findall(r"\w+://[^\s\"'`)]+", text)) for name, text in texts.items()}
    assert set().union(*addresses.values()) == {"http://www.w3.org/2000/svg"}
    unsafe = r"innerHTML|insertAdjacentHTML|eval\(|new Function|@import|url\("
    assert [name for name, text in texts.items() if re.search(unsafe, text)] == []


@pytest.mark.parametrize("name", ["app.py", "../app.py"])
def test_only_pages_lie_among_the_pages(ask, name):
    kinds = {file.suffix for file in PAGES.rglob("*") if file.is_file()}
    assert kinds == {".html", ".css", ".js", ".svg"} and ask.get(f"/{name}").status_code == 404
