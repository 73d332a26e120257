"""World models whose quality is known, and the recordings that tell: for tests of metrics."""

import numpy as np

from emu_embodied.checkpoint import World
from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.rollouts.evaluation import prediction

WORLD = World(
    objects={
        "pusher": (26, 26, 31),
        "red": (219, 41, 33),
        "green": (41, 166, 66),
        "blue": (38, 84, 219),
        "yellow": (242, 196, 31),
        "purple": (148, 51, 189),
    },
    position_scale=(16.0, -16.0),
    env_id="",
)


def held_out(episodes: int = 6, length: int = 14) -> FrameCache:
    """A red square that drifts 1 px a step to the right, and a black one that stands."""
    names = [f"{n}.{p}" for n in WORLD.objects for p in ("x", "y", "yaw", "present")]
    frames = episodes * length
    pixels = np.full((frames, 64, 64, 3), 222, np.uint8)
    states = np.zeros((frames, len(WORLD.objects), 4), np.float32)
    for f in range(frames):
        t = f % length
        for i, (column, row, rgb) in enumerate(
            [(10, 50, WORLD.objects["pusher"]), (20 + t, 20 + f // length, WORLD.objects["red"])]
        ):
            pixels[f, row - 4 : row + 4, column - 4 : column + 4] = rgb
            states[f, i] = ((column - 32) / 2, (32 - row) / 2, 0, 1)
    rest = np.zeros((frames, 2), np.float32)
    return FrameCache(
        pixels,
        states[:, 0, :2],
        states.reshape(frames, -1),
        rest,
        rest[:, 0],
        rest[:, 0] > 0,
        np.arange(episodes + 1) * length,
        ("push the red cube to the left",) * episodes,
        {"state": names, "action": ["x", "y"], "agent_pos": ["x", "y"]},
        4,
    )


class Replayer:
    """A world model that knows the truth: its "codes" are row numbers of a list of frames. `lag` frames behind it is wrong."""

    world, agent_dim = WORLD, 2

    def __init__(self, truth: prediction.Truth, lag: int) -> None:
        self.truth, self.lag, self.frames = truth, lag, truth.pixels.reshape(-1, 64, 64, 3)

    def encode(self, observations):
        return [int((self.frames == o.pixels).all((1, 2, 3)).argmax()) for o in observations]

    def observe(self, history, actions, observations):
        return self.encode(observations)

    def rollout(self, history, actions):
        import torch

        rows = np.array(history)[:, None, None, None] + np.arange(1, actions.shape[2] + 1)[:, None]
        positions = self.truth.positions.reshape(-1, *self.truth.positions.shape[2:])[rows[..., 0]]
        cm = torch.tensor((positions - 32) / 32 * np.array(WORLD.position_scale))
        return type("R", (), {"codes_BSTN": torch.tensor(np.maximum(rows - self.lag, 0)), "positions_BSTOD": cm})

    def decode(self, codes):
        return self.frames[codes[..., 0].numpy()]
