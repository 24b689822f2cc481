"""Commands that serve a part of a run to others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowopd.cli.flags import ADDRESS, HARDWARE, RECIPE

LIMITS = "Limits"
"""The group of options that say what a request may take."""


Host = Annotated[
    str,
    typer.Option(help="Address to serve on; any but this machine's own needs a token.", rich_help_panel=ADDRESS),
]
Port = Annotated[
    int, typer.Option(min=0, max=65535, help="Port to serve on; 0 is any that is free.", rich_help_panel=ADDRESS)
]
TokenEnv = Annotated[
    str | None,
    typer.Option(
        help="Name of the environment variable that holds the token clients must send.",
        show_default=False,
        rich_help_panel=ADDRESS,
    ),
]
TokenFile = Annotated[
    Path | None, typer.Option(help="Or the file that holds it.", show_default=False, rich_help_panel=ADDRESS)
]
Device = Annotated[
    str, typer.Option(help="Where the reward's models run: cpu, cuda, cuda:1.", rich_help_panel=HARDWARE)
]
MaxMib = Annotated[int, typer.Option(min=1, help="Largest request, in MiB.", rich_help_panel=LIMITS)]
MaxPictures = Annotated[int, typer.Option(min=1, help="Most pictures in a request.", rich_help_panel=LIMITS)]
Deadline = Annotated[float, typer.Option(min=0.1, help="Seconds that a request may take.", rich_help_panel=LIMITS)]
JudgeSets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a judge's key: model=FOLDER.", show_default=False, rich_help_panel=RECIPE),
]


def serve_reward(
    name: Annotated[str, typer.Argument(help="A reward's name, such as geneval.")],
    host: Host = "127.0.0.1",
    port: Port = 8765,
    device: Device = "cpu",
    token_env: TokenEnv = None,
    token_file: TokenFile = None,
    max_mib: MaxMib = 64,
    max_pictures: MaxPictures = 256,
    deadline: Deadline = 60.0,
    sets: JudgeSets = None,
) -> None:
    """Serve a reward that needs an environment or a machine of its own, until Ctrl-C.

    Example: `flowopd serve-reward geneval --device cuda --port 8765`
    """
    from flowopd.recipe import validated
    from flowopd.rewards.base import JudgeConfig
    from flowopd.rewards.registry import check_reward, make_reward
    from flowopd.rewards.server import ServerConfig, serve

    judge = validated(JudgeConfig, {}, sets or [], "serve-reward")
    check_reward(name, judge)
    config = ServerConfig(
        host=host,
        port=port,
        token_env=token_env,
        token_file=token_file,
        max_mib=max_mib,
        max_pictures=max_pictures,
        deadline=deadline,
    )
    asks = token_env is not None or token_file is not None
    serve(name, lambda: make_reward(name, device, judge), config, lambda url: _told(name, url, asks, token_env))


def _told(name: str, url: str, asks: bool, variable: str | None) -> None:
    """The address on standard output, how to use it on standard error; the token itself nowhere."""
    typer.echo(url)
    token = f", token: {variable or 'NAME_OF_A_VARIABLE'}" if asks else ""
    typer.echo(f'in a recipe: judges: {{{name}: {{url: "{url}"{token}}}}}; stop with Ctrl-C', err=True)
