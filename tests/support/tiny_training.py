"""What the tests of training share: a few drawn episodes, a recipe of seconds, and the digest of what was trained."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from emu_embodied.checkpoint import World
from emu_embodied.commands._config import compose_config
from emu_embodied.commands.train import make_recipe
from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.storage.files import load_folder
from emu_embodied.training.folder import TrainingRun

OBJECTS = {
    "pusher": (26, 26, 31),
    "red": (219, 41, 33),
    "green": (41, 166, 66),
    "blue": (38, 84, 219),
    "yellow": (242, 196, 31),
}
WORLD = World(OBJECTS, (16.0, -16.0), "emu_embodied/TabletopPush-v0", ("x", "y"))


def quiet(folder: Path) -> TrainingRun:
    """A run that prints nothing."""
    return TrainingRun(folder, report=lambda line: None)


def frames(episodes: int = 8, length: int = 12) -> FrameCache:
    """A red square that a black one carries around, drawn in numpy."""
    rng = np.random.default_rng(0)
    pixels = np.full((episodes * length, 64, 64, 3), 222, np.uint8)
    states = np.zeros((episodes, length, 5, 4), np.float32)
    actions = rng.uniform(-1, 1, (episodes, length, 2)).astype(np.float32)
    actions[:, -1] = 0
    for e in range(episodes):
        place = rng.uniform(-8, 8, 2)
        for t in range(length):
            states[e, t, :2] = [[*place, 0, 1], [*(place * 0.5), 0, 1]]
            place = np.clip(place + 2.5 * actions[e, t], -11, 11)
    for image, ((ax, ay, *_), (bx, by, *_), *_) in zip(pixels, states.reshape(-1, 5, 4), strict=True):
        for x, y, colour in ((bx, by, OBJECTS["red"]), (ax, ay, OBJECTS["pusher"])):
            column, row = int(32 + 2 * x), int(32 - 2 * y)
            image[row - 4 : row + 4, column - 4 : column + 4] = colour
    names = [f"{n}.{p}" for n in OBJECTS for p in ("x", "y", "yaw", "present")]
    return FrameCache(
        pixels,
        states[..., 0, :2].reshape(-1, 2).copy(),
        states.reshape(episodes * length, 20),
        actions.reshape(-1, 2),
        rng.uniform(-1, 0, episodes * length).astype(np.float32),
        rng.random(episodes * length) < 0.1,
        np.arange(episodes + 1) * length,
        tuple(f"push the red cube to the {w}" for w in ("left", "right", "top", "bottom") * (episodes // 4)),
        {"state": names, "action": ["x", "y"], "agent_pos": ["x", "y"]},
        4,
    )


def tiny_recipe():
    return make_recipe(
        compose_config("train", ["preset=tiny", "recipe.tokenizer_loop.steps=8", "recipe.trajectory_loop.steps=10"])
    )


def digest(folder: Path) -> dict[str, str]:
    tensors, _ = load_folder(folder)
    return {
        f"{name}.{key}": hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
        for name, entry in tensors.items()
        for key, value in entry.items()
    }
