"""How inputs are mutated, and the law they are held to: a sane result, or a refusal in one line.

`FUZZ=N` asks for N new examples of each kind; without it a few, always the same.
"""

import os
import signal
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, settings

from flowopd.errors import FlowOpdError

EXAMPLES = int(os.environ.get("FUZZ", "0"))
QUICK, PATIENCE = 40, 30

settings.register_profile(
    "hostile",
    max_examples=EXAMPLES or QUICK,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("hostile")


class Hang(BaseException):
    """What no handler of errors takes for one."""


@contextmanager
def _ending():
    """Inside, whatever has not ended after PATIENCE seconds of the processor is broken off."""

    def broken_off(*_):
        raise Hang(f"no end after {PATIENCE} s")

    before = signal.signal(signal.SIGPROF, broken_off)
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _lawful(call, *args):
    """What a call gives, or None where it refuses in one line; any other end fails."""
    try:
        with _ending():
            return call(*args)
    except FlowOpdError as error:
        message = str(error)
        assert message.strip() and message.isprintable() and "Traceback" not in message
        return None


@pytest.fixture(scope="session")
def lawful():
    """The law, as a function of a call and its arguments."""
    return _lawful


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """One folder for all examples, which write over each other."""
    return tmp_path_factory.mktemp("hostile")
