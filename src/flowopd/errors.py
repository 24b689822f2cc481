"""What can go wrong, by whose hand: every message is one line that says what, the value, and the mend."""


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
