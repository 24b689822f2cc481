"""JSON over HTTP, for judges that run elsewhere: a deadline, bounded retries, and errors that name the address."""

from __future__ import annotations

import json
import os
from time import monotonic, sleep
from typing import Any

from flowopd.errors import ConfigError, DataError, FlowOpdError

HEALTH = 5.0
"""Seconds within which a server that is there answers a health check."""

PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before the first retry, which double from one to the next, and the most that a server may ask for."""

QUOTED = 80
"""Characters of an answer that an error shows."""


class Endpoint:
    """A server by its base `url`, for requests from any number of threads at once.

    `token` names the environment variable whose value goes with every request as bearer token; it is never shown.
    `deadline` is the seconds that an answer may take, `retries` how often a request is sent again that met no server,
    no answer in time, a 429 or a 5xx.

    Raises ConfigError if `url` is no http address, the variable is not set, or httpx is not installed.
    """

    def __init__(self, url: str, token: str | None = None, deadline: float = 60.0, retries: int = 2) -> None:
        self._httpx = _httpx()
        self._url, self._shown = self._read(url)
        self._deadline, self._retries = deadline, retries
        self._secret = None if token is None else _secret(token)
        headers = {} if self._secret is None else {"Authorization": f"Bearer {self._secret}"}
        self._client = self._httpx.Client(headers=headers)

    def get_json(self, path: str) -> Any:
        """What a GET of a path below the base url answers.

        Raises ConfigError if there is no server or it refuses the request, DataError if its answers fail, come too
        late or are no JSON.
        """
        return self._ask("GET", path, None, self._deadline, self._retries)

    def post_json(self, path: str, body: Any) -> Any:
        """What a POST of `body`, as JSON, answers. Raises as `get_json` does."""
        return self._ask("POST", path, body, self._deadline, self._retries)

    def health(self, path: str) -> Any:
        """What a GET answers within HEALTH seconds, asked once. Raises as `get_json` does."""
        return self._ask("GET", path, None, HEALTH, 0)

    def _read(self, url: str) -> tuple[Any, str]:
        """The base url, and how errors show it: without a password or a query."""
        try:
            read = self._httpx.URL(url)
        except self._httpx.InvalidURL:
            read = self._httpx.URL("")
        if read.scheme not in ("http", "https") or not read.host:
            raise ConfigError(f"{url!r} is no address of a server; write it as in http://localhost:8000/v1")
        return read, str(read.copy_with(userinfo=b"", query=None, fragment=None)).rstrip("/")

    def _ask(self, method: str, path: str, body: Any, deadline: float, retries: int) -> Any:
        for left in range(retries, -1, -1):
            try:
                return self._answer(method, path, body, deadline)
            except _Passing as failure:
                if not left:
                    raise failure.error from None
                sleep(max(failure.wait, min(PAUSE * 2 ** (retries - left), LONGEST_PAUSE)))
        raise AssertionError("a request is sent at least once")

    def _answer(self, method: str, path: str, body: Any, deadline: float) -> Any:
        httpx, shown = self._httpx, f"{self._shown}/{path.lstrip('/')}"
        try:
            status, headers, content = self._send(method, path, body, deadline)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            reason = _line(str(error)) or "no connection"
            raise _Passing(ConfigError(f"no server at {shown} ({reason}); start it, or mend its url")) from None
        except httpx.TimeoutException:
            mend = "look at its load, or allow it a longer deadline"
            raise _Passing(DataError(f"{shown} gave no answer within {deadline:g} s; {mend}")) from None
        except httpx.RequestError as error:
            reason = _line(str(error)) or type(error).__name__
            raise _Passing(DataError(f"{shown} broke off its answer ({reason}); look at the server's log")) from None
        if status == httpx.codes.OK:
            return self._parsed(content, shown)
        raise self._failure(status, headers, content, shown)

    def _send(self, method: str, path: str, body: Any, deadline: float) -> tuple[int, Any, bytes]:
        """Status, headers and content of an answer that was whole in time."""
        end = monotonic() + deadline
        target = self._url.copy_with(path=f"{self._url.path.rstrip('/')}/{path.lstrip('/')}")
        with self._client.stream(method, target, json=body, timeout=deadline) as response:
            parts = []
            for part in response.iter_bytes():
                parts.append(part)
                if monotonic() > end:
                    raise self._httpx.ReadTimeout("the answer came in too slowly")
            return response.status_code, response.headers, b"".join(parts)

    def _failure(self, status: int, headers: Any, content: bytes, shown: str) -> Exception:
        """What to raise for an answer that is none."""
        said = self._quote(content)
        if status == 429 or status >= 500:
            wait = headers.get("Retry-After", "")
            error = DataError(f"{shown} failed with status {status} ({said}); look at the server's log")
            return _Passing(error, min(float(wait), LONGEST_PAUSE) if wait.isdecimal() else 0.0)
        if status in (401, 403):
            mend = "name the environment variable of a valid token as `token`"
            return ConfigError(f"{shown} refuses access with status {status}; {mend}")
        return ConfigError(f"{shown} refuses the request with status {status} ({said}); mend the url or the model")

    def _parsed(self, content: bytes, shown: str) -> Any:
        try:
            return json.loads(content)
        except ValueError:
            raise DataError(f"{shown} answered no JSON ({self._quote(content)}); is it the right url?") from None

    def _quote(self, content: bytes) -> str:
        text = _line(content.decode("utf-8", "replace"))
        if self._secret:
            text = text.replace(self._secret, "***")
        return repr(text[:QUOTED])


class _Passing(Exception):
    """A failure that may pass: what to raise if it does not, and the seconds that the server asks for."""

    def __init__(self, error: FlowOpdError, wait: float = 0.0) -> None:
        super().__init__(str(error))
        self.error, self.wait = error, wait


def _httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        mend = "pip install 'flowopd[remote]'"
        raise ConfigError(f"a judge with a url needs httpx, which cannot be imported ({error}): {mend}") from None
    return httpx


def _secret(name: str) -> str:
    value = os.environ.get(name, "").strip()
    if not value:
        raise ConfigError(f"the environment variable {name}, which `token` names, is not set; export it")
    if not (value.isascii() and value.isprintable()):
        raise ConfigError(f"the environment variable {name}, which `token` names, holds no token; export it again")
    return value


def _line(text: str) -> str:
    return " ".join(text.split())
