"""A journal of episodes: JSON lines, the settings first, that a kill leaves readable and no other settings continue."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from emu_embodied import __version__
from emu_embodied.errors import ConfigError
from emu_embodied.storage.atomic import writing
from emu_embodied.storage.regular import read_file
from emu_embodied.storage.runs import refuse_other
from emu_embodied.storage.strict_json import MAX_VALUES, count_values, is_deep

MOST_BYTES, LARGEST = 1 << 28, 2**53  # of a journal; of a number in it


def open_journal(
    path: Path, settings: Mapping[str, Any], kinds: Mapping[str, type] = MappingProxyType({})
) -> dict[int, dict[str, Any]]:
    """Rows by seed of a journal; a new one gets its first line, the settings. A line that a kill cut short is dropped.

    The package's version is one of the settings.

    Args:
        path: the file.
        settings: what determines its rows.
        kinds: what else than its seed a row must have: bool, str, int, float (any finite number), or list of such numbers.

    Raises:
        ConfigError: something else is there, or it was begun with other settings, which are named.
        CheckpointError: a file that is no journal's size, or no file.
    """
    now = json.loads(json.dumps(settings)) | {"version": __version__}
    lines = read_file(path, MOST_BYTES).splitlines(keepends=True) if os.path.lexists(path) else []
    if lines and not lines[-1].endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(sum(map(len, lines[:-1])))
        lines.pop()
    if not lines:
        append(path, {"settings": now})
        return {}
    try:
        if sum(map(count_values, lines)) > MAX_VALUES:
            raise ValueError("too many values")
        then, *rows = map(json.loads, lines)
        if any(map(is_deep, (then, *rows))):
            raise ValueError("too many levels")
        then, by_seed = dict(then["settings"]), {row["seed"]: row for row in rows}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError("journal", str(path), "it is no journal of episodes; choose another folder") from None
    refuse_other(now, {"version": __version__} | then, path, "a new folder")  # older journals do not name theirs
    for row in rows:
        for name, kind in {"seed": int, **kinds}.items():
            if not _is(row.get(name), kind):
                rule = "it is no row of this journal: remove its line, and the episode is played again"
                raise ConfigError(f"{path}: {name}", row.get(name), rule)
    return by_seed


def _is(value: object, kind: type) -> bool:
    """Whether a value is of a kind of `open_journal`'s, and numbers can be counted with."""
    if kind is list:
        return isinstance(value, list) and all(_is(item, float) for item in value)
    if kind in (int, float):
        return isinstance(value, int | float) and type(value) in (int, kind) and abs(value) < LARGEST
    return type(value) is kind


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a row, and has it on the disk when it returns.

    Raises:
        CheckpointError: a disk that does not take it; the rows before it stay.
    """
    with writing(path), path.open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
