"""Hindsight for PushT: recorded play, relabelled as pushes of the T onto its mark. Knows true states, no model.

Each push that brought the T nearer to its mark is a step of the way there, whatever it was meant for; see `hindsight` for the
table-top's. The mark stays where it is, so that all instructions mean the same.

| group | from | to | caption |
|---|---|---|---|
| behind | the frames before b in which only the robot moved | b | "move beside the T pusher 24 31" |
| push | frames of a push | `stride` on, or where the T is nearest to its mark | "push the T to 30 35 tip 25 40 pusher 24 31" |
| goal | the same, where the T gets onto its mark | there | "the T is on the target pusher 24 31" |
| done | frames in which it is there | the same | "done" |
| edit | frames of the episode before that | there | "the T is on the target pusher 24 31" |
| next | any frame, without an instruction | `stride` frames on | "the T moves to 30 35 tip 25 40 pusher 24 31" |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.data.subgoals import GROUPS, SubgoalRows
from emu_embodied.envs.pusht.geometry import AIMS_CM, TASK
from emu_embodied.errors import DatasetError
from emu_embodied.types import DONE

STATES = tuple(f"{name}.{part}" for name in ("pusher", "T", "tip") for part in ("x", "y", "yaw", "present"))
PHRASES = (
    TASK.lower().rstrip("."),
    "push the t onto the target",
    "push the t onto the green mark",
    "move the t to its target",
    "slide the t onto the mark",
    "bring the t to the green target",
    "put the t on the target",
    "the t should be on the target",
)
EDITS = ("make the t be on the target", "show the t on the green mark")
STILL_CM = 0.1  # a T whose centroid and tip move less was not pushed


@dataclass(frozen=True)
class TeeHindsightConfig:
    """What counts as having been done on purpose; lengths are the mean of what centroid and tip have to go.

    Attributes:
        stride: frames between key frames of a long push.
        before: most frames from a start to the push's beginning.
        nearer_cm: a push counts that brings the T so much nearer, and
        step_cm: each of its key frames at least so much.
        there_cm: the T is on its mark; half a px of a 64 px frame.
    """

    stride: int = 2
    before: int = 8
    nearer_cm: float = 0.8
    step_cm: float = 0.3
    there_cm: float = 0.35


def relabel_tee(cache: FrameCache, config: TeeHindsightConfig | None = None) -> SubgoalRows:
    """What brought the T nearer to its mark in a cache of PushT, as instructions and key frames.

    Raises:
        DatasetError: states that are not PushT's, or a T that never got onto its mark.
    """
    config = config or TeeHindsightConfig()
    if tuple(cache.names["state"]) != STATES:
        raise DatasetError("state names", cache.names["state"][:4], "this hindsight reads PushT's true states")
    captions, rows = {}, []
    for first, last in zip(cache.episode_starts[:-1], cache.episode_starts[1:], strict=True):
        places_TO2 = cache.states[first:last].reshape(-1, 3, 4)[..., :2].astype(np.float64)
        for start, target, group in _episode(places_TO2, config):
            word = captions.setdefault(_caption(group, places_TO2[target]), len(captions))
            goal = {"edit": 1, "next": 2}.get(group, 0)
            rows.append((first + start, first + target, goal, word, GROUPS.index(group)))
    if not any(row[-1] == GROUPS.index("goal") for row in rows):
        raise DatasetError("frames", cache.episodes, "the T never got onto its mark: record more, or an expert's")
    start, end, goal, word, group = np.array(rows, np.int64).T
    return SubgoalRows(start, end, goal, word, group, (PHRASES, EDITS, ()), tuple(captions), GROUPS)


def _episode(places_TO2: np.ndarray, c: TeeHindsightConfig) -> Iterator[tuple[int, int, str]]:
    """(start, target, group) of one episode, its frames counted from 0."""
    length = len(places_TO2)
    left_T = np.linalg.norm(places_TO2[:, 1:] - AIMS_CM, axis=-1).mean(-1)
    moved_T = np.linalg.norm(np.diff(places_TO2[:, 1:], axis=0), axis=-1).max(-1) > STILL_CM
    walked_T = np.linalg.norm(np.diff(places_TO2[:, 0], axis=0), axis=-1)
    begins = np.flatnonzero(moved_T & ~np.concatenate([[False], moved_T[:-1]]))
    for b in begins:
        e = b
        while e < length - 1 and moved_T[e]:
            e += 1
        e = b + int(left_T[b : e + 1].argmin())
        if left_T[b] - left_T[e] < c.nearer_cm and not left_T[e] <= c.there_cm < left_T[b]:
            continue
        for start in range(max(0, b - c.before), e):
            if start < b:
                if not moved_T[start:b].any() and walked_T[start:b].sum() > 1.0:
                    yield start, b, "behind"
                continue
            target = min(start + c.stride, e)
            if left_T[start] > c.there_cm >= left_T[target]:
                yield start, target, "goal"
            elif left_T[start] - left_T[target] > c.step_cm:
                yield start, target, "push"
    there = np.flatnonzero(left_T <= c.there_cm)
    for frame in there[:6]:
        yield frame, frame, "done"
    for start in range(0, there[0] if len(there) else 0, 2):
        yield start, there[0], "edit"
    for start in range(0, length - c.stride, 3):
        if moved_T[start : start + c.stride].any():
            yield start, start + c.stride, "next"


def _caption(group: str, places_O2: np.ndarray) -> str:
    """The caption of a key frame, with places in whole px of a 64 px frame, x right and y down."""
    pusher, tee, tip = ("{} {}".format(*np.clip(np.round(32 + 2 * place), 0, 63).astype(int)) for place in places_O2)
    caption = {
        "behind": "move beside the T",
        "push": f"push the T to {tee} tip {tip}",
        "next": f"the T moves to {tee} tip {tip}",
        "done": DONE,
    }.get(group, "the T is on the target")
    return caption if caption == DONE else f"{caption} pusher {pusher}"
