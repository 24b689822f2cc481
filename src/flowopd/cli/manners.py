"""Manners that every command shares: quiet, and errors in one line or in full.

Both are options of each command and environment variables, so that they reach the processes of a launcher too.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from flowopd.quiet import DEBUG, QUIET

PANEL = "Manners"

Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", envvar=QUIET, help="Results, warnings and errors alone.", rich_help_panel=PANEL),
]
Debug = Annotated[
    bool,
    typer.Option("--debug", envvar=DEBUG, help="Show the traceback of an error.", rich_help_panel=PANEL),
]


def mannered(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options --quiet and --debug, which hold until the program ends."""

    @wraps(command)
    def polite(*args: Any, quiet: bool, debug: bool, **kwargs: Any) -> None:
        for name, wanted in ((QUIET, quiet), (DEBUG, debug)):
            if wanted:
                os.environ[name] = "1"
        command(*args, **kwargs)

    extra = {"quiet": Quiet, "debug": Debug}
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(name, keyword, default=False, annotation=kind) for name, kind in extra.items()]
    signature = inspect.signature(command, eval_str=True)
    polite.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]
    polite.__annotations__ = {**command.__annotations__, **extra}
    return polite
