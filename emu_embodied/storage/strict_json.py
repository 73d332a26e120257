"""JSON of others, read strictly: unique keys, finite numbers, no more than a reader can hold. Knows the errors only."""

from __future__ import annotations

import json
import math

from emu_embodied.errors import CheckpointError, EmuEmbodiedError

Kind = type[EmuEmbodiedError]
MAX_VALUES = 1_500_000  # of a document; counted before it is parsed, for a byte can become a hundred
MAX_LEVELS = 64  # of lists and objects within each other
MAX_DIGITS = 300  # of a whole number: every such one is a finite float


def parse_json(field: str, data: bytes, error: Kind = CheckpointError) -> object:
    """The value that a JSON text stands for.

    Args:
        field: what the text is, for the error: a file's path.
        data: UTF-8.
        error: the class of the error.

    Raises:
        EmuEmbodiedError: of the class `error`: no JSON, duplicate keys, numbers that are not finite, too many values, or too
            many levels.
    """
    if count_values(data) > MAX_VALUES:
        raise error(field, f"{len(data)} bytes", f"more than {MAX_VALUES} values are not read")
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_unique, parse_int=_whole, parse_float=_finite, parse_constant=_finite
        )
    except (RecursionError, ValueError) as fault:
        raise error(field, str(fault), "must be UTF-8 JSON with unique keys and finite numbers") from fault
    if is_deep(value):
        raise error(field, f"more than {MAX_LEVELS} levels", "give lists and objects that are less deep")
    return value


def is_deep(value: object) -> bool:
    """Whether lists and objects lie within each other deeper than whoever walks through them by recursion can go."""
    level = [value]
    for _ in range(MAX_LEVELS):
        level = [x for it in level if isinstance(it, list | dict) for x in (it.values() if isinstance(it, dict) else it)]
        if not level:
            return False
    return any(isinstance(it, list | dict) for it in level)


def count_values(data: bytes) -> int:
    """How many values a JSON text may hold at most, told without parsing it."""
    return sum(map(data.count, b",:[{"))


def parse_object(field: str, data: bytes, error: Kind = CheckpointError) -> dict:
    """The same, of a text whose top level is an object.

    Raises:
        EmuEmbodiedError: as `parse_json`; or it is something else.
    """
    value = parse_json(field, data, error)
    if not isinstance(value, dict):
        raise error(field, value, "the top level must be a JSON object")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate keys")
    return result


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"{text[:20]}... has {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not finite")
    return number
