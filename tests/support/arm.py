"""A robot of seven joints in physical units, and tiny world models of it: for tests of what leaves the package."""

from __future__ import annotations

import gymnasium
import numpy as np
from tiny import tiny_world_model

from emu_embodied.checkpoint import World
from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.policies.planners.cem import CEM, CEMConfig
from emu_embodied.world_model import TokenWorldModel

HIGH = np.array([0.05, 0.05, 0.05, 0.3, 0.3, 0.3, 1.0], np.float32)  # m, rad, and an opening from 0 to 1
LOW = np.array([-0.05, -0.05, -0.05, -0.3, -0.3, -0.3, 0.0], np.float32)
NAMES = ("x", "y", "z", "rx", "ry", "rz", "grip")
SCALE = ((LOW + HIGH) / 2, (HIGH - LOW) / 2)  # centre and half-range


class Arm(gymnasium.Env):
    """Keeps what it was sent; its pictures show nothing of it."""

    metadata = {"render_modes": [], "render_fps": 10}

    def __init__(self, low: np.ndarray = LOW, high: np.ndarray = HIGH) -> None:
        self.action_space = gymnasium.spaces.Box(np.float32(low), np.float32(high))
        pixels = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict(
            {"pixels": pixels, "agent_pos": gymnasium.spaces.Box(-np.inf, np.inf, (7,), np.float32)}
        )
        self.sent: list[np.ndarray] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.sent = []
        return self._seen(), {"is_success": False, "task": ""}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.sent.append(np.array(action))
        return self._seen(), 0.0, False, False, {"is_success": False, "task": ""}

    def _seen(self):
        noise = self.np_random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        return {"pixels": noise, "agent_pos": np.zeros(7, np.float32)}


class Blind(gymnasium.ObservationWrapper):
    """The arm as a model without a position head sees it."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        nothing = gymnasium.spaces.Box(-1, 1, (0,), np.float32)
        self.observation_space = gymnasium.spaces.Dict({**env.observation_space, "agent_pos": nothing})

    def observation(self, observation):
        return {**observation, "agent_pos": np.zeros(0, np.float32)}


def arm_model(*scales, known=(), **options) -> TokenWorldModel:
    """A model of the arm, trained on as many datasets as there are scales; by default on one that reached its bounds."""
    scale = tuple(np.asarray(each).tolist() for each in scales or (SCALE,))
    world = World({}, (1.0, -1.0), "", NAMES, action_scale=scale, known=known)
    return tiny_world_model(world=world, **options)


def planner() -> CEM:
    return CEM(CEMConfig(candidates=8, iterations=1, elites=2, horizon=4))


def frames(episodes: int = 2, steps: int = 5) -> FrameCache:
    """Recordings of the arm as dreams start in them: no rewards, no success, no states."""
    rng, count = np.random.default_rng(0), episodes * steps
    return FrameCache(
        rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8),
        np.zeros((count, 0), np.float32),
        np.zeros((count, 0), np.float32),
        np.zeros((count, 7), np.float32),
        np.zeros(count, np.float32),
        np.zeros(count, bool),
        np.arange(episodes + 1) * steps,
        ("",) * episodes,
        {"agent_pos": [], "state": [], "action": list(NAMES)},
        10.0,
        known=np.zeros((episodes, 3), bool),
    )
