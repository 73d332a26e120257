"""A journal of episodes: JSON lines, the settings first, that a kill leaves readable and no other settings continue."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emu_embodied import __version__
from emu_embodied.errors import ConfigError
from emu_embodied.runs import refuse_other
from emu_embodied.storage import writing


def open_journal(path: Path, settings: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Rows by seed of a journal; a new one gets its first line, the settings. A line that a kill cut short is dropped.

    The package's version is one of the settings.

    Raises:
        ConfigError: something else is there, or it was begun with other settings, which are named.
    """
    now = json.loads(json.dumps(settings)) | {"version": __version__}
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
        with path.open("r+b") as file:
            file.truncate(len("".join(lines).encode()))
    if not lines:
        append(path, {"settings": now})
        return {}
    try:
        then, *rows = map(json.loads, lines)
        then, by_seed = dict(then["settings"]), {row["seed"]: row for row in rows}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError("journal", str(path), "it is no journal of episodes; choose another folder") from None
    refuse_other(now, {"version": __version__} | then, path, "a new folder")  # older journals do not name theirs
    return by_seed


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a row, and has it on the disk when it returns.

    Raises:
        CheckpointError: a disk that does not take it; the rows before it stay.
    """
    with writing(path), path.open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
