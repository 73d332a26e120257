"""Recorded play on the table-top, written out by hand: for tests of what is made of it."""

import numpy as np

from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.envs.tabletop.tasks import OBJECTS

NAMES = [f"{name}.{part}" for name in OBJECTS for part in ("x", "y", "yaw", "present")]


def cache(paths: list[np.ndarray], there=("pusher", "red", "blue")) -> FrameCache:
    """Episodes of positions (T, 6, 2); the pixels are of no account."""
    states = []
    for path in paths:
        state = np.zeros((len(path), 6, 4), np.float32)
        for name in there:
            state[:, OBJECTS.index(name), :2] = path[:, OBJECTS.index(name)]
            state[:, OBJECTS.index(name), 3] = 1
        states.append(state.reshape(len(path), -1))
    frames = sum(map(len, paths))
    starts = np.cumsum([0, *map(len, paths)])
    return FrameCache(
        np.zeros((frames, 1, 1, 3), np.uint8),
        np.zeros((frames, 2), np.float32),
        np.concatenate(states),
        np.zeros((frames, 2), np.float32),
        np.zeros(frames, np.float32),
        np.zeros(frames, bool),
        starts,
        ("push the red cube to the left",) * len(paths),
        {"state": NAMES, "agent_pos": ["x", "y"], "action": ["x", "y"]},
        4.0,
    )


def pushed_left(steps: int = 4, size: float = 2.0) -> np.ndarray:
    """The pusher walks behind the red cube for three steps, then pushes it to the left; the blue one stands above."""
    path = np.zeros((4 + steps + 2, 6, 2))
    red, pusher, blue = (OBJECTS.index(name) for name in ("red", "pusher", "blue"))
    path[:, blue] = (6, 9)
    for t in range(len(path)):
        pushed = size * np.clip(t - 3, 0, steps)
        path[t, red] = (-pushed, 1)
        path[t, pusher] = (4 - pushed, 1) if t >= 3 else (4 + 2 * (3 - t), 1)
    return path
