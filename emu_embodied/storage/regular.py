"""Regular files read and nothing else: no pipe, no device, no link out of a folder. Knows no format but JSON."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from emu_embodied.errors import CheckpointError, EmuEmbodiedError

from .strict_json import parse_json
from .tensor_header import RESTORE

MAX_JSON_BYTES = 16 << 20  # of a JSON file, and of a text beside it
SMALL = 64 << 20  # bytes for which nobody asks whether the memory has room


def read_file(path: str | os.PathLike, limit: int) -> bytes:
    """Reads one regular file of at most `limit` bytes; links are followed.

    Raises:
        CheckpointError: missing, too large, or something else, which is not opened.
    """
    return read(Path(path), limit)


def read_json(path: str | os.PathLike, folder: Path | None = None) -> Any:
    """Reads one JSON file, whatever it holds.

    Args:
        path: the file.
        folder: see `regular_file`.

    Raises:
        CheckpointError: missing, elsewhere, too large, not JSON, duplicate keys or non-finite numbers.
    """
    return parse_json(str(path), read(Path(path), MAX_JSON_BYTES, folder))


def regular_file(path: str | os.PathLike, folder: Path | None = None) -> Path:
    """Where a path leads, links followed: a regular file, never a pipe, a device or a folder. Opens nothing.

    Args:
        path: the file.
        folder: where it has to lie. What links of a snapshot in the Hub's cache (REPOSITORY/snapshots/REVISION) lead to in
            REPOSITORY/blobs counts as inside.

    Raises:
        CheckpointError: missing, not a regular file, or outside the folder.
    """
    try:
        real = Path(os.path.realpath(path, strict=True))
        regular = real.is_file()
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(str(path), found, f"check the path, or {RESTORE}") from error
    if not regular or not (folder is None or any(real.is_relative_to(home) for home in _homes(folder))):
        raise CheckpointError(str(path), f"leads to {real}", "only regular files inside the folder are read")
    return real


def check_room(path: str | os.PathLike, size: int) -> None:
    """Refuses to read more than half of the memory that is free: a file's size is what its maker says, holes cost nothing, and
    the other half is for what is made of it.

    Raises:
        CheckpointError: it is more.
    """
    if size > SMALL and size > (room := _free_memory() / 2):
        told = f"more than half of the memory that is free, {room / 1e9:.1f} GB, is not read: close other programs"
        raise CheckpointError(str(path), f"{size / 1e9:.1f} GB", told)


def _free_memory() -> float:
    """Bytes, as Linux tells them; without end elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(float(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return math.inf


def check_tree(folder: str | os.PathLike, error: type[EmuEmbodiedError] = CheckpointError) -> None:
    """Refuses a folder in which something leads elsewhere or waits: links out of it, pipes, devices. A missing one is empty.

    For folders that are written to and may be anybody's: what is written through such a link changes what lies elsewhere.

    Args:
        folder: the folder, which may be a link itself.
        error: the class of the error.

    Raises:
        EmuEmbodiedError: of the class `error`, for the first that is found.
    """
    home = os.path.realpath(folder)
    for place, folders, files in os.walk(home):
        for path in (os.path.join(place, name) for name in (*folders, *files)):
            with suppress(FileNotFoundError):  # whoever is at work there has removed it
                mode, real = os.lstat(path).st_mode, os.path.realpath(path)
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                    raise error(path, "a pipe, a socket or a device", "remove it, or use another folder")
                if not Path(real).is_relative_to(home):
                    raise error(path, f"leads to {real}", f"nothing outside {folder} is written: remove the link")


def _homes(folder: Path) -> list[Path]:
    """The folder, and the blobs of the Hub's cache where it lies in a snapshot of that."""
    folder = Path(os.path.realpath(folder))
    caches = [place.parent.parent for place in (folder, *folder.parents) if place.parent.name == "snapshots"]
    return [folder, *(cache / "blobs" for cache in caches[:1])]


def read(path: Path, limit: float, folder: Path | None = None) -> bytes:
    """Reads a file of at most `limit` bytes; see `regular_file`."""
    with opened(path, limit, folder) as (file, size):
        check_room(path, size)
        return file.read(size)


@contextmanager
def opened(path: Path, limit: float, folder: Path | None = None) -> Iterator[tuple[BufferedReader, int]]:
    """Such a file and its size. Nothing else is opened, for a device can act and a pipe can wait."""
    real = regular_file(path, folder)
    try:
        with open(real, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):  # it was exchanged meanwhile
                raise CheckpointError(str(path), "no regular file", "only regular files inside the folder are read")
            if found.st_size > limit:
                raise CheckpointError(
                    str(path), f"{found.st_size} bytes", f"at most {limit:.0f} are expected; {RESTORE}"
                )
            yield file, found.st_size
    except OSError as error:
        raise CheckpointError(str(path), error.strerror or str(error), f"check the path, or {RESTORE}") from error
