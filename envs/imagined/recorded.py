"""The first moments of recorded episodes as an env that can only be reset: where scenes begin without one. Knows no model."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from emu_embodied.envs.checks import check_names, check_options
from emu_embodied.errors import InputError
from emu_embodied.types import AGENT_POS, PIXELS, TASK
from emu_embodied.units import ActionScale
from emu_embodied.validation import check_seed

from .starts import Recordings, check_dataset


class RecordedStarts(gymnasium.Env):
    """Each reset shows the first frame of a recorded episode, drawn by the seed.

    Args:
        dataset: a `FrameCache`.
        scale: of the robot.
    """

    metadata = {"render_modes": []}

    def __init__(self, dataset: Recordings, scale: ActionScale) -> None:
        self._dataset = check_dataset(dataset)
        places = dataset.agent_pos.shape[1:]
        self.observation_space = gymnasium.spaces.Dict(
            {
                PIXELS: gymnasium.spaces.Box(0, 255, dataset.pixels.shape[1:], np.uint8),
                AGENT_POS: gymnasium.spaces.Box(-np.inf, np.inf, places, np.float32),
            }
        )
        self.action_space = scale.box

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Draws an episode."""
        super().reset(seed=None if seed is None else check_seed(seed))
        check_names("reset option", check_options(options), ())
        data = self._dataset
        episode = int(self.np_random.integers(len(data.instructions)))
        row = int(data.episode_starts[episode])
        return {PIXELS: data.pixels[row], AGENT_POS: data.agent_pos[row]}, {TASK: data.instructions[episode]}

    def step(self, action: np.ndarray):
        """Refuses: recordings do not answer to actions.

        Raises:
            InputError: always.
        """
        raise InputError("step", "a recorded start", "recordings do not answer to actions: give the env itself")
