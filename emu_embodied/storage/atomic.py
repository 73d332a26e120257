"""Files written whole or not at all, whatever ends the process. Knows no folder's format."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from emu_embodied.errors import CheckpointError

from .strict_json import parse_json


def write_json(path: str | os.PathLike, value: object) -> None:
    """Writes one JSON file: all of it, or the old one stays.

    Raises:
        CheckpointError: a value that JSON does not know (NaN included), or a disk that does not take it.
    """
    write_bytes(path, encode_json(str(path), value))


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes one file: all of it, or the old one stays.

    Raises:
        CheckpointError: a disk that does not take it.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():  # who may do so would replace a device
        raise CheckpointError(str(path), "a folder, a device or a pipe", "name a file")
    with staged(target) as partial:
        write(partial, data)
        os.replace(partial, target)
        sync(target.parent)


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Types what the disk refuses while a file is written by other means than these functions.

    Raises:
        CheckpointError: a disk that does not take it.
    """
    try:
        yield
    except OSError as error:
        fault = (error.strerror or str(error)).partition("\n")[0]
        raise CheckpointError(str(path), f"not written: {fault}", "free space or choose another path") from error


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yields a sibling path to build in; removes it and those of dead processes, and types what the disk refuses."""
    prefix = f".{target.name}.partial-"
    partial = target.parent / f"{prefix}{os.getpid()}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for entry in target.parent.iterdir():
            owner = entry.name.removeprefix(prefix)
            if owner != entry.name and owner.isdecimal() and (entry == partial or not _alive(int(owner))):
                remove(entry)
        yield partial
    except OSError as error:
        remedy = "free space or choose another path; what was there before is still complete"
        raise CheckpointError(str(target), f"not written: {error.strerror or error}", remedy) from error
    finally:
        remove(partial)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError, OverflowError) as error:
        return isinstance(error, PermissionError)
    return True


def remove(path: Path) -> None:
    """Clears away what is there, as far as that can be: why not is no reason to hide why it was to go."""
    with suppress(OSError):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def write(path: Path, data: bytes) -> None:
    """Writes a file, and has it on the disk when it returns."""
    path.write_bytes(data)
    sync(path)


def sync(path: Path) -> None:
    """Has a file's bytes, or a folder's names, on the disk when it returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def encode_json(field: str, value: object) -> bytes:
    """A value as UTF-8 JSON that `parse_json` reads back.

    Raises:
        CheckpointError: naming `field`: numbers that are not finite, keys that are no texts or fall together, too many levels.
    """
    try:
        data = (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(field, str(error), "use finite numbers, texts, lists and dicts with text keys") from error
    parse_json(field, data)  # keys such as 1 and "1" fall together only here
    return data
