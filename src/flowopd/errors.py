"""What can go wrong, by whose hand: every message is one line that says what, the value, and the mend."""

import re
from signal import Signals

SECRET = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[opsu]_[A-Za-z0-9]{20,}"
    r"|(?<=://)[^/?#\s@]+@|(?<=[?&])(?:api[-_]?key|key|(?:access[-_]?)?token|password|secret|sig)=[^\s&]+",
    re.IGNORECASE,
)
"""How tokens of hubs and endpoints look, and the users, passwords and keys of addresses."""

LONGEST, TAIL = 2000, 500
"""Characters of a message, and how many of them are its end, where a longer one is cut in its middle."""


class FlowOpdError(Exception):
    """Base of every error this package raises on purpose.

    Its message is one line whatever was put into it: spaces are single, other characters that do not print are
    escaped, secrets are starred, and what is too long loses its middle.
    """

    def __init__(self, message: str) -> None:
        words = SECRET.sub("***", " ".join(message.split()))
        line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in words)
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST - TAIL - 5]} ... {line[-TAIL:]}")


class ConfigError(FlowOpdError):
    """A setting, or a combination of settings, that cannot work."""


class DataError(FlowOpdError):
    """A prompt, label, image or reward that is not what it should be."""


class CheckpointError(FlowOpdError):
    """A file of weights or state that is missing, damaged, or belongs to something else."""


class NumericsError(FlowOpdError):
    """A value that stopped being finite."""


class Interrupted(BaseException):
    """A signal ended the program. No Exception, so that whoever handles errors lets it pass.

    `code` is what the program exits with: 128 and the signal's number.
    """

    def __init__(self, number: int, what: str, then: str = "run the same command again to go on") -> None:
        super().__init__(f"{what} by {Signals(number).name}; {then}")
        self.number, self.code = number, 128 + number
