"""The files of a LeRobotDataset v3, read without LeRobot: columns, pictures, texts. Knows no pixels and no model.

Files may be anybody's: only regular ones inside the dataset are opened, and their own footers must not tell of more rows,
numbers or bytes than `meta/info.json` does before anything is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emu_embodied.errors import CheckpointError, DatasetError
from emu_embodied.storage.regular import regular_file
from emu_embodied.types import short_repr
from emu_embodied.validation import number, whole_number

TASKS = Path("meta", "tasks.parquet")
EPISODES = Path("meta", "episodes")
SIDECAR = Path("meta", "emu_embodied.json")  # what we note about a dataset that we wrote
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
AT_ONCE = 64  # encoded pictures that are held
EXPANSION, FREELY = 1000, 2**29  # most bytes that a byte of a file becomes; bytes that are read without asking
MOST_LISTED = 2_000_000  # rows of a file of episodes or tasks
MOST_BYTES, MOST_LETTERS = 2**28, 10_000  # of a file of episodes or tasks, of a task
_RESTORE = "the file is damaged; restore it, or record the dataset anew"


def dataset_folder(name: str | Path) -> Path:
    """The folder of a dataset: the path itself, or where LeRobot keeps what a hub name ("lerobot/pusht") stands for.

    Raises:
        DatasetError: neither the folder is there nor can the hub give it.
    """
    root = Path(name)
    if os.path.isdir(root) or not HUB_NAME.fullmatch(str(name)):
        return root.absolute()
    try:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        return Path(LeRobotDataset(str(name)).root)
    except Exception as error:  # the hub, its client and LeRobot raise many kinds
        reason = " ".join(str(error).split()) or repr(error)
        remedy = f"no such folder, and the hub did not give it ({type(error).__name__}): check the name and the network"
        raise DatasetError(str(name), reason, remedy) from error


def data_files(root: Path) -> list[Path]:
    """The parquet files with the rows, in order.

    Raises:
        DatasetError: there are none.
    """
    paths = sorted((root / "data").glob("*/*.parquet"))
    if not paths:
        raise DatasetError(str(root / "data"), "no parquet files", "expected a LeRobotDataset v3; record it anew")
    return paths


def own_file(root: Path, path: Path) -> Path:
    """Where a file of a dataset really is.

    Raises:
        DatasetError: it is missing, no regular file (a pipe would wait for ever, a device never end), or outside.
    """
    try:
        return regular_file(path, root)
    except CheckpointError as error:
        raise DatasetError(error.field, error.value, error.remedy) from error


@dataclass(frozen=True)
class Piece:
    """A row group of a data file.

    Attributes:
        values: (rows, ...) by column; numbers are float32, and int64 where they count something.
        pictures: yields the first of some rows, and their encoded pictures by camera. It may find the group damaged, and
            then raises a DatasetError.
    """

    values: dict[str, np.ndarray]
    pictures: Iterator[tuple[int, dict[str, list[bytes | None]]]]

    __repr__ = short_repr


def count_rows(root: Path) -> int:
    """How many rows the data files' own footers tell of; damaged files have none.

    Raises:
        DatasetError: there are no files, or some that are no files of the dataset.
    """
    rows = 0
    for path in data_files(root):
        own_file(root, path)
        try:
            told = _open(root, path).metadata
            rows += max(told.num_rows, sum(told.row_group(i).num_rows for i in range(told.num_row_groups)))
        except DatasetError:
            pass  # `read_pieces` says so
    return rows


def check_expansion(root: Path, size: int) -> None:
    """Refuses frames and numbers that take much more than their files: equal rows and pictures cost a file nothing.

    Args:
        root: the dataset.
        size: bytes that all of it takes when it is read and decoded.

    Raises:
        DatasetError: they take more than `EXPANSION` times the bytes of the data files and videos, and are not few.
    """
    found = [os.stat(path) for path in (*data_files(root), *(root / "videos").rglob("*.mp4"))]
    there = sum(min(file.st_size, 512 * file.st_blocks or file.st_size) for file in found)  # holes are no bytes
    if size > FREELY + EXPANSION * there:
        told = f"{size / 1e9:.1f} GB in files of {there / 1e6:.1f} MB"
        raise DatasetError(str(root), told, f"more than {EXPANSION} times as much; give a smaller image_size, or split it")


def read_pieces(
    root: Path, path: Path, vectors: Mapping[str, int], counts: Sequence[str], pictures: Mapping[str, int]
) -> Iterator[Piece | DatasetError]:
    """A data file's rows, row group by row group.

    Args:
        root, path: the dataset and the file.
        vectors: columns wanted as float32, and how many numbers a row of each may hold.
        counts: columns wanted as whole numbers, one a row.
        pictures: columns of encoded pictures, and how many bytes a row of each has decoded.

    Yields:
        The rows of a group, or what is wrong with the file or the group.
    """
    try:
        file = _open(root, path)
        leaves = _leaves(path, file, [*vectors, *counts, *pictures])
    except DatasetError as error:
        yield error
        return
    sizes = {**vectors, **dict.fromkeys(counts, 1)}
    for i in range(file.num_row_groups):
        where = f"{path}, row group {i}" if file.num_row_groups > 1 else str(path)
        try:
            with _typed(where):
                _check_sizes(where, file.metadata.row_group(i), leaves, sizes, pictures)
                names = [leaf for name in (*vectors, *counts) for leaf in leaves[name]]
                table = file.read_row_group(i, columns=names, use_threads=False)
                values = {name: _array(where, name, table.column(name)) for name in vectors}
                values |= {name: _array(where, name, table.column(name), whole=True) for name in counts}
        except DatasetError as error:
            yield error
            continue
        yield Piece(values, _pictures(where, file, i, {name: leaves[name] for name in pictures}))


def _pictures(where: str, file: Any, group: int, leaves: dict[str, list[str]]) -> Iterator[tuple[int, dict[str, list]]]:
    if not leaves:
        return
    at, names = 0, [f"{name}.bytes" for name in leaves]
    if not all(name in leaf for name, leaf in zip(names, leaves.values(), strict=True)):
        raise DatasetError(where, f"no pictures in {names[0].removesuffix('.bytes')}", _RESTORE)
    with _typed(where):
        for batch in file.iter_batches(AT_ONCE, row_groups=[group], columns=names, use_threads=False):
            yield at, {name: batch.column(name).field("bytes").to_pylist() for name in leaves}
            at += len(batch)


def _open(root: Path, path: Path, texts: Sequence[str] = ()) -> Any:
    """A Parquet file; columns of `texts` come with each text once: one of many rows would take the memory of many."""
    import pyarrow.parquet as parquet

    with _typed(str(path)):
        file = parquet.ParquetFile(own_file(root, path), page_checksum_verification=True, read_dictionary=list(texts))
        if file.metadata.num_columns > 10_000:
            raise DatasetError(str(path), f"{file.metadata.num_columns} columns", _RESTORE)
        return file


@contextmanager
def _typed(where: str) -> Iterator[None]:
    """Turns what pyarrow raises about a damaged file into the typed error."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError, MemoryError) as error:
        raise DatasetError(where, " ".join(str(error).split()) or repr(error), _RESTORE) from error


def _leaves(path: Path, file: Any, wanted: Sequence[str]) -> dict[str, list[str]]:
    """The paths of the parquet columns of which each wanted one consists: names hold dots, and pyarrow selects by prefix."""
    tops = set(file.schema_arrow.names)
    if missing := sorted(set(wanted) - tops):
        raise DatasetError(str(path), f"no {missing[0]}", "a file of another dataset? restore the right one")
    leaves = {name: [] for name in wanted}
    for i in range(file.metadata.num_columns):
        top = leaf = file.schema.column(i).path
        while top and top not in tops:
            top = top.rpartition(".")[0]
        if top in leaves:
            leaves[top].append(leaf)
    return leaves


def _check_sizes(
    where: str, group: Any, leaves: dict[str, list[str]], sizes: Mapping[str, int], pictures: Mapping[str, int]
) -> None:
    """Refuses a row group whose footer tells of more than `info.json` does."""
    owner = {leaf: name for name, own in leaves.items() for leaf in own}
    for i in range(group.num_columns):
        column, rows = group.column(i), group.num_rows
        name = owner.get(column.path_in_schema)
        if name is None:
            continue
        if name in sizes and column.num_values > rows * sizes[name]:
            found = f"{column.num_values} numbers in {rows} rows"
            raise DatasetError(f"{where}: {name}", found, f"info.json tells of {sizes[name]} a row; restore the file")
        # PNGs of noise are hardly larger than what they show; the rest is for headers, dictionaries and levels
        most = rows * (16 * sizes[name] if name in sizes else 2 * pictures.get(name, 0) + 2**16) + 2**16
        if column.total_uncompressed_size > most:
            found = f"{column.total_uncompressed_size} bytes in {rows} rows"
            raise DatasetError(f"{where}: {name}", found, "more than they can have; restore the file")


def _read_small(path: Path, file: Any, wanted: Sequence[str], most: int) -> dict[str, Any]:
    """Columns of a description, by name, which are not read where they are no descriptions' size."""
    leaves = {leaf for own in _leaves(path, file, wanted).values() for leaf in own}
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema in leaves)
    most = min(most, MOST_LISTED)
    if max(file.metadata.num_rows, sum(group.num_rows for group in groups)) > most or size > MOST_BYTES:
        raise DatasetError(str(path), f"{file.metadata.num_rows} rows of {size} bytes", f"expected {most}; {_RESTORE}")
    with _typed(str(path)):
        table = file.read(columns=sorted(leaves))
    return {name: table.column(name) for name in wanted}


def _array(where: str, name: str, column: Any, whole: bool = False) -> np.ndarray:
    """A column as (rows,) or (rows, numbers): int64 where `whole`, else float32."""
    import pyarrow
    from pyarrow import types

    rows, column = len(column), column.combine_chunks()
    column = getattr(column, "storage", column)  # of the datasets library's matrices
    flat = column
    while types.is_list(flat.type) or types.is_large_list(flat.type) or types.is_fixed_size_list(flat.type):
        fixed = types.is_fixed_size_list(flat.type)
        if flat.null_count or not fixed and len(flat.value_lengths().unique()) > 1:
            raise DatasetError(where, f"rows of several sizes in {name}", "record the dataset anew")
        flat = flat.flatten()
    if types.is_dictionary(flat.type):
        flat = flat.dictionary_decode()
    numeric = types.is_integer(flat.type) or not whole and (types.is_floating(flat.type) or types.is_boolean(flat.type))
    if column.null_count or flat.null_count or not numeric:
        found = f"{flat.type} in {name}" if not numeric else f"empty cells in {name}"
        raise DatasetError(where, found, f"expected {'whole ' * whole}numbers; {_RESTORE}")
    if types.is_boolean(flat.type):
        flat = flat.cast(pyarrow.uint8())
    with np.errstate(over="ignore"):
        array = flat.to_numpy(zero_copy_only=False).astype(np.int64 if whole else np.float32)
    return array if flat is column else array.reshape(rows, -1)


def read_tasks(root: Path, most: int) -> dict[int, str]:
    """The texts by task number; at most so many.

    Raises:
        DatasetError: the file is missing or damaged, or holds something else than a text for each of different numbers.
    """
    from pyarrow import types

    path = root / TASKS
    file = _open(root, path)
    schema = file.schema_arrow
    texts = [field.name for field in schema if types.is_string(field.type) or types.is_large_string(field.type)]
    text = next((name for name in ("task", "__index_level_0__", *texts) if name in texts), None)
    if text is None or "task_index" not in schema.names:
        found = f"{file.metadata.num_rows} rows of {', '.join(schema.names)}"
        raise DatasetError(str(path), found, "expected texts and their task_index; restore the file")
    columns = _read_small(path, _open(root, path, [text]), ["task_index", text], most)
    with _typed(str(path)):
        numbers = _array(str(path), "task_index", columns["task_index"], whole=True).tolist()
        found = dict(zip(numbers, _texts(columns[text]), strict=True))
    if len(found) < len(numbers):
        raise DatasetError(f"{path}: task_index", "a number twice", "give each task a number of its own")
    for i, task in found.items():
        if not isinstance(task, str) or len(task) > MOST_LETTERS or i < 0:
            raise DatasetError(f"{path}: task {i}", task, f"expected a text of at most {MOST_LETTERS} letters")
    return found


def _texts(column: Any) -> list[Any]:
    """The values of a column of texts, in which equal ones are one object."""
    from pyarrow import types

    values: list[Any] = []
    for chunk in column.chunks:
        if types.is_dictionary(chunk.type):
            known = chunk.dictionary.to_pylist()
            values += [None if i is None else known[i] for i in chunk.indices.to_pylist()]
        else:
            values += chunk.to_pylist()
    return values


def read_episodes(root: Path, columns: Sequence[str], most: int) -> dict[int, dict[str, Any]]:
    """Values of `columns` in `meta/episodes`, by episode: seconds where they are called so, else whole numbers. A file
    has at most so many.

    Raises:
        DatasetError: the files are missing or damaged, or lack a column or a value.
    """
    rows: dict[int, dict[str, Any]] = {}
    wanted = ["episode_index", *columns]
    for path in sorted((root / EPISODES).glob("*/*.parquet")):
        values_of = _read_small(path, _open(root, path), wanted, most)
        with _typed(str(path)):
            listed = zip(*(values_of[name].to_pylist() for name in wanted), strict=True)
        for values in listed:
            index, *others = (_checked(f"{path}: {name}", v) for name, v in zip(wanted, values, strict=True))
            rows[int(index)] = dict(zip(columns, others, strict=True))
    if not rows:
        raise DatasetError(str(root / EPISODES), "no episodes", "expected a LeRobotDataset v3; restore it")
    return rows


def _checked(field: str, value: object) -> int | float:
    if field.endswith("timestamp"):
        return number(field, value, 0, 1e9, DatasetError)
    return whole_number(field, value, 0, 10**9, DatasetError)
