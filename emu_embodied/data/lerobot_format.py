"""Writes episodes as a LeRobotDataset v3 and joins such datasets; knows no simulator, model or training."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emu_embodied.errors import CheckpointError, DatasetError
from emu_embodied.storage.atomic import write_json
from emu_embodied.storage.regular import read_json
from emu_embodied.types import ACTION, OBS_ENVIRONMENT_STATE, OBS_IMAGE, OBS_STATE, REWARD, SUCCESS, TASK, Episode

Names = Mapping[str, Sequence[str]]  # OBS_STATE, OBS_ENVIRONMENT_STATE and ACTION -> a name per element


def dataset_features(episode: Episode, names: Names) -> dict[str, dict[str, Any]]:
    """The columns of a dataset of such episodes, in LeRobot's words; vectors without elements have none.

    Raises:
        DatasetError: a vector's length differs from the number of its names.
    """
    vectors = {OBS_STATE: episode.agent_pos, OBS_ENVIRONMENT_STATE: episode.states, ACTION: episode.actions}
    features = {
        OBS_IMAGE: {"dtype": "image", "shape": episode.pixels.shape[1:], "names": ["height", "width", "channels"]}
    }
    for key, values in vectors.items():
        if values.shape[1] != len(names[key]):
            raise DatasetError(key, f"{values.shape[1]} numbers", f"give as many names, not {len(names[key])}")
        if values.shape[1]:  # LeRobot has no empty columns
            features[key] = {"dtype": "float32", "shape": values.shape[1:], "names": list(names[key])}
    if episode.rewards is not None:
        features[REWARD] = {"dtype": "float32", "shape": (1,), "names": None}
    if episode.successes is not None:
        features[SUCCESS] = {"dtype": "bool", "shape": (1,), "names": None}
    return features


def episode_rows(episode: Episode) -> Iterable[dict[str, Any]]:
    """The T + 1 rows of an episode of T actions.

    Row t holds observation t, action t, and the reward and success on arrival at observation t + 1. The last row holds
    the last observation, a zero action, reward 0 and the last success once more.
    """
    last = len(episode.actions)
    for t in range(last + 1):
        done = t == last
        vectors = {OBS_STATE: episode.agent_pos[t], OBS_ENVIRONMENT_STATE: episode.states[t]}
        row = {
            OBS_IMAGE: episode.pixels[t],
            **{key: np.asarray(values, np.float32) for key, values in vectors.items() if len(values)},
            ACTION: np.zeros(episode.actions.shape[1], np.float32) if done else np.float32(episode.actions[t]),
            TASK: episode.instruction,
        }
        if episode.rewards is not None:
            row[REWARD] = np.array([0.0 if done else episode.rewards[t]], np.float32)
        if episode.successes is not None:
            row[SUCCESS] = np.array([bool(episode.successes[min(t, last - 1)])])
        yield row


def write_dataset(root: Path, episodes: Iterable[Episode], names: Names, fps: int) -> int:
    """Writes episodes, as they come, into a new LeRobotDataset v3 with PNG images; see `episode_rows` for the layout.

    Args:
        root: folder to make; must not exist. It is a valid dataset only once this function has returned.
        episodes: at least one; all with the same shapes.
        names: what the elements of OBS_STATE, OBS_ENVIRONMENT_STATE and ACTION are called.
        fps: frames (model steps) per second.

    Returns:
        The number of episodes written.

    Raises:
        DatasetError: the folder exists, or there are no episodes.
    """
    root = Path(root)
    if root.exists():
        raise DatasetError("root", str(root), "give a folder that does not exist yet")
    dataset, count = None, 0
    with _quiet_lerobot():
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        try:
            for episode in episodes:
                if dataset is None:
                    features = dataset_features(episode, names)
                    dataset = LeRobotDataset.create(root.name, fps, features, root=root, use_videos=False)
                for row in episode_rows(episode):
                    dataset.add_frame(row)
                dataset.save_episode()
                count += 1
            if dataset is not None:
                dataset.finalize()
        except BaseException:
            _abandon(dataset)
            raise
    if not count:
        raise DatasetError("episodes", "none", "give at least one episode")
    return count


def _abandon(dataset: Any) -> None:
    """Stops LeRobot's writers for good: else they go on when they are collected, and make anew a folder that was removed."""
    for part in (getattr(dataset, "writer", None), getattr(dataset, "meta", None)):
        if part is not None:
            with suppress(Exception):
                part.finalize()
            part._finalized = True


def merge_datasets(parts: Sequence[Path], root: Path) -> None:
    """Joins datasets of the same features into a new one, episode after episode, without decoding an image. The same parts
    give the same bytes.

    LeRobot's `aggregate_datasets` takes the same input, but passes every image through Python lists and the datasets
    cache: some hundred frames per second, against tens of thousands here.

    Args:
        parts: roots of complete datasets, in the order in which their episodes are to follow.
        root: folder to make; must not exist. It is a valid dataset only once this function has returned.

    Raises:
        DatasetError: a part is damaged or has other features than the first, or the folder exists.
    """
    root = Path(root)
    if root.exists():
        raise DatasetError("root", str(root), "give a folder that does not exist yet")
    with _quiet_lerobot():
        import pandas
        from lerobot.datasets import aggregate
        from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
        from lerobot.datasets.io_utils import write_stats
        from lerobot.datasets.utils import DEFAULT_EPISODES_PATH

        sources: list[Any] = [_read_part(part) for part in parts]  # of no type of LeRobot's; see `_Part`
        for source, part in zip(sources, parts, strict=True):
            if source.features != sources[0].features or source.fps != sources[0].fps:
                raise DatasetError(str(part), "other features or fps", f"only datasets like {parts[0]} can be joined")
        merged = LeRobotDatasetMetadata.create(
            root.name, sources[0].fps, sources[0].features, root=root, use_videos=False
        )
        texts = pandas.concat([source.tasks for source in sources]).index.unique()
        merged.tasks = pandas.DataFrame({"task_index": range(len(texts))}, index=pandas.Index(texts, name="task"))
        writer, tables = _DataWriter(merged), []
        for source in sources:
            moved: aggregate.IndexState = {"chunk": 0, "file": 0, "src_to_dst": writer.copy(source)}
            for path in sorted(source.root.glob("meta/episodes/*/*.parquet")):
                frame = pandas.read_parquet(path)
                tables.append(aggregate.update_meta_data(frame, merged, {"chunk": 0, "file": 0}, moved, {}))
            merged.info.total_episodes += source.total_episodes
            merged.info.total_frames += source.total_frames
        writer.close()
        path = root / DEFAULT_EPISODES_PATH.format(chunk_index=0, file_index=0)
        path.parent.mkdir(parents=True)
        table = pandas.concat(tables, ignore_index=True)
        table["meta/episodes/chunk_index"] = table["meta/episodes/file_index"] = 0
        table.to_parquet(path)
        aggregate.finalize_aggregation(merged, sources)
        assert merged.stats is not None
        write_stats(dict(sorted(merged.stats.items())), root)  # LeRobot goes through a set


class _DataWriter:
    """Copies the data files of datasets into one, a row group per episode, and numbers the rows anew.

    Args:
        merged: metadata of the new dataset; its totals so far say where the next rows go.
    """

    def __init__(self, merged: Any) -> None:
        self.merged, self.writer, self.place, self.bytes = merged, None, (0, 0), 0

    def copy(self, source: Any) -> dict[tuple[int, int], tuple[int, int]]:
        """Appends a dataset's rows; returns where the rows of each of its (chunk, file) went."""
        import pyarrow
        import pyarrow.parquet as parquet

        texts = source.tasks.index
        numbers = self.merged.tasks.loc[texts, "task_index"].to_numpy()  # by the source's task index
        moved = {}
        for path in sorted(source.root.glob("data/*/*.parquet")):
            place = tuple(int(name.split("-")[1]) for name in (path.parent.name, path.stem))
            try:
                file = parquet.ParquetFile(path)
                sizes = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
                writer = self._roll(file.schema_arrow, sum(sizes))
                for i in range(file.num_row_groups):
                    table = file.read_row_group(i)
                    table = _renumber(table, self.merged.info, numbers)
                    writer.write_table(table.replace_schema_metadata(_without_fingerprint(table.schema).metadata))
            except (pyarrow.ArrowException, OSError) as error:
                remedy = "the file is damaged or the disk full; free space, or remove the part and record it anew"
                raise DatasetError(str(path), str(error), remedy) from error
            moved[place] = self.place
        return moved

    def _roll(self, schema: Any, size: int) -> Any:
        """What writes the present file, or the next where that would grow over LeRobot's limit."""
        import pyarrow.parquet as parquet

        if self.writer is not None and self.bytes + size > self.merged.data_files_size_in_mb * 2**20:
            self.close()
            chunk, file = self.place
            full = file + 1 == self.merged.chunks_size
            self.place, self.bytes = (chunk + 1, 0) if full else (chunk, file + 1), 0
        if self.writer is None:
            path = self.merged.root / self.merged.data_path.format(chunk_index=self.place[0], file_index=self.place[1])
            path.parent.mkdir(parents=True, exist_ok=True)
            options = {"compression": "snappy", "use_dictionary": True, "write_page_checksum": True}
            self.writer = parquet.ParquetWriter(path, _without_fingerprint(schema), **options)
        self.bytes += size
        return self.writer

    def close(self) -> None:
        """Writes the present file's footer."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None


@dataclass(frozen=True)
class _Part:
    """What joining needs of a dataset's metadata; LeRobot's own object also loads every episode's, which is slow."""

    root: Path
    features: dict[str, Any]
    fps: int
    total_episodes: int
    total_frames: int
    tasks: Any  # DataFrame, text -> task_index
    stats: dict[str, Any] | None


def _read_part(root: Path) -> _Part:
    from lerobot.datasets.io_utils import load_info, load_stats, load_tasks

    try:
        info = load_info(Path(root))
        counts = (info.total_episodes, info.total_frames)
        return _Part(Path(root), info.features, info.fps, *counts, load_tasks(Path(root)), load_stats(Path(root)))
    except Exception as error:  # LeRobot and pyarrow raise many kinds
        raise DatasetError(str(root), repr(error), "the part is damaged; remove it and record it anew") from error


def _without_fingerprint(schema: Any) -> Any:
    """The schema without the number that the datasets library draws anew whenever it writes a file; columns stay described."""
    described = dict(schema.metadata or {})
    if b"huggingface" in described:
        description = json.loads(described[b"huggingface"])
        description.pop("fingerprint", None)
        described[b"huggingface"] = json.dumps(description).encode()
    return schema.with_metadata(described)


def _renumber(table: Any, totals: Any, task_numbers: np.ndarray) -> Any:
    """The rows with their episode, row and task numbers in the merged dataset."""
    import pyarrow

    columns = {
        "index": table.column("index").to_numpy() + totals.total_frames,
        "episode_index": table.column("episode_index").to_numpy() + totals.total_episodes,
        "task_index": task_numbers[table.column("task_index").to_numpy()],
    }
    for name, values in columns.items():
        field = table.schema.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pyarrow.array(values, field.type))
    return table


def write_notes(path: Path, document: dict[str, Any]) -> None:
    """Writes what we note about a dataset as JSON: all of it, or the old notes stay.

    Raises:
        DatasetError: the disk does not take it.
    """
    try:
        write_json(path, document)
    except CheckpointError as error:
        raise DatasetError(error.field, error.value, error.remedy) from error


def read_notes(path: Path) -> dict[str, Any]:
    """Reads what `write_notes` wrote.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    try:
        document = read_json(path)
    except CheckpointError as error:
        raise DatasetError(error.field, error.value, error.remedy) from error
    if not isinstance(document, dict):
        raise DatasetError(str(path), document, "expected a JSON object; the file is damaged")
    return document


@contextmanager
def _quiet_lerobot():
    """Keeps LeRobot's progress bars and notices (of a missing video library; there are no videos) off the terminal."""
    import datasets

    level, shown = logging.root.manager.disable, datasets.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.disable(level)
        if shown:
            datasets.enable_progress_bars()
