"""Who writes into a run's folder, for those who only look at it."""

from __future__ import annotations

import socket
from pathlib import Path

import psutil

LOCK, OWNER = ".lock", ".owner"
"""The file that is locked, which the system lets go of when its holder ends, however it ends; and the file that says
whose process on which host holds it."""


def is_held(run: Path) -> bool | None:
    """Whether a process of this machine writes into a run; None if another machine's does, or none ever did."""
    who = named(run)
    if not (run / LOCK).exists() or (who and who[1] != socket.gethostname()):
        return None
    return who is not None and psutil.pid_exists(who[0])


def named(run: Path) -> tuple[int, str] | None:
    """The process and the host that a run names as its writer; None if it names none."""
    try:
        process, host = (run / OWNER).read_text().split(" ", 1)
        return int(process), host
    except (OSError, ValueError):
        return None
