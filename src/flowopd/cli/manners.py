"""Manners that every command shares: quiet, and errors in one line or in full.

Both are options of each command and environment variables, so that they reach the processes of a launcher too.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import Annotated, Any

import typer

from flowopd.errors import FlowOpdError, Interrupted
from flowopd.quiet import DEBUG, QUIET, is_on
from flowopd.signals import is_first

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


class OneLine:
    """Inside, an error ends the program in one line: code 2 for a user's mistake, 1 for a failure of ours; so does a
    signal, with the code that it has.

    What --quiet and --debug have set holds no longer than this.
    """

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in (QUIET, DEBUG)}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        debug = is_on(DEBUG)
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        if isinstance(error, Interrupted):
            if is_first():
                typer.secho(str(error), fg="yellow", err=True)
            sys.exit(error.code)
        if isinstance(error, FlowOpdError):
            _end(error, f"error: {error}", 2, debug)
        if isinstance(error, Exception):
            said = " ".join(str(error).split())
            _end(error, f"failed: {kind.__name__}: {said}; run again with --debug for the traceback", 1, debug)


def _end(error: Exception, line: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)
    typer.secho(line, fg="red", err=True)
    sys.exit(code)
