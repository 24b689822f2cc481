"""The command that opens runs in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowopd.cli.flags import ADDRESS
from flowopd.errors import ConfigError


def studio(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Folders of runs, or folders that hold runs. [runs]")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Where to listen; others reach it only if you say so.", rich_help_panel=ADDRESS)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 is any that is free.", rich_help_panel=ADDRESS)] = 8321,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="FLOWOPD_STUDIO_TOKEN",
            help="What the page asks for before it shows anything.",
            rich_help_panel=ADDRESS,
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host", help="A name that the page may be opened by. Repeatable.", rich_help_panel=ADDRESS
        ),
    ] = None,
    opened: Annotated[bool, typer.Option("--open/--no-open", help="Open it in a browser.")] = True,
) -> None:
    """Watch runs while they train, compare them, and try their models side by side, in a browser.

    Example: `flowopd studio runs/demo --port 8321 --no-open`
    """
    try:
        from flowopd.studio.server import serve
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "starlette", "uvicorn"):
            raise
        raise ConfigError(f"the studio needs {error.name}; pip install 'flowopd[studio]'") from None

    serve(runs or [Path("runs")], host, port, token, allow or [], opened, typer.echo)
