"""What training reads: a dataset's frames as flat arrays, built once from a LeRobotDataset; knows no simulator."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from emu_embodied.errors import CheckpointError, DatasetError
from emu_embodied.storage.files import Folder, save_folder
from emu_embodied.storage.regular import read_json
from emu_embodied.storage.tensor_header import Described
from emu_embodied.types import ACTION, OBS_ENVIRONMENT_STATE, OBS_STATE, REWARD, SUCCESS, short_repr

from .images import MOST_PIXELS
from .lerobot_files import SIDECAR, data_files, dataset_folder, own_file
from .lerobot_info import read_info, read_statistics
from .quality import Dropped
from .reader import ReadOptions, is_ours, settle
from .recording import read_recording

FORMAT = "emu-embodied-frames"
READING = 2  # counts up when datasets of others come to be read differently
FOOTER_BYTES = 1 << 16  # of a file's end; a parquet file's has offsets, sizes and extremes of all its columns
LABELS = (REWARD, SUCCESS, OBS_ENVIRONMENT_STATE)  # what `known` tells of, in this order

logger = logging.getLogger(__name__)


def _unsaid() -> np.ndarray:
    return np.empty(0)


@dataclass(frozen=True)
class FrameCache:
    """F frames of n episodes, one after the other.

    Frame f of an episode carries the action taken there and what came of it; an episode's last frame has a zero action,
    reward 0 and the last success once more.

    Attributes:
        pixels: (F, H, W, 3) uint8 RGB.
        agent_pos: (F, D) float32, the robot's own position (table-top: cm).
        states: (F, E) float32, the simulator's true state; E = 0 where the dataset has none.
        actions: (F, A) float32 in [-1, 1]; action f leads from frame f to frame f + 1.
        rewards: (F,) float32, on arrival at frame f + 1.
        successes: (F,) bool, judged at frame f + 1.
        episode_starts: (n + 1,) int64; episode i is frames episode_starts[i] up to episode_starts[i + 1].
        instructions: the task of each episode as text.
        names: what the elements of "agent_pos", "state" and "action" are called.
        fps: frames (model steps) per second.
        known: (n, 3) bool, whether an episode's rewards, successes and states were recorded; those that were not are 0.
        action_scale: (k, 2, A) float32, centre and half-range of the recorded actions in each of k datasets; see
            `data.resampling.denormalise`.
        sources: (n,) int64, which of the k datasets an episode is from.
        shares: the share of training windows drawn from each.
        dropped: the episodes that were left out, and why.
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
    known: np.ndarray = field(default_factory=_unsaid)
    action_scale: np.ndarray = field(default_factory=_unsaid)
    sources: np.ndarray = field(default_factory=_unsaid)
    shares: tuple[float, ...] = (1.0,)
    dropped: tuple[Dropped, ...] = ()

    __repr__ = short_repr

    def __post_init__(self) -> None:
        size = self.actions.shape[1]
        defaults = {
            "known": np.tile([True, True, self.states.shape[1] > 0], (self.episodes, 1)),
            "action_scale": np.stack([np.zeros(size), np.ones(size)]).astype(np.float32)[None],
            "sources": np.zeros(self.episodes, np.int64),
        }
        for name, value in defaults.items():
            if getattr(self, name) is None or not getattr(self, name).size:
                object.__setattr__(self, name, value)

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
        chosen = slice(episodes.start, episodes.stop)
        return replace(
            self,
            **{name: getattr(self, name)[frames] for name in _PER_FRAME},
            **{name: getattr(self, name)[chosen] for name in ("instructions", "known", "sources")},
            episode_starts=self.episode_starts[episodes.start : episodes.stop + 1] - frames.start,
        )

    def split(self, held_out: int) -> tuple[FrameCache, FrameCache | None]:
        """What is trained on, and the last `held_out` episodes, which are not; None where these are none.

        Raises:
            DatasetError: as `select`.
        """
        known = self.episodes - held_out
        return self.select(range(known)), self.select(range(known, self.episodes)) if held_out else None

    def frame_shares(self) -> np.ndarray | None:
        """Weight of each frame (F,) float64 by its dataset's share; None where there is one dataset."""
        if len(self.shares) == 1:
            return None
        source = np.repeat(self.sources, np.diff(self.episode_starts))
        return (np.array(self.shares) / np.bincount(source, minlength=len(self.shares)).clip(1))[source]


_PER_FRAME = ("pixels", "agent_pos", "states", "actions", "rewards", "successes")
_OTHERS = ("episode_starts", "known", "action_scale", "sources")


def save_frame_cache(path: str | Path, cache: FrameCache, source: str = "") -> None:
    """Writes a cache, whole or not at all; which episodes were left out, and why, is in its `report.json`.

    Args:
        path: the folder; one that is there is replaced.
        cache: what to write.
        source: fingerprint of what it was built from.

    Raises:
        CheckpointError: the disk is full, or numbers are not finite.
    """
    arrays = {name: torch.from_numpy(np.ascontiguousarray(getattr(cache, name))) for name in (*_PER_FRAME, *_OTHERS)}
    document = {
        **{"format": FORMAT, "source": source},
        "instructions": list(cache.instructions),
        "names": cache.names,
        "fps": cache.fps,
        "shares": list(cache.shares),
    }
    report = {"kept": cache.episodes, "dropped": [asdict(fault) for fault in cache.dropped]}
    save_folder(path, {"frames": arrays}, {"cache": document, "report": report})


def load_frame_cache(path: str | Path) -> FrameCache:
    """Reads a cache that `save_frame_cache` wrote, after checking its SHA-256 sums.

    Raises:
        DatasetError: it is missing, damaged, or of another format.
    """
    try:
        folder = Folder(path)
        document, told = folder.documents.get("cache", {}), folder.described("frames")
        if document.get("format") != FORMAT:
            raise CheckpointError(str(path), document.get("format"), f"expected a folder of format {FORMAT!r}")
        if not (fault := _misfit(document, told)):
            cache = FrameCache(
                **{name: tensor.numpy() for name, tensor in folder.tensors("frames").items()},
                instructions=tuple(document["instructions"]),
                names=document["names"],
                fps=document["fps"],
                shares=tuple(document.get("shares", (1.0,))),
                dropped=tuple(Dropped(**fault) for fault in folder.documents.get("report", {}).get("dropped", ())),
            )
            if not (fault := _odd_numbers(cache)):
                return cache
    except CheckpointError as error:
        raise DatasetError(error.field, error.value, f"{error.remedy}; or remove it, to build it again") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        fault = f"{type(error).__name__}: {error}"
    raise DatasetError(str(path), fault, "it is no cache that this release wrote; remove it, to build it again")


def _misfit(document: dict, told: Mapping[str, Described]) -> str:
    """What a cache that anybody may have written says of its sizes and no cache can have; empty where nothing is."""
    frames, height, width = told["pixels"].shape[:3]
    episodes, k, size = len(document["instructions"]), told["action_scale"].shape[0], told["actions"].shape[1]
    shapes = {
        "pixels": (torch.uint8, (frames, height, width, 3)),
        "agent_pos": (torch.float32, (frames, told["agent_pos"].shape[1])),
        "states": (torch.float32, (frames, told["states"].shape[1])),
        "actions": (torch.float32, (frames, size)),
        "rewards": (torch.float32, (frames,)),
        "successes": (torch.bool, (frames,)),
        "episode_starts": (torch.int64, (episodes + 1,)),
        "known": (torch.bool, (episodes, 3)),
        "action_scale": (torch.float32, (k, 2, size)),
        "sources": (torch.int64, (episodes,)),
    }
    for name, (dtype, shape) in shapes.items():
        found = told[name]
        if found.dtype != dtype or found.shape != shape:
            return f"{name}: {found.dtype} of shape {found.shape}, not {dtype} of shape {shape}"
    return "" if 0 < height * width <= MOST_PIXELS else f"pixels: frames of {height} x {width}"


def _odd_numbers(cache: FrameCache) -> str:
    """The same of its numbers and texts."""
    frames, starts, k = len(cache), cache.episode_starts, len(cache.action_scale)
    if starts[0] != 0 or starts[-1] != frames or (np.diff(starts) < 1).any():
        return "episode_starts: not ascending from 0 to the number of frames"
    if len(cache.shares) != k or not all(0 <= share <= 1 for share in cache.shares) or not 0 < cache.fps < 1e6:
        return f"shares {cache.shares} of {k} datasets, at {cache.fps} frames a second"
    if ((cache.sources < 0) | (cache.sources >= k)).any() or np.abs(cache.actions).max() > 1 + 1e-5:
        return "sources or actions: out of range"
    words = [cache.instructions, *(cache.names[name] for name in ("agent_pos", "state", "action"))]
    return "" if all(isinstance(word, str) for part in words for word in part) else "instructions or names: no texts"


def content_digest(cache: FrameCache) -> str:
    """A SHA-256 of all that training reads of a cache: pixels, actions, labels, texts, names, scales and shares."""
    digest = hashlib.sha256()
    for name in (*_PER_FRAME, *_OTHERS):
        array = np.ascontiguousarray(getattr(cache, name))
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array)
    described = [list(cache.instructions), cache.names, float(cache.fps), list(map(float, cache.shares))]
    digest.update(json.dumps(described, sort_keys=True).encode())
    return digest.hexdigest()


def frames_for(
    dataset: str | Path,
    options: ReadOptions | None = None,
    cache: str | Path | None = None,
    spare: str | Path | None = None,
) -> FrameCache:
    """The frames of a dataset: read from where they are kept if they are of that dataset, else built and kept there.

    That is `<dataset>.frames` beside it, or `<dataset>.frames-<hash>` where options change what is read.

    Args:
        dataset: its folder, or its name on the hub.
        options: how it is read.
        cache: a folder that keeps the frames instead of the dataset's own place.
        spare: a folder that keeps them where the dataset's place cannot be written; without one they are not kept there.

    Raises:
        DatasetError: see `build_frame_cache`; or the hub does not have it; or `cache` cannot be written.
    """
    root = dataset_folder(dataset)
    options = settle(root, read_info(root), options or ReadOptions())
    source, suffix = fingerprint(root, options), ".frames"
    if options != ReadOptions():
        suffix += "-" + hashlib.sha256(_as_json(options)).hexdigest()[:8]
    beside = root.with_name(root.name + suffix)
    place = hashlib.sha256(os.fsencode(root)).hexdigest()[:8]  # datasets of several places may have one name
    elsewhere = [Path(folder) / f"{root.name}-{place}{suffix}" for folder in (cache, spare) if folder is not None]
    places = elsewhere[:1] if cache is not None else [beside, *elsewhere]
    places = [path for path in places if not path.is_symlink()]  # what a stranger's link leads to would be replaced
    for path in places:
        if path.is_dir() and (found := _kept(path, source)) is not None:
            return found
    built = build_frame_cache(root, options)
    for path in places:
        try:
            save_frame_cache(path, built, source)
            break
        except CheckpointError as error:
            if cache is not None:
                raise DatasetError(f"cache: {error.field}", error.value, error.remedy) from error
            kept = f"kept in {places[1]}" if path == beside and len(places) > 1 else "not kept"
            logger.warning("the frames of %s cannot be kept beside it (%s); they are %s", root, error.value, kept)
    return built


def _kept(path: Path, source: str) -> FrameCache | None:
    """The cache there, if it was built from `source`."""
    try:
        if read_json(path / "cache.json", path).get("source") == source:
            return load_frame_cache(path)
        logger.info("the dataset has changed: building %s again", path)
    except (DatasetError, CheckpointError, AttributeError) as error:
        logger.warning("building %s again: %s", path, error)
    return None


def fingerprint(dataset_root: str | Path, options: ReadOptions | None = None) -> str:
    """A hash of the dataset's descriptions, of each file's name, size and end, and of how it is read; it survives copying.

    Raises:
        DatasetError: there is no dataset.
    """
    root, options = Path(dataset_root), options or ReadOptions()
    digest = hashlib.sha256(json.dumps(read_info(root), sort_keys=True).encode())
    described = [
        *sorted((root / "meta").rglob("*.parquet")),
        *filter(Path.is_file, [root / SIDECAR]),
    ]  # texts, episodes, units
    for path in (*data_files(root), *sorted((root / "videos").rglob("*.mp4")), *described):
        with open(own_file(root, path), "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - FOOTER_BYTES))
            digest.update(f"{path.relative_to(root)} {size} ".encode() + file.read())
    if not is_ours(root) or options != ReadOptions():
        statistics = read_statistics(root, ACTION) or {}
        digest.update(_as_json(options) + repr([(k, v.tolist()) for k, v in statistics.items()]).encode())
    return digest.hexdigest()


def _as_json(options: ReadOptions) -> bytes:
    return json.dumps([READING, asdict(options)], sort_keys=True).encode()


def build_frame_cache(dataset_root: str | Path, options: ReadOptions | None = None) -> FrameCache:
    """Reads a LeRobotDataset v3; LeRobot itself is needed for videos only.

    Episodes that are damaged, hold NaN or infinities, or fall short of `ReadOptions.quality` are left out and listed in
    `dropped`. Rewards, successes, states and the robot's own position may be absent.

    Args:
        dataset_root: the dataset's folder.
        options: how it is read.

    Raises:
        DatasetError: a missing dataset, camera, action, column or file, or no good episode; it names where.
    """
    recording = read_recording(Path(dataset_root), options or ReadOptions())
    frames, recorded = recording.frames, [key in recording.recorded for key in LABELS]
    keys = {"agent_pos": OBS_STATE, "state": OBS_ENVIRONMENT_STATE, "action": ACTION}
    return FrameCache(
        **{name: getattr(frames, name) for name in _PER_FRAME},
        episode_starts=frames.starts,
        instructions=tuple(recording.texts[int(task)] for task in frames.tasks[frames.starts[:-1]]),
        names={name: recording.names.get(key, []) for name, key in keys.items()},
        fps=recording.fps,
        known=np.tile(recorded, (len(frames.last), 1)),
        action_scale=recording.scale[None],
        dropped=recording.dropped,
    )
