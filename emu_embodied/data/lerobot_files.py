"""The files of a LeRobotDataset v3, read without LeRobot: descriptions, columns, texts. Knows no pixels and no model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emu_embodied.errors import CheckpointError, DatasetError
from emu_embodied.storage import read_json
from emu_embodied.types import ACTION

TASKS = Path("meta", "tasks.parquet")
SIDECAR = Path("meta", "emu_embodied.json")  # what we note about a dataset that we wrote
_PLAIN = re.compile(r"(?!.*\.\.)[\w. -]+")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def dataset_folder(name: str | Path) -> Path:
    """The folder of a dataset: the path itself, or where LeRobot keeps what a hub name ("lerobot/pusht") stands for.

    Raises:
        DatasetError: neither the folder is there nor can the hub give it.
    """
    root = Path(name)
    if root.is_dir() or not HUB_NAME.fullmatch(str(name)):
        return root.absolute()
    try:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        return Path(LeRobotDataset(str(name)).root)
    except Exception as error:  # the hub, its client and LeRobot raise many kinds
        reason = " ".join(str(error).split()) or repr(error)
        remedy = f"no such folder, and the hub did not give it ({type(error).__name__}): check the name and the network"
        raise DatasetError(str(name), reason, remedy) from error


def read_info(root: Path) -> dict[str, Any]:
    """A dataset's `meta/info.json`.

    Raises:
        DatasetError: there is no dataset, or it says nothing of its actions and sizes.
    """
    if not root.is_dir():
        raise DatasetError(str(root), "no such folder", "record one with `emu-embodied collect`, or check the path")
    try:
        info = read_json(root / "meta" / "info.json")
        for key, feature in info["features"].items():
            if not isinstance(feature["dtype"], str) or any(type(n) is not int or n < 1 for n in feature["shape"]):
                raise ValueError(f"a strange {key}")
            if not _PLAIN.fullmatch(key):  # it becomes a folder's name
                raise ValueError(f"{key!r} is no name of a column")
        info["features"][ACTION]  # noqa: B018  is it there?
        for key in ("total_frames", "total_episodes", "fps"):
            if not info[key] > 0 or (key != "fps" and type(info[key]) is not int):
                raise ValueError(f"{key} is {info[key]}")
    except (CheckpointError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise DatasetError(str(root), f"{type(error).__name__}: {error}", "expected a LeRobotDataset v3") from error
    return info


def read_statistics(root: Path, key: str) -> dict[str, list] | None:
    """A column's statistics in `meta/stats.json`; None where there are none to be read."""
    try:
        found = read_json(root / "meta" / "stats.json")[key]
    except (CheckpointError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def data_files(root: Path) -> list[Path]:
    """The parquet files with the rows, in order.

    Raises:
        DatasetError: there are none.
    """
    paths = sorted((root / "data").glob("*/*.parquet"))
    if not paths:
        raise DatasetError(str(root / "data"), "no parquet files", "expected a LeRobotDataset v3; record it anew")
    return paths


def element_names(feature: dict[str, Any] | None, size: int | None = None) -> list[str]:
    """The names of a vector's elements; their numbers where the dataset has none."""
    if feature is None:
        return []
    names = feature.get("names")
    if isinstance(names, dict):  # LeRobot's {"motors": [...]}
        names = next(iter(names.values()), None)
    size = int(np.prod(feature["shape"])) if size is None else size
    fits = isinstance(names, list) and len(names) == size
    return [str(name) for name in names] if fits else [str(i) for i in range(size)]


def read_pieces(path: Path, columns: Sequence[str], pictures: Sequence[str]) -> Iterator[dict[str, Any] | DatasetError]:
    """A data file's rows: all at once, or, where it is damaged, those of each row group that can be read.

    Args:
        path: the file.
        columns: wanted as arrays (rows, ...), floats as float32.
        pictures: wanted as lists of encoded pictures.

    Yields:
        Values by column, or what is wrong with the file or the group.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    faults, wanted = (pyarrow.ArrowException, OSError, DatasetError), [*pictures, *columns]

    def damage(error: Exception, where: str = "") -> DatasetError:
        if isinstance(error, DatasetError):
            return error
        remedy = "the file is damaged; restore it, or record the dataset anew"
        return DatasetError(f"{path}{where}", " ".join(str(error).split()), remedy)

    try:
        file = parquet.ParquetFile(path, page_checksum_verification=True)
        missing = set(wanted) - set(file.schema_arrow.names)
        if missing:
            raise DatasetError(
                str(path), f"no {sorted(missing)[0]}", "a file of another dataset? restore the right one"
            )
    except faults as error:
        yield damage(error)
        return
    try:
        yield _values(path, file.read(columns=wanted), columns, pictures)
    except faults as error:
        if file.num_row_groups == 1:
            yield damage(error)
            return
        for i in range(file.num_row_groups):
            try:
                yield _values(path, file.read_row_group(i, columns=wanted), columns, pictures)
            except faults as error:
                yield damage(error, f", row group {i}")


def _values(path: Path, table: Any, columns: Sequence[str], pictures: Sequence[str]) -> dict[str, Any]:
    import pyarrow

    values: dict[str, Any] = {
        name: [row and row["bytes"] for row in table.column(name).to_pylist()] for name in pictures
    }
    for name in columns:
        column = table.column(name).combine_chunks()
        if column.null_count:
            raise DatasetError(str(path), f"empty cells in {name}", "the file is damaged; record the dataset anew")
        if pyarrow.types.is_list(column.type) or pyarrow.types.is_fixed_size_list(column.type):
            flat = column.flatten().to_numpy(zero_copy_only=False)
            if len(column) and len(flat) % len(column):
                raise DatasetError(str(path), f"rows of several sizes in {name}", "record the dataset anew")
            array = flat.reshape(len(column), -1)
        else:
            array = column.to_numpy(zero_copy_only=False)
        values[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
    return values


def read_tasks(root: Path) -> dict[int, str]:
    """The texts by task number.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    path = root / TASKS
    try:
        table = parquet.read_table(path)
        text = next(name for name in table.column_names if name != "task_index")
        return dict(zip(table.column("task_index").to_pylist(), table.column(text).to_pylist(), strict=True))
    except (pyarrow.ArrowException, OSError, KeyError, StopIteration) as error:
        raise DatasetError(str(path), repr(error), "the file is damaged or missing; restore it") from error


def read_episodes(root: Path, columns: Sequence[str]) -> dict[int, dict[str, Any]]:
    """Values of `columns` in `meta/episodes`, by episode.

    Raises:
        DatasetError: the files are missing or damaged, or lack a column.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    rows: dict[int, dict[str, Any]] = {}
    for path in sorted((root / "meta" / "episodes").glob("*/*.parquet")):
        try:
            for row in parquet.read_table(path, columns=["episode_index", *columns]).to_pylist():
                rows[row["episode_index"]] = {name: row[name] for name in columns}
        except (pyarrow.ArrowException, OSError, KeyError) as error:
            raise DatasetError(str(path), repr(error), "the file is damaged; restore it") from error
    if not rows:
        raise DatasetError(str(root / "meta" / "episodes"), "no episodes", "expected a LeRobotDataset v3; restore it")
    return rows
