"""A reward behind HTTP, for an environment of its own: `flowopd serve-reward`. The client is `flowopd.rewards.remote`.

One request is scored at a time, in one thread; a few may wait. Whatever is too large is refused before it is held, and
whatever takes too long is answered with the cause.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from secrets import compare_digest
from typing import Annotated

import anyio
from pydantic import BaseModel, ConfigDict, Field

import flowopd.rewards.wire as wire
from flowopd.errors import ConfigError, DataError, Interrupted, NumericsError
from flowopd.rewards.base import Reward
from flowopd.rewards.http import is_loopback, secret, secret_of

try:
    import uvicorn
    from fastapi import Depends, FastAPI, Header, HTTPException, Request
    from fastapi.responses import JSONResponse
    from starlette.requests import ClientDisconnect
except ImportError as missing:
    raise ConfigError(
        f"a reward server needs fastapi and uvicorn, which cannot be imported ({missing}): pip install 'flowopd[serve]'"
    ) from None

WAITING = 16
"""Requests that are taken in at a time: one is scored, the others wait. More are told to come back."""

GRACE = 10
"""Seconds that a request in work is given when the server is stopped."""

TOLD = 400
"""Characters of an unexpected failure that a client is told."""


class ServerConfig(BaseModel):
    """Where a reward is served, to whom, and how much of it at a time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(8765, ge=0, le=65535, description="0 is any that is free")
    token_env: str | None = Field(None, description="name of the environment variable that holds the token")
    token_file: Path | None = Field(None, description="or the file that holds it")
    max_mib: int = Field(64, ge=1, description="MiB of a request")
    max_pictures: int = Field(256, ge=1, description="pictures in a request")
    deadline: float = Field(60.0, gt=0, description="seconds from a request's first byte to its answer")


def serve(name: str, build: Callable[[], Reward], config: ServerConfig, ready: Callable[[str], None] = print) -> None:
    """Serve the reward that `build` makes as `name` until Ctrl-C; `ready` is told the URL once requests are taken.

    A batch that is being scored then is scored to its end; a second Ctrl-C leaves one that never ends.

    Raises ConfigError, before anything is built, if the host can be reached from elsewhere and no token is asked for,
    the token is not set, or the port is taken.
    """
    token = _token(config)
    with _bound(config) as place:
        limits = wire.Limits(bytes=config.max_mib * wire.MIB, pictures=config.max_pictures)
        app = create_app(name, build(), limits, config.deadline, token)
        place.listen()
        ready(_url(config.host, place.getsockname()[1]))
        settings = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE)
        with suppress(KeyboardInterrupt, Interrupted):
            uvicorn.Server(settings).run(sockets=[place])


def create_app(
    name: str, reward: Reward, limits: wire.Limits, deadline: float = 60.0, token: str | None = None
) -> FastAPI:
    """The web application that serves a reward; requests must bear the token, if there is one."""
    desk = _Desk(name, reward, limits, deadline)
    guards = [] if token is None else [Depends(_guard(token))]
    app = FastAPI(title=f"flowopd reward {name}", docs_url=None, redoc_url=None, openapi_url=None, dependencies=guards)
    app.get(wire.HEALTH)(desk.health)
    app.post(wire.SCORE)(desk.score)
    app.add_exception_handler(DataError, _refused)
    app.add_exception_handler(ClientDisconnect, _refused)
    app.add_exception_handler(Exception, _failed)
    return app


class _Desk:
    """Takes requests in, has them scored one after the other, and answers them in time."""

    def __init__(self, name: str, reward: Reward, limits: wire.Limits, deadline: float) -> None:
        self._name, self._reward, self._limits, self._deadline = name, reward, limits, deadline
        self._room, self._worker = asyncio.Semaphore(WAITING), ThreadPoolExecutor(1, "reward")
        self._overdue: Future[wire.Verdict] | None = None

    async def health(self) -> wire.Health:
        return wire.Health(reward=self._name, version=version("flowopd"), ready=self._ready, limits=self._limits)

    async def score(self, request: Request) -> wire.Verdict:
        if self._room.locked() or not self._ready:
            raise _later(f"{self._name!r} is busy")
        job: Future[wire.Verdict] | None = None
        async with self._room:
            with anyio.move_on_after(self._deadline):
                body = await _body(request, self._limits.bytes)
                job = self._worker.submit(partial(self._judge, body))
                return await asyncio.wrap_future(job)
            raise self._late(job)

    @property
    def _ready(self) -> bool:
        return self._overdue is None or self._overdue.done()

    def _judge(self, body: bytes) -> wire.Verdict:
        pictures, prompts = wire.read_batch(body, self._limits)
        scores = self._reward(pictures, prompts)
        try:
            return wire.judged(scores, len(prompts))
        except ValueError as error:
            raise NumericsError(f"{self._name!r} gave no scores of {len(prompts)} pictures: {error}") from error

    def _late(self, job: Future[wire.Verdict] | None) -> HTTPException:
        """Whose fault it is that there is no answer in time."""
        if job is None:
            return HTTPException(408, f"the request was not all there within {self._deadline:g} s; send it faster")
        if job.cancelled():
            return _later(f"the request waited {self._deadline:g} s behind others")
        self._overdue = job
        mend = "send fewer pictures at once (--max-pictures), or allow more (--deadline)"
        return HTTPException(504, f"{self._name!r} did not score them within {self._deadline:g} s; {mend}")


def _guard(token: str) -> Callable[[str], Awaitable[None]]:
    """Refuses requests without the token, in the same time however much of it is right."""

    async def check(authorization: Annotated[str, Header()] = "") -> None:
        if not compare_digest(authorization.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "the token is missing or wrong", {"WWW-Authenticate": "Bearer"})

    return check


async def _body(request: Request, most: int) -> bytes:
    """A request's JSON, of which no more than `most` bytes are ever held."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "send JSON, with the header Content-Type: application/json")
    body = bytearray()
    if int(request.headers.get("content-length", 0)) > most:
        raise _too_large(most)
    async for part in request.stream():
        if len(body) + len(part) > most:
            raise _too_large(most)
        body += part
    return bytes(body)


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"the request has more than {most} bytes; send fewer pictures at once")


def _later(cause: str) -> HTTPException:
    return HTTPException(503, f"{cause}; try again", {"Retry-After": "1"})


async def _refused(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 422)


async def _failed(_: Request, error: Exception) -> JSONResponse:
    """What a client is told of a failure that nobody expected; the server's log has all of it."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return JSONResponse({"detail": said[:TOLD]}, 500)


def _token(config: ServerConfig) -> str | None:
    if config.token_env is not None and config.token_file is not None:
        raise ConfigError("the token is either in a variable or in a file; give --token-env or --token-file")
    if config.token_env is not None:
        return secret(config.token_env)
    if config.token_file is not None:
        return secret_of(config.token_file)
    if is_loopback(config.host):
        return None
    raise ConfigError(
        f"host {config.host} can be reached from other machines; ask for a token with --token-env VARIABLE or "
        "--token-file FILE, or serve on 127.0.0.1"
    )


def _bound(config: ServerConfig) -> socket.socket:
    """A socket that has the port, and answers nobody yet."""
    place = socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((config.host, config.port))
    except OSError as error:
        place.close()
        raise ConfigError(
            f"port {config.port} of {config.host} is not to be had ({error.strerror}); choose another --port"
        ) from None
    return place


def _url(host: str, port: int) -> str:
    """The address that clients use: of this machine, where it is served on all of its addresses."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
