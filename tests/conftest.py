"""The maths modules run with their shape annotations executed, in every test of the session.

The hook has to be in place before anything imports these modules.
"""

import socket
import sys
from threading import Thread
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
