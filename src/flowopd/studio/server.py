"""The studio on a port: bound first, so that one which is taken is a plain error, then served until it is stopped."""

from __future__ import annotations

import socket
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import uvicorn

from flowopd.errors import ConfigError, Interrupted
from flowopd.studio.app import create_app
from flowopd.studio.guard import is_loopback, own_names


def serve(
    places: Sequence[Path],
    host: str,
    port: int,
    token: str | None,
    allowed: Sequence[str],
    opened: bool,
    tell: Callable[[str], object],
) -> None:
    """Serve the runs at some places until interrupted; `tell` is given the address before the first request.

    Raises ConfigError if others could reach it and there is no token, or it cannot listen there; DataError for a place
    that does not exist.
    """
    if not is_loopback(host) and not token:
        raise ConfigError(f"others can reach {host}; give a token: --token, or FLOWOPD_STUDIO_TOKEN")
    app = create_app(places, own_names(host, allowed), token)
    listener = listening(host, port)
    address = url(host, listener.getsockname()[1])
    tell(address)
    if opened:
        webbrowser.open(address)
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, ws="none")
    with listener, suppress(KeyboardInterrupt, Interrupted):
        uvicorn.Server(config).run(sockets=[listener])


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any that is free. Raises ConfigError if it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen at {host}:{port} ({reason}); choose another --host or --port") from None


def url(host: str, port: int) -> str:
    """The address that a browser takes."""
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
