"""The typed errors of the package; knows nothing else of it. The CLI prints their one line, without a traceback."""

from __future__ import annotations

_ABSENT = object()


class EmuEmbodiedError(Exception):
    """Base class of every error that a user can mend. It survives pickling, and being made anew from its message alone.

    Args:
        field: what was wrong ("action", "preset", a file's path).
        value: what was found there; shortened to 120 characters in the message.
        remedy: what would be right, and how to get there.

    Attributes:
        field, value, remedy: the three arguments.
    """

    def __init__(self, field: str, value: object = _ABSENT, remedy: str = "") -> None:
        if value is _ABSENT:  # Gymnasium's async workers and loggers make an error anew from its message alone
            super().__init__(field)
            self.field, self.value, self.remedy = "", None, ""
            return
        shown = value if isinstance(value, str) and value.isprintable() else _shown(value)  # one line, whatever it is
        shown = shown if len(shown) <= 120 else shown[:117] + "..."
        super().__init__(f"{field}: {shown}; {remedy}")
        self.field, self.value, self.remedy = field, value, remedy

    def __reduce__(self):
        return _rebuild, (type(self), str(self), self.field, _portable(self.value), self.remedy)


def _shown(value: object) -> str:
    """`repr`, of values that have one: a number of more than 4,300 digits has none."""
    try:
        return repr(value)
    except Exception:
        return f"a {type(value).__name__} that cannot be shown"


def _portable(value: object) -> object:
    """The value where another process can have it, else how it is shown."""
    return value if isinstance(value, str | int | float | bool | None) else _shown(value)


def _rebuild(kind: type[EmuEmbodiedError], message: str, field: str, value: object, remedy: str) -> EmuEmbodiedError:
    error = kind(message)
    error.field, error.value, error.remedy = field, value, remedy
    return error


class InputError(EmuEmbodiedError, ValueError):
    """An action, observation, goal or instruction with a wrong shape, dtype, range or non-finite values."""


class KeywordError(InputError, TypeError):
    """An unknown keyword of an env. Others' libraries try keywords out, and look for Python's own error of them."""


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
