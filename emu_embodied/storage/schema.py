"""Dataclasses from JSON: their annotations say which types a value must have, their own checks which range. Knows no class.

A configuration that comes from a file is built here and nowhere else, so that no number of another type gets further.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from emu_embodied.errors import CheckpointError, EmuEmbodiedError
from emu_embodied.validation import Kind, number, suggest

MAX_ITEMS = 4096  # of a list or an object
MAX_TEXT = 4096  # characters of a text


def build[Built](kind: type[Built], value: object, field: str, error: Kind = CheckpointError) -> Built:
    """A dataclass from a JSON object.

    Fields are numbers, texts, booleans, None, tuples (JSON's lists), mappings with text keys, dataclasses, or unions of these.
    Those with a default may be absent; others than the fields may not be there.

    Args:
        kind: the dataclass.
        value: what JSON gave.
        field: where it stands, for the error: "runs/a/config.json: model"; empty where it is all there is.
        error: the class of the error.

    Raises:
        EmuEmbodiedError: of the class `error`: a value of another type, a field that is missing or unknown, or what the
            class itself refuses.
    """
    if not isinstance(value, dict):
        raise error(field, value, "must be a JSON object")
    hints = _hints(kind)
    if unknown := value.keys() - hints.keys():
        remedy = f"{suggest(min(unknown), hints)}; a newer release may have written it: update this one"
        raise error(field, f"an unknown key {min(unknown)!r}", remedy)
    for name in hints:
        if name not in value and not _optional(kind, name):
            raise error(field, f"no {name}", "it was written by another version: train it again")
    prefix = f"{field}." if field else ""
    given = {name: convert(hints[name], value[name], f"{prefix}{name}", error) for name in value}
    try:
        return kind(**given)
    except EmuEmbodiedError as fault:
        raise error(f"{prefix}{fault.field}", fault.value, fault.remedy) from None


def convert(hint: Any, value: object, field: str, error: Kind = CheckpointError) -> Any:
    """A value as its annotation wants it; arguments and errors as `build`."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _one_of(inner, value, field, error)
    if isinstance(hint, type) and is_dataclass(hint):
        return build(hint, value, field, error)
    if hint is float:
        return number(field, value, error=error)
    if origin is tuple and isinstance(value, list) and len(value) <= MAX_ITEMS:
        kinds = [inner[0]] * len(value) if inner[-1] is ... else inner
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(convert(kind, item, f"{field}[{i}]", error) for i, (kind, item) in pairs)
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, dict) and len(value) <= MAX_ITEMS:
        rest = {name: item for name, item in value.items() if convert(str, name, field, error) == name}
        return {name: convert(inner[1], item, f"{field}.{name}", error) for name, item in rest.items()}
    if hint in (int, bool, str, types.NoneType) and type(value) is hint and (not isinstance(value, str) or _printable(value)):
        return value
    raise error(field, value, f"must be {_told(hint)}")


def _one_of(hints: tuple, value: object, field: str, error: Kind) -> Any:
    """Of a union, the first kind that takes the value; the error is the first one's that could be meant."""
    faults = []
    for hint in hints:
        try:
            return convert(hint, value, field, error)
        except error as fault:
            faults.append(fault)
    raise next((fault for fault, hint in zip(faults, hints, strict=True) if hint is not types.NoneType), faults[0])


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind) if field.init}


@functools.cache
def _optional(kind: type, name: str) -> bool:
    (field,) = (field for field in fields(kind) if field.name == name)
    return field.default is not MISSING or field.default_factory is not MISSING


def _printable(text: str) -> bool:
    return len(text) <= MAX_TEXT and text.isprintable()


def _told(hint: Any) -> str:
    """What an annotation asks for, in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return f"a list of {'' if inner[-1] is ... else f'{len(inner)} '}values, each {_told(inner[0])}"
    if origin is not None:
        return f"an object of names, each with {_told(inner[-1])}"
    names = {int: "a whole number", bool: "true or false", str: f"a plain text of at most {MAX_TEXT} characters"}
    return names.get(hint, "null")
