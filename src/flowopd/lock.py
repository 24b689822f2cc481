"""One writer at a time in a run's folder."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from flowopd.durable import writing
from flowopd.errors import ConfigError
from flowopd.owner import LOCK, OWNER, named
from flowopd.processes import everywhere, is_main


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold the folder of a run, which the same process may do again meanwhile; the main one of several does.

    Raises ConfigError if another process holds it, CheckpointError if it cannot be written.
    """
    lock = FileLock(run / LOCK, timeout=0, is_singleton=True, thread_local=False)
    if everywhere(is_main() and not _taken(lock, run / OWNER))[0]:
        who = named(run)
        told = f"process {who[0]} on {who[1]}" if who else "another process"
        raise ConfigError(f"{run} is being written by {told}; wait until it ends, or choose another --out")
    try:
        yield
    finally:
        if is_main():
            if lock.lock_counter == 1:
                (run / OWNER).unlink(missing_ok=True)
            lock.release()


def _taken(lock: FileLock, owner: Path) -> bool:
    """Take the lock, if it is free, and write down by whom."""
    with writing(owner):
        try:
            lock.acquire()
        except Timeout:
            return False
        try:
            owner.write_text(f"{os.getpid()} {socket.gethostname()}")
        except OSError:
            lock.release()
            raise
    return True
