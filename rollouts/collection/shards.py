"""Datasets recorded in shards: a crash loses the shards in flight, and a second call goes on. Knows not what they show."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Protocol

from emu_embodied.data.lerobot_files import SIDECAR
from emu_embodied.data.lerobot_format import Names, merge_datasets, read_notes, write_dataset, write_notes
from emu_embodied.errors import DatasetError
from emu_embodied.storage.regular import check_tree
from emu_embodied.storage.runs import refuse_other
from emu_embodied.types import Episode
from emu_embodied.validation import whole_number

CONFIG, STATISTICS = Path("config.json"), Path("meta", "part.json")


@dataclass(frozen=True)
class Shard:
    """`count` episodes from episode `first` on: the unit of work, and of what a crash can lose."""

    index: int
    first: int
    count: int

    @property
    def name(self) -> str:
        return f"part-{self.index:05d}"


def split(episodes: int, per_shard: int) -> list[Shard]:
    """All the shards of so many episodes."""
    return [Shard(i, first, min(per_shard, episodes - first)) for i, first in enumerate(range(0, episodes, per_shard))]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second collector away, and clears away what is left half-written, by a killed one or by a full disk.

    Raises:
        DatasetError: another one is at work, the folder cannot be made, or what is in it leads elsewhere.
    """
    check_tree(folder, DatasetError)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "a+")
    except OSError as error:
        raise DatasetError("root", str(folder), f"{error.strerror}; choose a folder that can be written") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            who = f"another collector is at work there (pid {lock.read().strip() or 'unknown'})"
            raise DatasetError("root", str(folder), f"{who}; wait for it, or choose another folder") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        _clear(folder)
        try:
            yield
        finally:
            _clear(folder)
            if not any(folder.glob("part-?????")):
                shutil.rmtree(folder, ignore_errors=True)


def _clear(folder: Path) -> None:
    for litter in folder.glob("*.partial"):
        shutil.rmtree(litter, ignore_errors=True)


class Recorded(Protocol):
    """A dataclass that sums a dataset up."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def complete(self) -> bool: ...


def complete_dataset[Summary: Recorded](
    root: Path,
    settings: Any,
    packages: Sequence[str],
    per_shard: int,
    *,
    read: Callable[[Path], Summary],
    record: Callable[[list[Shard], Path], None],
    join: Callable[[list[Shard], Path, bool], Summary],
) -> Summary:
    """Has the missing shards of a dataset recorded, and joins all; at Ctrl-C, those that are finished.

    Args:
        root: the dataset's folder.
        settings: a dataclass, what determines the dataset; its `episodes` are split.
        packages: as in `check_settings`.
        per_shard: episodes of a shard.
        read: the summary of what was joined at `root` before; its `complete` says whether anything is missing.
        record: writes these shards into a folder.
        join: joins these shards of a folder, which are all or not, and gives the summary.

    Returns:
        The summary; `recorded` counts the episodes of this call.

    Raises:
        DatasetError: as `locked`, `check_settings`, and the three functions.
        KeyboardInterrupt: after the finished shards were joined.
    """
    folder = root.with_name(root.name + ".parts")
    with locked(folder):
        check_settings(asdict(settings), root, folder, packages)
        if (root / SIDECAR).is_file() and (before := read(root)).complete:
            shutil.rmtree(folder, ignore_errors=True)
            return before
        shards = split(settings.episodes, per_shard)
        missing = [shard for shard in shards if not (folder / shard.name).is_dir()]

        def joined() -> Summary | None:
            done = [shard for shard in shards if (folder / shard.name).is_dir()]
            return join(done, folder, len(done) == len(shards)) if done else None

        try:
            record(missing, folder)
        except KeyboardInterrupt:
            joined()
            raise
        summary = joined()
        assert summary is not None  # all shards are finished
        shutil.rmtree(folder, ignore_errors=True)
        return replace(summary, recorded=sum(shard.count for shard in missing))


def check_settings(settings: dict[str, Any], root: Path, folder: Path, packages: Sequence[str]) -> None:
    """Compares with what was begun here before; a first call leaves its settings for the next.

    Args:
        settings: what determines the dataset.
        root: the dataset's folder.
        folder: where its shards are.
        packages: whose versions shards of one dataset share, as far as they are installed.

    Raises:
        DatasetError: other settings or versions, named, or something else at `root`.
    """
    previous = root.with_name(f".{root.name}.previous")
    if previous.is_dir():  # a crash in the middle of `_swap`
        shutil.rmtree(previous) if root.exists() else previous.rename(root)
    if root.exists() and not (root / SIDECAR).is_file() and (not root.is_dir() or any(root.iterdir())):
        raise DatasetError("root", str(root), "something else is there; choose another folder")
    now, versions = _flat(settings), _versions(packages)
    if (folder / CONFIG).is_file():
        then = _flat(read_notes(folder / CONFIG))
        begun_by = then.pop("versions", versions)  # shards of older releases have none
        refuse_other(now | {"versions": versions}, then | {"versions": begun_by}, root, "another folder", DatasetError)
    if (root / SIDECAR).is_file():
        then = read_notes(root / SIDECAR).get("settings", {})
        if not isinstance(then, dict):
            raise DatasetError(f"{root / SIDECAR}: settings", then, "must be a JSON object; choose another folder")
        refuse_other(now, _flat(then), root, "another folder", DatasetError)
    write_notes(folder / CONFIG, settings | {"versions": versions})


def _versions(packages: Sequence[str]) -> dict[str, str]:
    return {name: found.version for name in packages for found in metadata.distributions(name=name)}


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    # An option that is off counts as not given: it may not have been there yet when the dataset was begun.
    found = settings.get("env_options")
    options = (
        {f"env_options.{name}": value for name, value in found.items() if value} if isinstance(found, dict) else {}
    )
    return {name: value for name, value in settings.items() if name != "env_options"} | options


def write_shard(
    shard: Shard, folder: Path, episodes: Iterable[Episode], names: Names, fps: int, statistics: dict[str, Any]
) -> None:
    """Writes one shard; its folder gets its name only when all of it is on the disk.

    Args:
        shard, folder: which, and where the shards are.
        episodes, names, fps: see `write_dataset`.
        statistics: what is noted of it; read after the episodes, which may fill it in.

    Raises:
        DatasetError: a disk that does not take it.
    """
    partial = folder / f"{shard.name}.{os.getpid()}.partial"
    try:
        write_dataset(partial, episodes, names, fps)
        write_notes(partial / STATISTICS, statistics)
        _sync(partial)
        partial.rename(folder / shard.name)
    except ConnectionError:
        raise  # whoever was told of it is gone
    except OSError as error:
        fault = f"not written: {error.strerror or error}"
        raise DatasetError(str(folder / shard.name), fault, "free space and call again; the shards are kept") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # on a full disk what was half written is in the way


def read_statistics(shard: Shard, folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """What was noted of a finished shard.

    Args:
        shard, folder: which, and where the shards are.
        names: the counts that it must have.

    Raises:
        DatasetError: the note is missing or damaged, or counts are none.
    """
    place = folder / shard.name / STATISTICS
    found = {"failures": []} | read_notes(place)
    for name in names:
        least = 0 if name in ("successes", "moving_steps") else 1
        whole_number(f"{place}: {name}", found.get(name), least, 10**12, DatasetError)
    if not isinstance(found["failures"], list):
        raise DatasetError(f"{place}: failures", found["failures"], "expected a list; remove the shard, to record it again")
    return found


def join_shards(done: Sequence[Shard], folder: Path, root: Path, notes: dict[str, Any], packages: Sequence[str]) -> None:
    """Joins finished shards at `root`, replacing what was joined there before.

    Args:
        done: the shards, in order.
        folder: where they are.
        root: the dataset's folder.
        notes: for its `meta/emu_embodied.json`, to which versions and the shards' first episodes are added.
        packages: whose versions, as far as they are installed.

    Raises:
        DatasetError: a damaged shard, or a disk that does not take it.
    """
    partial = root.with_name(f".{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        merge_datasets([folder / shard.name for shard in done], partial)
        document = {
            **notes,
            "versions": _versions(packages),
            "first_episodes": [[shard.first, shard.count] for shard in done],  # seeds: settings.seed + these
        }
        write_notes(partial / SIDECAR, document)
        _sync(partial)
        _swap(partial, root)
    except OSError as error:
        raise DatasetError(str(root), str(error), "free space and call again; the shards are kept") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap(partial: Path, root: Path) -> None:
    previous = root.with_name(f".{root.name}.previous")
    if root.exists():
        root.rename(previous)
    partial.rename(root)
    shutil.rmtree(previous, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Makes sure that a folder's files are on the disk before it is renamed."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
