"""Actions and frame rates as training wants them: values in [-1, 1], fewer frames a second. Knows arrays only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from emu_embodied.units import ActionScale

RANGES = {"minmax": ("min", "max"), "quantiles": ("q01", "q99")}
SKIPPED = ("last", "mean")


def action_scale(
    actions: np.ndarray, statistics: Mapping[str, np.ndarray] | None, columns: list[int], how: str
) -> np.ndarray:
    """Centre and half-range (2, A) float32 by which recorded actions become values in [-1, 1].

    Args:
        actions: (F, A) as recorded; used where the dataset has no statistics, or unfit ones.
        statistics: the dataset's own, of all action columns: "min", "max", "q01", "q99".
        columns: the A columns wanted.
        how: one of `RANGES`. A value that never changes gets the half-range 0: it stays what it was.
    """
    names = RANGES[how]
    ends = [(statistics or {}).get(name, np.empty(0)) for name in names]
    if all(len(end) > max(columns) for end in ends) and (ends[0][columns] <= ends[1][columns]).all():
        low, high = (end[columns] for end in ends)
    else:
        low, high = np.quantile(actions.astype(np.float64), (0, 1) if how == "minmax" else (0.01, 0.99), axis=0)
    return np.stack([(low + high) / 2, (high - low) / 2]).astype(np.float32)


def normalise(actions: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Recorded actions (..., A) as float32 in [-1, 1], what lies beyond clipped."""
    return np.clip(ActionScale(*scale).from_robot(actions), -1, 1).astype(np.float32)


def denormalise(actions: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Actions (..., A) in [-1, 1] in the units of the recording."""
    return ActionScale(*scale).to_robot(actions).astype(np.float32)


def is_sampled(frame_index: np.ndarray, ratio: float) -> np.ndarray:
    """Which frames (F,) of their episodes a rate `ratio` times lower keeps: the nearest to each of its moments."""
    moment = np.ceil((frame_index - 0.5) / ratio)
    return np.floor(moment * ratio + 0.5) == frame_index


def join_blocks(
    actions: np.ndarray, rewards: np.ndarray, successes: np.ndarray, starts: np.ndarray, skipped: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What stands for the blocks between kept frames.

    A block's action is its last one (where the robot was sent at its end: right for positions), or their mean (right for
    displacements, whose sum it is in proportion to); rewards add up; success is success anywhere in it.

    Args:
        actions, rewards, successes: (F, A) float32, (F,) float32, (F,) bool.
        starts: (n,) ascending rows where blocks begin, the first frames of episodes among them.
        skipped: one of `SKIPPED`.

    Returns:
        The same, (n, ...).
    """
    ends = np.append(starts[1:], len(actions))
    if skipped == "last":
        joined = actions[ends - 1]
    else:
        joined = np.add.reduceat(actions, starts) / (ends - starts)[:, None].astype(np.float32)
    return joined, np.add.reduceat(rewards, starts), np.maximum.reduceat(successes, starts)
