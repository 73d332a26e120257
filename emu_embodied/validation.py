"""Checks of values where they enter: each returns the plain value or raises the one typed error. Knows only the errors."""

from __future__ import annotations

import difflib
import math
import numbers
import re
from collections.abc import Collection, Mapping

import numpy as np

from emu_embodied.errors import ConfigError, EmuEmbodiedError, InputError

Kind = type[EmuEmbodiedError]
_ENV_ID = re.compile(r"(?:[A-Za-z0-9_-]+/)?[A-Za-z0-9_.-]+")


def whole_number(
    field: str, value: object, least: int | None = 0, most: int | None = None, error: Kind = ConfigError
) -> int:
    """Returns an integer of Python's or NumPy's as an int. Booleans and floats are refused.

    Args:
        field: the name of the value, for the error.
        value: what was given.
        least, most: the smallest and the largest value allowed; None for no limit.
        error: the class of the error.

    Raises:
        EmuEmbodiedError: of the class `error`: another type, or outside the range.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and _within(value, least, most):
        return int(value)
    raise error(field, value, f"give a whole number{_range(least, most)}")


def number(
    field: str, value: object, least: float | None = None, most: float | None = None, error: Kind = ConfigError
) -> float:
    """Returns a finite real number of Python's or NumPy's as a float. Booleans are refused.

    Args:
        field, value, least, most, error: as for `whole_number`.

    Raises:
        EmuEmbodiedError: of the class `error`: another type, not finite, or outside the range.
    """
    try:
        found = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # of an integer of 400 digits
        found = math.inf
    if math.isfinite(found) and _within(found, least, most):
        return found
    raise error(field, value, f"give a finite number{_range(least, most)}")


def whole_fields(config: object, ranges: Mapping[str, tuple[int, int | None]], error: Kind = ConfigError) -> None:
    """Checks whole numbers among an object's attributes, and makes them Python's: name -> smallest and largest value allowed.

    Raises:
        EmuEmbodiedError: of the class `error`, for the first that is none, or outside its range.
    """
    for name, (least, most) in ranges.items():
        object.__setattr__(config, name, whole_number(name, getattr(config, name), least, most, error))


def number_fields(config: object, ranges: Mapping[str, tuple[float, float | None]], error: Kind = ConfigError) -> None:
    """As `whole_fields`, of finite numbers; they become floats."""
    for name, (least, most) in ranges.items():
        object.__setattr__(config, name, number(name, getattr(config, name), least, most, error))


def choice(field: str, value: object, options: Collection[str], error: Kind = ConfigError) -> str:
    """Returns a text that is one of `options`.

    Raises:
        EmuEmbodiedError: of the class `error`: it is none of them; the remedy suggests the nearest.
    """
    if isinstance(value, str) and value in options:
        return value
    raise error(field, value, suggest(value, options))


def env_id(field: str, value: object, error: Kind = ConfigError) -> str:
    """Returns a Gymnasium id that names an env and nothing else: `MODULE:ID` would have Gymnasium import the module.

    Raises:
        EmuEmbodiedError: of the class `error`: something else.
    """
    if isinstance(value, str) and len(value) <= 200 and _ENV_ID.fullmatch(value):
        return value
    rule = (
        "a file names a registered env, like emu_embodied/TabletopPush-v0, and no module to import: import it yourself"
    )
    raise error(field, value, rule)


def registered_id(env_id: str) -> str:
    """The id under which Gymnasium registers an env, of one that may also name the module to import first."""
    return env_id.rpartition(":")[2]


def suggest(word: object, options: Collection[str]) -> str:
    """A remedy for an unknown word: the nearest option, if one is near, and all of them."""
    near = difflib.get_close_matches(word, options, 1) if isinstance(word, str) else []
    return (f"did you mean {near[0]}? " if near else "") + f"choose among: {', '.join(options) or '(none)'}"


def check_seed(value: object, field: str = "seed", error: Kind = InputError) -> int:
    """Returns a seed, a whole number from 0 to 2^63 - 1 of Python's or NumPy's, as an int.

    Raises:
        EmuEmbodiedError: of the class `error`: another type, or outside the range.
    """
    return whole_number(field, value, 0, 2**63 - 1, error)


def derived_seed(*numbers: int) -> int:
    """A seed of its own for everything that several whole numbers of at least 0 tell apart, as a seed, a world and a step."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def numbers_of(field: str, value: object, rule: str = "give an array of float32", error: Kind = InputError) -> np.ndarray:
    """Returns finite real numbers as an array in the machine's byte order, whatever the caller's layout.

    Raises:
        EmuEmbodiedError: of the class `error`: no array of numbers, a masked one, or numbers that are not finite.
    """
    try:
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError("a masked array, whose gaps would not be filled")
        array = np.asarray(value)
    except Exception as reason:  # ragged lists, tensors that NumPy cannot see, objects with an `__array__` of their own
        raise error(field, str(reason), rule) from None
    if array.dtype.kind not in "fiu":
        raise error(field, f"dtype {array.dtype}", rule)
    if not np.isfinite(array).all():
        raise error(field, "NaN or inf", "give finite numbers")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def frame_of(field: str, value: object, shape: tuple[int, ...], error: Kind = InputError) -> np.ndarray:
    """Returns a picture (H, W, 3), or several, uint8.

    Raises:
        EmuEmbodiedError: of the class `error`: no plain NumPy array of this shape and dtype.
    """
    found = type(value).__name__
    if isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray):
        if value.dtype == np.uint8 and value.shape == shape:
            return value
        found = f"{value.dtype} {value.shape}"
    raise error(field, found, f"give a uint8 RGB array of shape {shape}")


def _within(value, least, most) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def _range(least, most) -> str:
    if least is not None and most is not None:
        return f" from {least} to {most}"
    if least is not None:
        return f" of at least {least}"
    return "" if most is None else f" of at most {most}"
