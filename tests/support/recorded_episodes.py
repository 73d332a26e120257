"""Recorded episodes of random numbers, as `collect` writes them: for tests of what is on disk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from emu_embodied.types import ACTION, OBS_ENVIRONMENT_STATE, OBS_STATE, Episode

NAMES = {OBS_STATE: ("x", "y"), OBS_ENVIRONMENT_STATE: ("a.x", "a.y", "a.yaw"), ACTION: ("dx", "dy")}
TEXTS = ("push the red cube to the left", "move the blue block to the centre")


def episode(seed: int, steps: int = 5, **changes) -> Episode:
    rng = np.random.default_rng(seed)
    made = Episode(
        rng.integers(0, 256, (steps + 1, 16, 20, 3), np.uint8),
        rng.normal(size=(steps + 1, 2)).astype(np.float32),
        rng.normal(size=(steps + 1, 3)).astype(np.float32),
        rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
        rng.normal(size=steps).astype(np.float32),
        rng.random(steps) < 0.5,
        TEXTS[seed % 2],
    )
    return replace(made, **changes)
