"""One thing that was looked at before a run, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from flowopd.errors import FlowOpdError

State = Literal["ok", "warning", "failed"]

OK: State = "ok"
WARNING: State = "warning"
FAILED: State = "failed"


@dataclass(frozen=True)
class Check:
    """A fact in one line and its mend, if it needs one. For example `Check("routes", "ok", "ocr to 1 text")`."""

    name: str
    state: State
    fact: str
    mend: str = ""


def looked(name: str, look: Callable[[], Check], beyond: tuple[type[Exception], ...] = ()) -> Check:
    """What a look finds; an error of ours, or of a kind in `beyond`, is a failed check of this name."""
    try:
        return look()
    except FlowOpdError as error:
        fact, _, mend = str(error).partition("; ")
        return Check(name, FAILED, fact, mend)
    except beyond as error:
        lines = str(error).strip().splitlines() or [""]
        return Check(name, FAILED, f"{type(error).__name__}: {lines[0]}"[:200], "see that its libraries and files fit")
