"""What a folder's run is: the settings that determine it, compared when it goes on, and a lock. Knows nothing that runs."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from emu_embodied.errors import ConfigError, EmuEmbodiedError

from .regular import check_tree

LOCK = ".lock"
NAMED = 8  # fields that an error names with their values
_held: dict[Path, int] = {}  # folders that this process has locked -> the thread that did


def refuse_other(
    now: Mapping[str, Any],
    then: Mapping[str, Any],
    where: Path | str,
    remedy: str,
    error: type[EmuEmbodiedError] = ConfigError,
) -> None:
    """Compares the settings of a run with those that `where` was begun with.

    Args:
        now, then: nested mappings as JSON has them; a value that is absent counts as None.
        where: for the message.
        remedy: what to do instead of giving the same settings ("use another out=").
        error: the class of the error.

    Raises:
        EmuEmbodiedError: of the class `error`, if any differ; it names them, by their dotted names, with both values.
    """
    now, then = _flat(json.loads(json.dumps(now))), _flat(then)
    names = [name for name in {**now, **then} if now.get(name) != then.get(name)]
    if not names:
        return
    asked, begun = ([_short(values.get(name)) for name in names[:NAMED]] for values in (now, then))
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    many = len(names) > 1
    raise error(
        ", ".join(names[:NAMED]) + rest,
        asked if many else asked[0],
        f"{where} was begun with {begun if many else begun[0]!r}; give the same, or {remedy}",
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every leaf by its dotted name."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, Mapping) and value
        found |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return found


def _short(value: Any) -> Any:
    """A value as an error shows it; of a long text, such as a digest or a path, both ends."""
    text = value if isinstance(value, str) else repr(value)
    return value if len(text) <= 50 else f"{text[:12]}...{text[-20:]}"


@contextmanager
def locked(folder: Path, what: str, key: str = "out") -> Iterator[None]:
    """Keeps a second process away from a folder, which is made; one that was made and is left empty is removed again.

    The thread that holds a folder may lock it once more.

    Args:
        folder: the folder.
        what: is at work in it ("training"), for the message.
        key: by which it was given.

    Raises:
        ConfigError: another process is at work there, whose number is given; the folder cannot be made; or what is in it leads
            elsewhere.
    """
    place = Path(os.path.realpath(folder))
    if _held.get(place) == threading.get_ident():
        yield
        return
    check_tree(place, ConfigError)
    made = not place.exists()
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = open(place / LOCK, "a+")
    except OSError as error:
        raise ConfigError(key, str(folder), f"{error.strerror}; choose a folder that can be written") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            at_work = f"another {what} is at work in this folder (pid {owner})"
            raise ConfigError(key, str(folder), f"{at_work}: wait for it, or choose another {key}=") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        _held[place] = threading.get_ident()
        try:
            yield
        finally:
            del _held[place]
            with suppress(OSError):  # somebody may have removed it meanwhile
                if [entry.name for entry in place.iterdir()] == [LOCK]:
                    (place / LOCK).unlink()
                    if made:
                        place.rmdir()
