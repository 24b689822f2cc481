"""SIGINT and SIGTERM: what runs ends in good order or at once, with the exit code that a shell expects.

Python runs handlers of signals in the main thread alone; in another one, both functions change nothing.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from flowopd.errors import Interrupted

STOPPING = (signal.SIGINT, signal.SIGTERM)
"""What a terminal (Ctrl-C) and a scheduler send to have a program end."""


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Inside, a signal raises Interrupted wherever the program is."""

    def end(number: int, _frame: object) -> NoReturn:
        raise Interrupted(number, "stopped")

    with _handled(end):
        yield


@contextmanager
def listening() -> Iterator[Callable[[], int]]:
    """Inside, a signal is noted and nothing else; `heard()` is its number, 0 as long as there was none.

    A SIGINT after a noted signal raises Interrupted: whoever presses Ctrl-C twice does not want to wait.
    """
    noted: list[int] = []

    def note(number: int, _frame: object) -> None:
        if noted and number == signal.SIGINT:
            raise Interrupted(number, "stopped at once, after what was kept last,")
        if not noted:
            _say("stopping after this update, which is kept; Ctrl-C now stops at once")
        noted.append(number)

    with _handled(note):
        yield lambda: noted[0] if noted else 0


def is_first() -> bool:
    """Whether this process is the one that speaks, as the launcher says; needs no library."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _handled(handler: Callable[[int, Any], object]) -> Iterator[None]:
    """The handler is in place inside, and those before it afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in STOPPING}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)


def _say(line: str) -> None:
    """A line on standard error, past Python's buffers, which a handler may have interrupted; on a terminal, where a bar
    may be drawn, below it."""
    below = "\n" if os.isatty(2) else ""
    if is_first():
        os.write(2, f"{below}{line}\n".encode())
