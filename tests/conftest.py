"""The maths modules run with their shape annotations executed, in every test of the session; and servers to ask.

The hook has to be in place before anything imports these modules.
"""

import json
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from threading import Event, Lock, Thread
from types import ModuleType

import pytest
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

MATHS = (
    "types",
    "schedule",
    "gaussian",
    "dynamics",
    "velocity",
    "noise",
    "queries",
    "rollout",
    "routing",
    "objectives",
)

_checker = ModuleType("flowopd_shape_checker")
_checker.check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for mypy
sys.modules[_checker.__name__] = _checker
install_import_hook([f"flowopd.{name}" for name in MATHS], f"{_checker.__name__}.check")


@pytest.fixture
def reward_server():
    """Serves rewards over HTTP: `reward_server(reward, ...)` has a `url` and can `stop()`."""
    import uvicorn

    from flowopd.rewards import server, wire

    started = []

    class Serving:
        def __init__(self, reward, name="fake", limits=wire.Limits(), deadline=30.0, token=None, port=0):  # noqa: B008
            app = server.create_app(name, reward, limits, deadline, token)
            place = socket.create_server(("127.0.0.1", port))
            self.port = place.getsockname()[1]
            self.url = f"http://127.0.0.1:{self.port}"
            self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
            self._thread = Thread(target=self._server.run, args=([place],), daemon=True)
            self._thread.start()
            started.append(self)

        def stop(self):
            self._server.should_exit = True
            self._thread.join()

    yield Serving
    for each in started:
        each.stop()


@dataclass
class Served:
    """A server of a test: its address, and the requests it got as (method, path, headers, JSON body)."""

    url: str
    requests: list = field(default_factory=list)


@pytest.fixture
def serve():
    """Starts HTTP servers; `answer(method, path, body, count)` gives (status, text) or (status, text, headers).

    `count` is the number of requests before this one. Text that is an iterator is sent part by part.
    """
    stopped, servers = Event(), []

    def start(answer):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(None)

            def do_POST(self):
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def answer(self, body):
                with lock:
                    count = len(served.requests)
                    served.requests.append((self.command, self.path, dict(self.headers), body))
                status, text, *more = answer(self.command, self.path, body, count)
                self.send_response(status)
                for name, value in (more[0] if more else {}).items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(OSError):
                    for part in [text] if isinstance(text, str) else text:
                        self.wfile.write(part.encode())
                        self.wfile.flush()

            def log_message(self, *_):
                pass

        lock = Lock()
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        served = Served(f"http://127.0.0.1:{server.server_port}/v1")
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return served

    start.stopped = stopped
    yield start
    stopped.set()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def raw_server():
    """Starts servers that read a request, send some bytes, and then `drops` over and over, byte by byte."""
    stopped = Event()

    def start(said, drops):
        def answer():
            place, _ = listening.accept()
            with place, suppress(OSError):
                place.recv(1 << 16)
                place.sendall(said)
                for drop in cycle(drops):
                    place.sendall(bytes([drop]))
                    if stopped.wait(0.05):
                        return

        listening = socket.create_server(("127.0.0.1", 0))
        Thread(target=answer, daemon=True).start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield start
    stopped.set()


@pytest.fixture
def dead_url():
    """An address where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
