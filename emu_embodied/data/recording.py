"""A dataset's good episodes as flat arrays: actions scaled, bad episodes left out, one task each. Knows no files' layout."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from emu_embodied.errors import DatasetError
from emu_embodied.types import ACTION, OBS_ENVIRONMENT_STATE, OBS_STATE, REWARD, SUCCESS, short_repr

from .lerobot_files import TASKS, read_tasks
from .lerobot_info import VECTORS, element_names, read_info, read_statistics
from .quality import Dropped, Judge, continuous_values
from .reader import MOST_UNUSED, Reading, ReadOptions, settle
from .resampling import action_scale, is_sampled, join_blocks, normalise


@dataclass(frozen=True)
class Frames:
    """F frames of n episodes, one after the other. What a dataset does not have is 0, or has no elements.

    Attributes:
        pixels: (F, H, W, 3) uint8.
        agent_pos: (F, D) float32.
        states: (F, E) float32.
        actions: (F, A) float32.
        rewards: (F,) float32.
        successes: (F,) bool.
        episodes: (F,) int64, the dataset's numbers of episodes.
        tasks: (F,) int64, its numbers of tasks.
        starts: (n + 1,) int64, where episodes begin, and F.
    """

    pixels: np.ndarray
    agent_pos: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    successes: np.ndarray
    episodes: np.ndarray
    tasks: np.ndarray
    starts: np.ndarray

    __repr__ = short_repr

    @property
    def last(self) -> np.ndarray:
        """Each episode's last frame, (n,)."""
        return self.starts[1:] - 1

    def take(self, rows: np.ndarray, lengths: np.ndarray) -> Frames:
        """Copies of some frames, as episodes of these lengths."""
        values = {each.name: getattr(self, each.name)[rows] for each in fields(self) if each.name != "starts"}
        return Frames(**values, starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


@dataclass(frozen=True)
class Recording:
    """What a dataset has recorded.

    Attributes:
        frames: of the good episodes; actions are in [-1, 1].
        scale: (2, A) float32, centre and half-range of the actions.
        texts: instructions by task number.
        names: of the elements of vectors, by column.
        fps: frames per second.
        dropped: the episodes left out.
        recorded: names of the columns that the dataset has.
    """

    frames: Frames
    scale: np.ndarray
    texts: dict[int, str]
    names: dict[str, list[str]]
    fps: float
    dropped: tuple[Dropped, ...]
    recorded: frozenset[str]

    __repr__ = short_repr


def read_recording(root: Path, options: ReadOptions) -> Recording:
    """Reads a dataset's good episodes.

    Args:
        root: the dataset's folder.
        options: as they are given, or settled.

    Raises:
        DatasetError: no dataset, or one that has not what was asked of it, or no good episode; it names where.
    """
    info = read_info(root)
    options = settle(root, info, options)
    reading = Reading(root, info, options)
    texts = read_tasks(root, info["total_frames"] + MOST_UNUSED)
    frames, scale = _scale_actions(reading, _read_frames(reading))
    _judge(reading, frames)
    if unknown := set(np.unique(frames.tasks).tolist()) - texts.keys():
        raise DatasetError(str(root / TASKS), f"no text for task {min(unknown)}", "the file is damaged; restore it")
    frames = _split_by_task(_keep_good(reading, frames))
    names = {key: element_names(reading.features[key]) for key in VECTORS if key in reading.features}
    if options.action_keys:
        names[ACTION] = list(options.action_keys)
    dropped = tuple(sorted(reading.faults.values(), key=lambda fault: fault.episode))
    fps, recorded = options.fps or info["fps"], frozenset(reading.features)
    return Recording(frames, scale, texts, names, fps, dropped, recorded)


def _read_frames(reading: Reading) -> Frames:
    """The frames that are kept; their actions, rewards and successes stand for all that happened until the next of them."""
    pixels, rows = reading.read()
    starts = reading.check_rows(rows)
    kept = np.flatnonzero(is_sampled(rows["frame_index"], reading.ratio))
    reading.read_videos(pixels, rows, starts, kept)
    count = len(rows["frame_index"])
    happened = (
        rows[ACTION].reshape(count, -1)[:, reading.elements].astype(np.float32),
        rows.get(REWARD, np.zeros(count)).reshape(-1).astype(np.float32),
        rows.get(SUCCESS, np.zeros(count)).reshape(-1).astype(bool),
    )
    if reading.ratio != 1:
        happened = join_blocks(*happened, kept, reading.options.skipped_actions)
    actions, rewards, successes = happened
    empty = np.empty((count, 0), np.float32)
    agent_pos, states = (
        rows.get(key, empty)[kept].reshape(len(kept), -1).astype(np.float32)
        for key in (OBS_STATE, OBS_ENVIRONMENT_STATE)
    )
    episodes, tasks = rows["episode_index"][kept], rows["task_index"][kept]
    starts = np.searchsorted(kept, starts).astype(np.int64)
    rewards[starts[1:] - 1] = 0.0  # where last frames' actions led is not in the dataset
    return Frames(pixels, agent_pos, states, actions, rewards, successes, episodes, tasks, starts)


def _scale_actions(reading: Reading, frames: Frames) -> tuple[Frames, np.ndarray]:
    """The frames with actions in [-1, 1], those of last frames 0; and centre and half-range."""
    actions = frames.actions
    scale = np.stack([np.zeros(actions.shape[1]), np.ones(actions.shape[1])]).astype(np.float32)
    if reading.scale is not None:
        scale = reading.scale[:, reading.elements]
        actions = normalise(actions, scale)
    elif not reading.ours:
        finite = actions[np.isfinite(actions).all(1)]
        if len(finite):
            statistics = read_statistics(reading.root, ACTION)
            scale = action_scale(finite, statistics, reading.elements, reading.options.action_range)
            actions = normalise(actions, scale)
    actions[frames.last] = 0.0
    return replace(frames, actions=actions), scale


def _judge(reading: Reading, frames: Frames) -> None:
    """Notes the episodes that can be read and are not worth it."""
    config, starts = reading.options.quality, frames.starts
    judge = Judge(config, reading.cameras[0], ACTION, continuous_values(frames.actions))
    for episode, a, b in zip(frames.episodes[starts[:-1]].tolist(), starts[:-1], starts[1:], strict=True):
        if b - a < max(2, config.min_frames):
            reading.lose(episode, "frame_index", "too short", f"{b - a} frames")
        elif episode not in reading.faults and not reading.ours:
            fault = judge(episode, frames.pixels[a:b], frames.actions[a : b - 1])
            if fault:
                reading.faults[episode] = fault


def _keep_good(reading: Reading, frames: Frames) -> Frames:
    """Without the episodes at fault; copies only where there are any."""
    lengths = np.diff(frames.starts)
    good = ~np.isin(frames.episodes[frames.starts[:-1]], list(reading.faults))
    if not good.any():
        first = min(reading.faults.values(), key=lambda fault: fault.episode)
        where, found = f"{reading.root}: episode {first.episode}, {first.key}", f"{first.reason}: {first.detail}"
        raise DatasetError(
            where, found, f"none of the {reading.info['total_episodes']} episodes is good; mend the dataset"
        )
    return frames if good.all() else frames.take(np.repeat(good, lengths), lengths[good])


def _split_by_task(frames: Frames) -> Frames:
    """Cuts episodes where their task changes, for whoever reads them takes one text an episode.

    The frame at a cut is there twice: where the last action of one task led, and where the first of the next begins.
    """
    starts = frames.starts
    changes = np.flatnonzero(np.diff(frames.tasks)) + 1
    changes = changes[~np.isin(changes, starts) & ~np.isin(changes, frames.last)]  # at the last one, nothing more is done
    if not len(changes):
        return frames
    ends = np.sort(np.concatenate([starts[1:], changes + 1]))
    begins = np.sort(np.concatenate([starts[:-1], changes]))
    cut = frames.take(np.concatenate([np.arange(a, b) for a, b in zip(begins, ends, strict=True)]), ends - begins)
    cut.actions[cut.last], cut.rewards[cut.last] = 0.0, 0.0
    cut.successes[cut.last] = cut.successes[cut.last - 1]
    return cut
