"""What the environment asks of the terminal: silence, or errors in full."""

import os

QUIET, DEBUG = "FLOWOPD_QUIET", "FLOWOPD_DEBUG"
"""Variables that are on unless they are empty, 0, false, no or off."""

OFF = ("", "0", "false", "no", "off")


def is_on(name: str) -> bool:
    """Whether a variable is on."""
    return os.environ.get(name, "").lower() not in OFF
