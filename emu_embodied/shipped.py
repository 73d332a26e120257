"""Names of checkpoints: those of the package, and where a name leads. Loads nothing, so that a slip shows at once."""

from __future__ import annotations

import os
from pathlib import Path

from emu_embodied.errors import CheckpointError
from emu_embodied.validation import suggest

SHIPPED = Path(__file__).resolve().parent / "checkpoints"


def shipped_checkpoints() -> list[str]:
    """The names of the checkpoints inside the package."""
    return sorted(folder.name for folder in SHIPPED.glob("*") if folder.is_dir())


def checkpoint_path(name_or_path: str | os.PathLike) -> Path:
    """The folder of a shipped checkpoint's name, or of a path.

    Raises:
        CheckpointError: it is neither; the remedy suggests the nearest name, or says what the folder is instead.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise CheckpointError("checkpoint", name_or_path, "give a shipped name or a checkpoint's folder, as a text")
    name = os.fspath(name_or_path)
    try:
        for path in (SHIPPED / name, Path(name)):
            if (path / "manifest.json").is_file():
                return path
    except (OSError, ValueError, TypeError):  # a name longer than a file's may be, a null byte, bytes
        pass
    remedy = f"{suggest(name, shipped_checkpoints())}; or give a checkpoint's folder"
    if os.path.isfile(os.path.join(name, "config.json")):
        remedy = "it has no manifest.json: a released folder, as it seems, which generate and `train preset=emu3.5` take"
    elif os.path.isdir(name):
        remedy = f"it has no manifest.json, and so is no checkpoint; {remedy}"
    raise CheckpointError("checkpoint", name, remedy)
