"""Who may ask the studio: by what name, from which page, with which token; and what its pages may do.

A page elsewhere on the web can make a browser send requests here. It cannot give this machine's own name (Host), which
foils names that are bound to another address behind its back; it cannot claim to be a page of the studio (Origin,
Sec-Fetch-Site); and it cannot send JSON unasked. Where others can reach the port, a token is needed besides.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import socket
from collections.abc import Collection, Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_BODY = 64 * 1024
"""Bytes of a question."""

API = "/api/"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What a page of the studio may load and ask: nothing but the studio itself."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",
}


class Guard:
    """Refuses requests before the app sees them, and adds HEADERS to every answer."""

    def __init__(self, app: ASGIApp, names: Collection[str], token: str | None = None) -> None:
        self.app, self.names = app, frozenset(name.lower() for name in names)
        self.token = token.encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = self._refusal(scope["method"], scope["path"], Headers(scope=scope))
        if refused is None:
            await self.app(scope, receive, guarded)
        else:
            await _refuse(guarded, *refused)

    def _refusal(self, method: str, path: str, headers: Headers) -> tuple[int, str] | None:
        """The status and the reason for which a request is refused; None if it is not."""
        host = headers.get("host", "")
        if not known(host, self.names):
            return 403, f"the studio does not go by the name {host[:100]!r}; open it by its address, or allow the name"
        if not path.startswith(API):
            return None
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") or not _own(headers):
            return 403, "another page asks; open the studio itself"
        if self.token is not None and not self._is_token(headers.get("authorization", "")):
            return 401, "the token is missing or wrong; give the one that the studio was started with"
        return _unfit(headers) if method == "POST" else None

    def _is_token(self, authorization: str) -> bool:
        scheme, _, given = authorization.partition(" ")
        return hmac.compare_digest(given.encode(), self.token or b"") and scheme.lower() == "bearer"


def known(host: str, names: Collection[str]) -> bool:
    """Whether a Host header, with its port or without, is an address or one of the names."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return name in names or _is_address(name)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def own_names(host: str, allowed: Iterable[str] = ()) -> set[str]:
    """The names that a studio at `host` goes by, besides every address."""
    here = () if is_loopback(host) else (socket.gethostname(), socket.getfqdn())
    return {name.lower() for name in ("localhost", host, *here, *allowed) if name}


def _own(headers: Headers) -> bool:
    """Whether the page that asks, if it says so, is one of the studio's."""
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")


def _unfit(headers: Headers) -> tuple[int, str] | None:
    if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        return 415, "a question comes as application/json"
    length = headers.get("content-length", "")
    if not length.isdigit():
        return 411, "a question tells its length"
    return (413, f"a question has at most {LARGEST_BODY} bytes") if int(length) > LARGEST_BODY else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
