"""A LeRobotDataset's rows and pictures: cameras chosen, frames decoded, what is damaged noted. Knows no training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from emu_embodied.errors import DatasetError
from emu_embodied.types import ACTION, OBS_IMAGE, REWARD, SUCCESS

from .images import decode_pictures, decode_video, tiles
from .lerobot_files import (
    SIDECAR,
    Piece,
    check_expansion,
    count_rows,
    data_files,
    own_file,
    read_episodes,
    read_pieces,
)
from .lerobot_format import read_notes
from .lerobot_info import (
    LARGEST,
    LARGEST_ACTION,
    VECTORS,
    cameras_of,
    choose_elements,
    element_names,
    picture_shape,
)
from .quality import Dropped, QualityConfig
from .resampling import RANGES, SKIPPED, is_sampled

PICTURES, PREFIX = ("image", "video"), "observation.images"
COUNTS = ("episode_index", "frame_index", "task_index")
LARGEST_OURS = 1 + 1e-6  # of the actions in datasets of our own
MOST_UNUSED = 10_000  # tasks that no frame may have
MOST_LOST = 100_000  # episodes that are told of and not there, before it is no dataset any more


@dataclass(frozen=True)
class ReadOptions:
    """How a dataset is read. Datasets of our own keep their actions, and `quality` is not asked of their episodes.

    Attributes:
        camera: which, by name ("observation.images.top") or its end ("top"); several are tiled into one frame; none given: the
            only one.
        action_keys: the action's elements wanted, by `lerobot_info.element_names`; none given: all.
        image_size: side in px of the square that frames are letterboxed to; None keeps the dataset's size.
        fps: frames per second, at most the dataset's; None keeps its.
        skipped_actions: "last" or "mean", see `data.resampling.join_blocks`.
        action_range: what becomes [-1, 1]: "minmax" or "quantiles" (1% to 99%) of the dataset's own statistics.
        quality: what an episode must be.
    """

    camera: tuple[str, ...] = ()
    action_keys: tuple[str, ...] = ()
    image_size: int | None = None
    fps: float | None = None
    skipped_actions: str = "last"
    action_range: str = "minmax"
    quality: QualityConfig = field(default_factory=QualityConfig)

    def __post_init__(self) -> None:
        for name in ("camera", "action_keys"):
            value = getattr(self, name)
            texts = isinstance(value, tuple | list) and all(isinstance(text, str) for text in value)
            if not texts or len(set(value)) < len(value):
                raise DatasetError(name, value, "give a tuple of different texts")
            object.__setattr__(self, name, tuple(value))
        for name, choices in (("skipped_actions", SKIPPED), ("action_range", tuple(RANGES))):
            if getattr(self, name) not in choices:
                raise DatasetError(name, getattr(self, name), f"choose one of {choices}")
        for name in ("image_size", "fps"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise DatasetError(name, value, "give a positive number, or none")


def is_ours(root: Path) -> bool:
    """Whether `collect` or `imagine` wrote a dataset: its actions are in [-1, 1] as they are, or `own_scale` tells."""
    return (root / SIDECAR).is_file()


def own_scale(root: Path, size: int) -> np.ndarray | None:
    """Centre and half-range (2, size) of the actions of a dataset of ours that is in a robot's units; None for others.

    Raises:
        DatasetError: what tells of it is damaged.
    """
    notes = read_notes(own_file(root, root / SIDECAR))
    if notes.get("actions") != "robot" or not notes.get("action_scale"):
        return None
    with suppress(TypeError, ValueError, KeyError, IndexError):
        scale = np.array(notes["action_scale"][0], np.float32)
        if scale.shape == (2, size) and np.isfinite(scale).all() and (scale[1] >= 0).all():
            return scale
    raise DatasetError(f"{root / SIDECAR}: action_scale", notes["action_scale"], "restore the file")


def settle(root: Path, info: Mapping[str, Any], options: ReadOptions) -> ReadOptions:
    """The options with real names, and without those that change nothing here, so that equal readings are equal options.

    What it returns, it leaves as it is.

    Raises:
        DatasetError: a camera or action that is not there, a rate above the dataset's, or cameras that need a size.
    """
    features, names = info["features"], element_names(info["features"][ACTION])
    camera = _choose_cameras(root, features, options.camera)
    choose_elements(f"{root}: action_keys", names, options.action_keys)
    if options.fps is not None and options.fps > info["fps"]:
        raise DatasetError(f"{root}: fps", options.fps, f"the dataset has {info['fps']}: give at most that")
    alone = len(camera) == 1
    if not alone and options.image_size is None:
        raise DatasetError("image_size", "none", "several cameras share a frame: say how large it is to be")
    square = (options.image_size, options.image_size, 3) == picture_shape(features[camera[0]]) and alone
    return replace(
        options,
        camera=() if list(camera) == cameras_of(features) and alone else camera,
        action_keys=() if list(options.action_keys) == names else options.action_keys,
        image_size=None if square else options.image_size,
        fps=None if options.fps == info["fps"] else options.fps,
        quality=QualityConfig() if is_ours(root) else options.quality,
        action_range="minmax" if is_ours(root) else options.action_range,
        skipped_actions="last" if options.fps in (None, info["fps"]) else options.skipped_actions,
    )


def _choose_cameras(root: Path, features: Mapping[str, Any], wanted: Sequence[str]) -> tuple[str, ...]:
    """The cameras called by `wanted`: by their names, by what follows LeRobot's prefix, or by how their names end."""
    cameras, others = cameras_of(features), [key for key, value in features.items() if value["dtype"] in PICTURES]
    if not cameras:
        found = ", ".join(f"{key} {features[key]['shape']}" for key in others) or f"none ({OBS_IMAGE})"
        raise DatasetError(f"{root}: camera", found, "a camera with colour pictures (H, W, 3) is needed")
    if not wanted and len(cameras) != 1:
        raise DatasetError(f"{root}: camera", f"{len(cameras)} of them", f"name one of {cameras}")
    chosen = []
    for name in wanted or cameras:
        ways = (name.__eq__, f"{PREFIX}.{name}".__eq__, lambda key, name=name: key.endswith(f".{name}"))
        found = next(filter(None, ([key for key in cameras if way(key)] for way in ways)), [])
        if len(found) != 1:
            raise DatasetError(f"{root}: camera", name, f"choose among {cameras}")
        chosen.append(found[0])
    if len(set(chosen)) < len(chosen):
        raise DatasetError(f"{root}: camera", list(wanted), f"{chosen[0]} is meant twice; choose among {cameras}")
    return tuple(chosen)


class Reading:
    """One dataset on its way in; `faults` fills up with the episodes that are lost."""

    def __init__(self, root: Path, info: dict[str, Any], options: ReadOptions) -> None:
        self.root, self.info, self.options, self.ours = root, info, options, is_ours(root)
        self.features = info["features"]
        self.cameras = _choose_cameras(root, self.features, options.camera)
        self.videos = tuple(key for key in self.cameras if self.features[key]["dtype"] == "video")
        self.ratio = info["fps"] / options.fps if options.fps else 1.0
        size = options.image_size
        self.shape = (size, size, 3) if size else self.picture_shape(self.cameras[0])
        self.tiles = dict(zip(self.cameras, tiles(len(self.cameras), *self.shape[:2]), strict=True))
        told = [key for key in (*VECTORS, REWARD, SUCCESS) if key in self.features]
        self.vectors = {key: math.prod(self.features[key]["shape"]) for key in told}
        self.vectors |= {"timestamp": 1} if self.videos else {}
        names = element_names(self.features[ACTION])
        self.elements = choose_elements(ACTION, names, options.action_keys)
        self.scale = own_scale(root, len(names)) if self.ours else None
        self.faults: dict[int, Dropped] = {}
        self.damages: list[DatasetError] = []

    def lose(self, episode: int, key: str, reason: str, detail: str) -> None:
        """Notes what is wrong with an episode; the first fault stays."""
        self.faults.setdefault(int(episode), Dropped(int(episode), key, reason, detail))

    def picture_shape(self, camera: str) -> tuple[int, int, int]:
        shape = picture_shape(self.features[camera])
        assert shape is not None  # of a camera that was chosen
        return shape

    def read(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Pixels of the kept frames, and the columns of all rows; pictures that fail are noted."""
        shapes = {key: self.picture_shape(key) for key in self.cameras if key not in self.videos}
        bytes_of = {key: math.prod(shape) for key, shape in shapes.items()}
        room = count_rows(self.root)
        if room > self.info["total_frames"]:
            told = f"info.json tells of {self.info['total_frames']}; the dataset is damaged, record it anew"
            raise DatasetError(str(self.root / "data"), f"more rows: {room}", told)
        row = 8 * sum(self.vectors.values()) + 8 * len(COUNTS) + sum(bytes_of.values()) + math.prod(self.shape)
        check_expansion(self.root, room * row)
        if self.ratio != 1:
            room = math.ceil(room / self.ratio) + min(room, self.info["total_episodes"])
        try:
            frames = np.zeros((room, *self.shape), np.uint8)
        except (MemoryError, ValueError) as error:
            remedy = "the memory does not hold it: give a smaller image_size or fps, or split the dataset"
            raise DatasetError(str(self.root), f"{room} frames of shape {self.shape}", remedy) from error
        tables, at = [], 0
        for path in data_files(self.root):
            for piece in read_pieces(self.root, path, self.vectors, COUNTS, bytes_of):
                if isinstance(piece, DatasetError):
                    self.damages.append(piece)
                    continue
                if fault := self.check_sizes(path, piece.values):
                    self.damages.append(fault)
                    continue
                kept = np.flatnonzero(is_sampled(piece.values["frame_index"], self.ratio))
                try:
                    self.decode(path, piece, kept, frames[at : at + len(kept)], shapes)
                except DatasetError as fault:
                    self.damages.append(fault)
                    continue
                tables.append(piece.values)
                at += len(kept)
        if not tables:
            error = self.damages[0]
            raise DatasetError(error.field, error.value, error.remedy)
        return frames[:at], {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}

    def decode(self, path: Path, piece: Piece, kept: np.ndarray, into: np.ndarray, shapes: Mapping[str, tuple]) -> None:
        """Decodes the pictures of the kept rows of a piece."""
        for first, batch in piece.pictures:
            part = slice(*np.searchsorted(kept, [first, first + len(next(iter(batch.values())))]))
            for key, encoded in batch.items():
                chosen = [encoded[i] for i in kept[part] - first]
                for row, fault in decode_pictures(chosen, into[part][:, *self.tiles[key]], shapes[key]).items():
                    at = kept[part][row]
                    where = f"{path.relative_to(self.root)}: row {at}, {fault}"
                    self.lose(int(piece.values["episode_index"][at]), key, "unreadable", where)

    def check_sizes(self, path: Path, values: dict[str, np.ndarray]) -> DatasetError | None:
        """What is wrong where a vector has not the size that info.json tells."""
        for key, told in self.vectors.items():
            found = values[key].size // max(1, len(values[key]))
            if found != told and len(values[key]):
                return DatasetError(
                    f"{path}: {key}", f"{found} numbers", f"info.json tells of {told}; restore the file"
                )
        return None

    def check_rows(self, rows: dict[str, np.ndarray]) -> np.ndarray:
        """Where episodes start among all rows, (n + 1,); missing, incomplete and infinite ones are noted."""
        episodes, wanted = rows["episode_index"], self.info["total_episodes"]
        starts = np.concatenate([[0], np.flatnonzero(np.diff(episodes)) + 1, [len(episodes)]])
        present = episodes[starts[:-1]]
        if (np.diff(present) <= 0).any() or present[0] < 0 or present[-1] >= wanted:
            raise DatasetError(str(self.root), "episodes out of order", "the dataset is damaged; record it anew")
        if wanted - len(present) > MOST_LOST:
            found = f"{len(present)} of {wanted} episodes found"
            raise DatasetError(str(self.root), found, "files are missing; restore the dataset")
        for episode in np.setdiff1d(np.arange(wanted), present).tolist():
            where = self.damages[0] if self.damages else None
            key = str(where.field).removeprefix(f"{self.root}/") if where else "data"
            detail = "; ".join(str(error.value) for error in self.damages) or "no rows: a file is missing"
            self.lose(episode, key, "unreadable", detail)
        lengths = read_episodes(self.root, ["length"], self.info["total_episodes"]) if self.damages else {}
        for episode, a, b in zip(present.tolist(), starts[:-1], starts[1:], strict=True):
            whole = np.array_equal(rows["frame_index"][a:b], np.arange(b - a))
            if not whole or lengths.get(episode, {"length": b - a})["length"] != b - a:
                self.lose(episode, "frame_index", "incomplete", f"{b - a} rows, not all of it")
        if len(episodes) != self.info["total_frames"] and not self.faults:
            found = f"{len(episodes)} of {self.info['total_frames']} frames found"
            raise DatasetError(str(self.root), found, "files are missing; restore the dataset")
        self.check_numbers(rows)
        return starts

    def check_numbers(self, rows: dict[str, np.ndarray]) -> None:
        """Notes the episodes with numbers that are none, or too large; in datasets of our own, too, where actions end at 1."""
        for key in self.vectors:
            sizes = np.abs(rows[key]).reshape(len(rows[key]), -1).max(1)
            own = self.ours and self.scale is None  # ours in a robot's units are like others'
            largest = LARGEST if key != ACTION else LARGEST_OURS if own else LARGEST_ACTION
            for reason, bad, what in (
                ("not finite", ~np.isfinite(sizes), "NaN or infinite"),
                ("out of range", sizes > largest, f"beyond {largest:g}"),
            ):
                at, first = np.unique(rows["episode_index"][bad], return_index=True)
                for episode, row in zip(at, np.flatnonzero(bad)[first], strict=True):
                    self.lose(episode, key, reason, f"{what} at frame {rows['frame_index'][row]}")

    def read_videos(
        self, frames: np.ndarray, rows: dict[str, np.ndarray], starts: np.ndarray, kept: np.ndarray
    ) -> None:
        """Decodes the video cameras, episode after episode; `kept` are the rows that `frames` shows."""
        for camera in self.videos:
            key = f"videos/{camera}"
            wanted = [f"{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
            where = read_episodes(self.root, wanted, self.info["total_episodes"])
            for a, b in zip(starts[:-1], starts[1:], strict=True):
                episode = int(rows["episode_index"][a])
                if episode in self.faults or episode not in where:
                    self.lose(episode, camera, "unreadable", "not in meta/episodes")
                    continue
                chunk, file, since = where[episode].values()
                path = Path("videos", camera, f"chunk-{chunk:03d}", f"file-{file:03d}.mp4")
                part = slice(*np.searchsorted(kept, [a, b]))
                moments = since + rows["timestamp"][kept[part]].astype(np.float64)
                into = frames[part][:, *self.tiles[camera]]
                try:
                    real, shape = own_file(self.root, self.root / path), self.picture_shape(camera)
                    fault = decode_video(real, moments, 0.25 / self.info["fps"], into, shape)
                except DatasetError as error:
                    fault = str(error.value)
                if fault:
                    self.lose(episode, camera, "unreadable", f"{path}: {fault}")
