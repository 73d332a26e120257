"""The typed errors of the package; knows nothing else of it. The CLI prints their one line, without a traceback."""

from __future__ import annotations


class EmuEmbodiedError(Exception):
    """Base class of every error that a user can mend.

    Args:
        field: what was wrong ("action", "preset", a file's path).
        value: what was found there; shortened to 120 characters in the message.
        remedy: what would be right, and how to get there.

    Attributes:
        field, value, remedy: the three arguments.
    """

    def __init__(self, field: str, value: object, remedy: str) -> None:
        shown = value if isinstance(value, str) else repr(value)
        shown = shown if len(shown) <= 120 else shown[:117] + "..."
        super().__init__(f"{field}: {shown}; {remedy}")
        self.field, self.value, self.remedy = field, value, remedy

    def __reduce__(self):
        return type(self), (self.field, self.value, self.remedy)


class InputError(EmuEmbodiedError, ValueError):
    """An action, observation, goal or instruction with a wrong shape, dtype, range or non-finite values."""


class ConfigError(EmuEmbodiedError, ValueError):
    """An unknown command, preset or configuration key, or a value outside its range."""


class CheckpointError(EmuEmbodiedError, RuntimeError):
    """A checkpoint that is missing, damaged, or of another format."""


class DatasetError(EmuEmbodiedError, RuntimeError):
    """A dataset that is missing, damaged, or lacks what was asked of it."""


class SimulationError(EmuEmbodiedError, RuntimeError):
    """A simulator that left the numbers (NaN) or reset itself."""


class EngineError(EmuEmbodiedError, RuntimeError):
    """An engine that is not installed, cannot be built, or does not run on this machine."""
