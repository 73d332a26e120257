"""Errors of the package come out of Gymnasium's worker processes as what they are."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from arm import Arm, Blind
from tiny import tiny_world_model

from emu_embodied.envs.checks import check_action, check_options
from emu_embodied.envs.imagined.env import ImaginedEnv
from emu_embodied.errors import InputError


class Checked(Blind):
    """An env that says what is wrong by the package's own checks."""

    def reset(self, *, seed=None, options=None):
        check_options(options)
        return super().reset(seed=seed)

    def step(self, action):
        return super().step(check_action(action, self.action_space).astype(np.float32))


def made() -> gymnasium.Env:
    return Checked(Arm())


def dream() -> gymnasium.Env:
    return ImaginedEnv(tiny_world_model())


def test_a_worker_that_refuses_an_action_raises_the_same_error_here():
    env = gymnasium.vector.AsyncVectorEnv([made, made], context="spawn")
    try:
        env.reset(seed=0)
        with pytest.raises(InputError, match="action: .*stay within"):
            env.step(np.full((2, 7), 9.0, np.float32))
    finally:
        env.close(terminate=True)


def test_a_dream_in_a_worker_refuses_what_it_refuses_here():
    env = gymnasium.vector.AsyncVectorEnv([dream], context="spawn")
    pixels = np.zeros((64, 64, 3), np.uint8)
    begin = {"observation": {"pixels": pixels, "agent_pos": np.zeros(2, np.float32)}, "instruction": ""}
    try:
        env.reset(seed=0, options=begin)
        with pytest.raises(InputError, match="action: .*stay within"):
            env.step(np.full((1, 2), 9.0, np.float32))
    finally:
        env.close(terminate=True)
