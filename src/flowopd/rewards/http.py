"""JSON over HTTP, for judges that run elsewhere: a deadline, bounded retries, and errors that name the address."""

from __future__ import annotations

import os
from collections.abc import Set
from ipaddress import ip_address
from pathlib import Path
from time import sleep
from typing import Any

import anyio
from anyio.from_thread import start_blocking_portal
from pydantic_core import from_json

from flowopd.errors import ConfigError, DataError, FlowOpdError

HEALTH = 5.0
"""Seconds within which a server that is there answers a health check."""

PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before the first retry, which double from one to the next, and the most that a server may ask for."""

LATE, BUSY = 408, frozenset({503})
"""The status that stands for no answer in time; that of a server that will answer later."""

PASSING = frozenset({LATE, 429, *range(500, 600)})
"""What a server of large models gets over."""

MOST_MIB = 8
"""MiB of an answer that are read."""

QUOTED, TOLD = 80, 400
"""Characters of any answer that an error shows, and of what the answer itself calls its detail."""


class Endpoint:
    """A server by its base `url`, for requests from any number of threads at once.

    `token` names the environment variable whose value goes with every request as bearer token; it is never shown.
    `deadline` is the seconds that a request may take until its answer is whole, `retries` how often it is sent again
    after it met no server, a broken connection, or one of the statuses `passing`.

    Raises ConfigError if `url` is no http address, the variable is not set, or httpx is not installed.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        deadline: float = 60.0,
        retries: int = 2,
        passing: Set[int] = PASSING,
    ) -> None:
        self._httpx = _httpx()
        self._url, self._shown = self._read(url)
        self._deadline, self._retries, self._passing = deadline, retries, passing
        self._secret = None if token is None else secret(token)
        headers = {"Accept-Encoding": "identity"}
        self._options = {
            "headers": headers if self._secret is None else {**headers, "Authorization": f"Bearer {self._secret}"},
            "verify": self._httpx.create_ssl_context(),
            "trust_env": not is_loopback(self._url.host),
            "timeout": None,
        }

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

    def at(self, path: str) -> str:
        """A path below the base url, as errors show it."""
        return f"{self._shown}/{path.lstrip('/')}"

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
        httpx, shown = self._httpx, self.at(path)
        try:
            status, headers, content = self._send(method, path, body, deadline)
        except httpx.ConnectError as error:
            raise _Passing(ConfigError(f"no server at {shown} ({_cause(error)}); start it, or mend its url")) from None
        except TimeoutError:
            mend = "look at its load, or allow it a longer deadline"
            raise self._perhaps(LATE, DataError(f"{shown} gave no answer within {deadline:g} s; {mend}")) from None
        except httpx.RequestError as error:
            reason = _line(str(error)) or type(error).__name__
            raise _Passing(DataError(f"{shown} broke off its answer ({reason}); look at the server's log")) from None
        if len(content) > MOST_MIB << 20:
            raise DataError(f"{shown} answers with more than {MOST_MIB} MiB; is it the right url?")
        if status == httpx.codes.OK:
            return self._parsed(content, shown)
        raise self._failure(status, headers, content, shown)

    def _send(self, method: str, path: str, body: Any, deadline: float) -> tuple[int, Any, bytes]:
        """Status, headers and content of an answer; raises TimeoutError unless it is whole in time.

        It runs in an event loop of its own, where whatever takes too long can be stopped, at any point.
        """
        target = self._url.copy_with(path=f"{self._url.path.rstrip('/')}/{path.lstrip('/')}")
        with start_blocking_portal() as portal:
            return portal.call(self._exchange, method, target, body, deadline)

    async def _exchange(self, method: str, target: Any, body: Any, deadline: float) -> tuple[int, Any, bytes]:
        with anyio.fail_after(deadline):
            async with (
                self._httpx.AsyncClient(**self._options) as client,
                client.stream(method, target, json=body) as answer,
            ):
                content = bytearray()
                async for part in answer.aiter_raw():
                    content += part
                    if len(content) > MOST_MIB << 20:
                        break
                return answer.status_code, answer.headers, bytes(content)

    def _perhaps(self, status: int, error: FlowOpdError, wait: float = 0.0) -> Exception:
        """What to raise for a status that may pass, or not."""
        return _Passing(error, wait) if status in self._passing else error

    def _failure(self, status: int, headers: Any, content: bytes, shown: str) -> Exception:
        """What to raise for an answer that is none."""
        said = self._said(content)
        if status == 429 or status >= 500:
            wait = headers.get("Retry-After", "")
            error = DataError(f"{shown} failed with status {status} ({said}); look at the server's log")
            return self._perhaps(status, error, min(float(wait), LONGEST_PAUSE) if wait.isdecimal() else 0.0)
        if status in (413, 422):
            return DataError(f"{shown} refuses what it was sent with status {status} ({said})")
        if status in (401, 403):
            mend = "name the environment variable of a valid token as `token`"
            return ConfigError(f"{shown} refuses access with status {status}; {mend}")
        return ConfigError(f"{shown} refuses the request with status {status} ({said}); mend the url or the model")

    def _said(self, content: bytes) -> str:
        """What a failure's answer gives as its detail, or else its beginning."""
        try:
            tree = from_json(content)
        except ValueError:
            tree = None
        detail = tree.get("detail") if isinstance(tree, dict) else None
        return self._clean(detail)[:TOLD] if isinstance(detail, str) else self._quote(content)

    def _parsed(self, content: bytes, shown: str) -> Any:
        try:
            return from_json(content)
        except ValueError:
            kind = "HTML and " if content.lstrip()[:1] == b"<" else ""
            raise DataError(f"{shown} answered {kind}no JSON ({self._quote(content)}); is it the right url?") from None

    def _quote(self, content: bytes) -> str:
        return repr(self._clean(content.decode("utf-8", "replace"))[:QUOTED])

    def _clean(self, text: str) -> str:
        """One line of what can be shown, without the token."""
        shown = "".join(letter if letter.isprintable() else " " for letter in text)
        return _line(shown.replace(self._secret, "***") if self._secret else shown)


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


def secret(name: str) -> str:
    """The token that the environment variable `name` holds. Raises ConfigError if it holds none."""
    value = os.environ.get(name, "").strip()
    if not value:
        raise ConfigError(f"the environment variable {name}, which `token` names, is not set; export it")
    return sendable(value, f"the environment variable {name}, which `token` names,")


def secret_of(file: Path) -> str:
    """The token that a file holds, and nothing else. Raises ConfigError if it cannot be read, or holds none."""
    try:
        value = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"the token file {file} cannot be read ({reason}); write a token into it") from None
    return sendable(value, f"the token file {file}")


def sendable(value: str, origin: str) -> str:
    """A token that fits into a header. Raises ConfigError, naming where it comes from and not what it is."""
    if not value or not (value.isascii() and value.isprintable()):
        raise ConfigError(f"{origin} holds no token; write one of printable ASCII")
    return value


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _cause(error: BaseException | None) -> str:
    """Why there is no connection, as the system says it."""
    first = error
    while error is not None:
        first, error = error, error.__cause__ or error.__context__ or next(iter(getattr(error, "exceptions", ())), None)
    if isinstance(first, OSError) and first.errno is not None:
        return os.strerror(first.errno) if first.errno > 0 else str(first.strerror)
    return _line(str(first)) or "no connection"


def _line(text: str) -> str:
    return " ".join(text.split())
