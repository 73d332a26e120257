"""What training reads: a dataset's frames as flat arrays, built once from a LeRobotDataset; knows no simulator."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emu_embodied.errors import CheckpointError, DatasetError
from emu_embodied.storage import load_folder, read_json, save_folder
from emu_embodied.types import ACTION, OBS_ENVIRONMENT_STATE, OBS_IMAGE, OBS_STATE, REWARD, SUCCESS

FORMAT = "emu-embodied-frames"
FOOTER_BYTES = 1 << 16  # of a parquet file's end: offsets, sizes and extremes of all its columns
TASKS = Path("meta", "tasks.parquet")
THREADS = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrameCache:
    """F frames of n episodes, one after the other.

    Frame f of an episode carries the action taken there and what came of it; an episode's last frame has a zero action,
    reward 0 and the last success once more.

    Attributes:
        pixels: (F, H, W, 3) uint8 RGB.
        agent_pos: (F, D) float32, the robot's own position (table-top: cm).
        states: (F, E) float32, the simulator's true state; E = 0 where the dataset has none.
        actions: (F, A) float32; action f leads from frame f to frame f + 1.
        rewards: (F,) float32, on arrival at frame f + 1.
        successes: (F,) bool, judged at frame f + 1.
        episode_starts: (n + 1,) int64; episode i is frames episode_starts[i] up to episode_starts[i + 1].
        instructions: the task of each episode as text.
        names: what the elements of "agent_pos", "state" and "action" are called.
        fps: frames (model steps) per second.
    """

    pixels: np.ndarray
    agent_pos: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    successes: np.ndarray
    episode_starts: np.ndarray
    instructions: tuple[str, ...]
    names: dict[str, list[str]]
    fps: float

    @property
    def episodes(self) -> int:
        """The number of episodes."""
        return len(self.instructions)

    def __len__(self) -> int:
        return len(self.pixels)

    def select(self, episodes: range) -> FrameCache:
        """The cache of a contiguous range of episodes; its arrays are views.

        Raises:
            DatasetError: the range is empty, has gaps, or leaves the cache.
        """
        if not len(episodes) or episodes.step != 1 or episodes.start < 0 or episodes.stop > self.episodes:
            raise DatasetError("episodes", episodes, f"give a range within 0..{self.episodes}, of step 1")
        frames = slice(*self.episode_starts[[episodes.start, episodes.stop]])
        return FrameCache(
            **{name: getattr(self, name)[frames] for name in _PER_FRAME},
            episode_starts=self.episode_starts[episodes.start : episodes.stop + 1] - frames.start,
            instructions=self.instructions[episodes.start : episodes.stop],
            names=self.names,
            fps=self.fps,
        )


_PER_FRAME = ("pixels", "agent_pos", "states", "actions", "rewards", "successes")


def save_frame_cache(path: str | Path, cache: FrameCache, source: str = "") -> None:
    """Writes a cache, whole or not at all.

    Args:
        path: the folder; one that is there is replaced.
        cache: what to write.
        source: fingerprint of what it was built from.

    Raises:
        CheckpointError: the disk is full, or numbers are not finite.
    """
    names = (*_PER_FRAME, "episode_starts")
    arrays = {name: torch.from_numpy(np.ascontiguousarray(getattr(cache, name))) for name in names}
    document = {"format": FORMAT, "source": source, "instructions": list(cache.instructions)}
    save_folder(path, {"frames": arrays}, {"cache": {**document, "names": cache.names, "fps": cache.fps}})


def load_frame_cache(path: str | Path) -> FrameCache:
    """Reads a cache that `save_frame_cache` wrote, after checking its SHA-256 sums.

    Raises:
        DatasetError: it is missing, damaged, or of another format.
    """
    try:
        tensors, documents = load_folder(path)
    except CheckpointError as error:
        raise DatasetError(error.field, error.value, f"{error.remedy}; or remove it, to build it again") from error
    document, arrays = documents.get("cache", {}), tensors.get("frames", {})
    if document.get("format") != FORMAT or set(arrays) != {*_PER_FRAME, "episode_starts"}:
        raise DatasetError(str(path), document.get("format"), f"expected a folder of format {FORMAT!r}; build it again")
    return FrameCache(
        **{name: tensor.numpy() for name, tensor in arrays.items()},
        instructions=tuple(document["instructions"]),
        names=document["names"],
        fps=document["fps"],
    )


def frames_for(dataset_root: str | Path) -> FrameCache:
    """The frames of a dataset: read from `<dataset_root>.frames` if that was built from it, else built and kept there.

    Raises:
        DatasetError: see `build_frame_cache`.
    """
    root = Path(dataset_root).absolute()
    path, source = root.with_name(root.name + ".frames"), fingerprint(root)
    if path.is_dir():
        try:
            if read_json(path / "cache.json").get("source") == source:
                return load_frame_cache(path)
            logger.info("%s has changed: building %s again", root, path)
        except (DatasetError, CheckpointError, AttributeError) as error:
            logger.warning("building %s again: %s", path, error)
    cache = build_frame_cache(root)
    save_frame_cache(path, cache, source)
    return cache


def fingerprint(dataset_root: str | Path) -> str:
    """A hash of the dataset's description and of each data file's name, size and footer; it survives copying.

    Raises:
        DatasetError: there is no dataset.
    """
    root = Path(dataset_root)
    digest = hashlib.sha256(json.dumps(_read_info(root), sort_keys=True).encode())
    for path in _data_files(root):
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - FOOTER_BYTES))
            digest.update(f"{path.relative_to(root)} {size} ".encode() + file.read())
    return digest.hexdigest()


def build_frame_cache(dataset_root: str | Path) -> FrameCache:
    """Reads a LeRobotDataset v3 whose frames are images, from one camera, without LeRobot.

    Args:
        dataset_root: the dataset's folder.

    Raises:
        DatasetError: a missing dataset, column or file, a damaged file, or NaN and infinities, naming where.
    """
    root = Path(dataset_root)
    info = _read_info(root)
    features = info["features"]
    shape = _image_shape(root, features)
    for key in (OBS_STATE, ACTION, REWARD, SUCCESS):
        if key not in features:
            raise DatasetError(str(root), f"no {key}", f"the dataset must have it; it has {sorted(features)}")
    vectors = [key for key in (OBS_STATE, ACTION, OBS_ENVIRONMENT_STATE) if key in features]
    columns = [*vectors, REWARD, SUCCESS, "episode_index", "task_index"]
    frames, tables = np.empty((info["total_frames"], *shape), np.uint8), []
    at = 0
    for path in _data_files(root):
        images, table = _read_data(path, columns)
        if at + len(images) > len(frames):
            raise DatasetError(str(path), "more rows than info.json tells of", "the dataset is damaged; record it anew")
        _decode(path, images, frames[at : at + len(images)])
        tables.append(table)
        at += len(images)
    if at != len(frames) or not at:
        raise DatasetError(str(root), f"{at} of {len(frames)} frames found", "files are missing; restore the dataset")
    rows = {name: np.concatenate([table[name] for table in tables]) for name in columns}
    return _assemble(root, info, frames, rows)


def _assemble(root: Path, info: dict[str, Any], frames: np.ndarray, rows: dict[str, np.ndarray]) -> FrameCache:
    """Puts the columns together, after checking them."""
    episodes = rows["episode_index"]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(episodes)) + 1, [len(episodes)]])
    if not np.array_equal(episodes[starts[:-1]], np.arange(info["total_episodes"])):
        raise DatasetError(str(root), "episodes out of order or missing", "the dataset is damaged; record it anew")
    for key in (OBS_STATE, OBS_ENVIRONMENT_STATE, ACTION, REWARD):
        if key in rows and not (finite := np.isfinite(rows[key]).reshape(len(episodes), -1).all(1)).all():
            where = f"episode {episodes[finite.argmin()]}, {key}"
            raise DatasetError(str(root), f"NaN or infinite in {where}", "remove the episode, or record it anew")
    last = starts[1:] - 1
    actions, rewards = rows[ACTION].copy(), rows[REWARD].reshape(-1).copy()
    actions[last], rewards[last] = 0.0, 0.0  # where these led is not in the dataset
    texts = _read_tasks(root)
    try:
        instructions = tuple(texts[int(task)] for task in rows["task_index"][starts[:-1]])
    except KeyError as error:
        raise DatasetError(str(root / TASKS), f"no text for task {error}", "the file is damaged; restore it") from None
    states = rows.get(OBS_ENVIRONMENT_STATE, np.empty((len(episodes), 0), np.float32))
    keys = {"agent_pos": OBS_STATE, "state": OBS_ENVIRONMENT_STATE, "action": ACTION}
    names = {name: _names(info["features"].get(key), rows.get(key)) for name, key in keys.items()}
    successes = rows[SUCCESS].reshape(-1)
    starts = starts.astype(np.int64)
    return FrameCache(
        frames, rows[OBS_STATE], states, actions, rewards, successes, starts, instructions, names, info["fps"]
    )


def _names(feature: dict[str, Any] | None, rows: np.ndarray | None) -> list[str]:
    """The names of a vector's elements; their numbers where the dataset has none."""
    if feature is None:
        return []
    names = feature.get("names")
    if isinstance(names, dict):  # LeRobot's {"motors": [...]}
        names = next(iter(names.values()), None)
    return [str(name) for name in names] if names else [str(i) for i in range(rows.shape[1])]


def _read_info(root: Path) -> dict[str, Any]:
    if not root.is_dir():
        raise DatasetError(str(root), "no such folder", "record one with `emu-embodied collect`, or check the path")
    try:
        info = read_json(root / "meta" / "info.json")
        info["features"][ACTION], info["total_frames"], info["total_episodes"], info["fps"]  # noqa: B018  are they there?
    except (CheckpointError, KeyError, TypeError) as error:
        raise DatasetError(str(root), f"{type(error).__name__}: {error}", "expected a LeRobotDataset v3") from error
    return info


def _data_files(root: Path) -> list[Path]:
    paths = sorted((root / "data").glob("*/*.parquet"))
    if not paths:
        raise DatasetError(str(root / "data"), "no parquet files", "expected a LeRobotDataset v3; record it anew")
    return paths


def _image_shape(root: Path, features: dict[str, Any]) -> tuple[int, int, int]:
    feature = features.get(OBS_IMAGE)
    if feature is None or feature["dtype"] != "image" or len(feature["shape"]) != 3 or feature["shape"][2] != 3:
        found = "none" if feature is None else f"{feature['dtype']} of shape {tuple(feature['shape'])}"
        cameras = [key for key, value in features.items() if value["dtype"] in ("image", "video")]
        raise DatasetError(f"{root}: {OBS_IMAGE}", found, f"need PNG images, (H, W, 3); the dataset has {cameras}")
    return tuple(feature["shape"])


def _read_data(path: Path, columns: Sequence[str]) -> tuple[list[bytes], dict[str, np.ndarray]]:
    """A data file's encoded images, and its other columns as (rows, ...) arrays, floats as float32."""
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(path, columns=[OBS_IMAGE, *columns], page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError) as error:
        remedy = "the file is damaged; restore it, or record the dataset anew"
        raise DatasetError(str(path), str(error), remedy) from error
    missing = {OBS_IMAGE, *columns} - set(table.column_names)
    if missing:
        raise DatasetError(str(path), f"no {missing.pop()}", "a file of another dataset? restore the right one")
    images = [row["bytes"] for row in table.column(OBS_IMAGE).to_pylist()]
    arrays = {}
    for name in columns:
        column = table.column(name).combine_chunks()
        if column.null_count:
            raise DatasetError(str(path), f"empty cells in {name}", "the file is damaged; record the dataset anew")
        if pyarrow.types.is_list(column.type) or pyarrow.types.is_fixed_size_list(column.type):
            values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
        else:
            values = column.to_numpy(zero_copy_only=False)
        arrays[name] = values.astype(np.float32) if values.dtype.kind == "f" else values
    return images, arrays


def _decode(path: Path, images: list[bytes], into: np.ndarray) -> None:
    """Decodes PNGs into (rows, H, W, 3) RGB."""
    import cv2

    def one(i: int) -> None:
        pixels = None if not images[i] else cv2.imdecode(np.frombuffer(images[i], np.uint8), cv2.IMREAD_COLOR)
        if pixels is None or pixels.shape != into.shape[1:]:
            found = "cannot be decoded" if pixels is None else f"has the shape {pixels.shape}"
            raise DatasetError(str(path), f"image {i} {found}", f"expected a PNG of shape {into.shape[1:]}; restore it")
        cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=into[i])

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(one, range(len(images)), chunksize=256):
            pass


def _read_tasks(root: Path) -> dict[int, str]:
    import pyarrow
    import pyarrow.parquet as parquet

    path = root / TASKS
    try:
        table = parquet.read_table(path)
        text = next(name for name in table.column_names if name != "task_index")
        return dict(zip(table.column("task_index").to_pylist(), table.column(text).to_pylist(), strict=True))
    except (pyarrow.ArrowException, OSError, KeyError, StopIteration) as error:
        raise DatasetError(str(path), repr(error), "the file is damaged or missing; restore it") from error
