"""What can go wrong, by whose hand: every message is one line that says what, the value, and the mend."""

from signal import Signals


class FlowOpdError(Exception):
    """Base of every error this package raises on purpose."""


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
