"""What can go wrong, by whose hand: every message is one line that says what, the value, and the mend."""

from signal import Signals

LONGEST, TAIL = 2000, 500
"""Characters of a message, and how many of them are its end, where a longer one is cut in its middle."""


class FlowOpdError(Exception):
    """Base of every error this package raises on purpose.

    Its message is one line whatever was put into it: spaces are single, other characters that do not print are
    escaped, and what is too long loses its middle.
    """

    def __init__(self, message: str) -> None:
        words = " ".join(message.split())
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

    def __init__(self, number: int, what: str) -> None:
        super().__init__(f"{what} by {Signals(number).name}; run the same command again to go on")
        self.number, self.code = number, 128 + number
