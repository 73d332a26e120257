"""What the simulated worlds share of Gymnasium's interface: spaces, reset, step, observation, picture. Knows no simulator."""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium
import numpy as np

from emu_embodied.envs.checks import check_action, check_names, check_options, frame_rate, require_reset
from emu_embodied.errors import InputError
from emu_embodied.types import AGENT_POS, PIXELS
from emu_embodied.validation import check_seed


class WorldConfig(Protocol):
    """The options that all worlds have; see those of each."""

    @property
    def image_size(self) -> int: ...
    @property
    def control_steps(self) -> int: ...
    @property
    def terminate_on_success(self) -> bool: ...


class SimulatedEnv[C: WorldConfig](gymnasium.Env):
    """A simulator behind `reset` and `step`; a world begins its episodes, steps its physics, and says what is seen.

    Args:
        config: options.
        render_mode: None or "rgb_array".
        control_rate: control steps a second.
        agent_space: of the robot's own position, to whose bounds it is clipped.
        action_size: A.

    Raises:
        InputError: another render mode, or fewer frames than one in two seconds.
    """

    metadata = {"render_modes": ["rgb_array"]}
    reset_options: tuple[str, ...] = ()

    def __init__(
        self, config: C, render_mode: str | None, control_rate: float, agent_space: gymnasium.spaces.Box, action_size: int
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise InputError("render_mode", render_mode, "choose None or 'rgb_array'")
        self.config, self.render_mode, self._agent_space, self._started = config, render_mode, agent_space, False
        self.metadata = self.metadata | {"render_fps": frame_rate(control_rate, config.control_steps)}
        pixels = gymnasium.spaces.Box(0, 255, (config.image_size, config.image_size, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict({PIXELS: pixels, AGENT_POS: agent_space})
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (action_size,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Draws a new scene, or takes what the options give; returns the first observation and info."""
        super().reset(seed=None if seed is None else check_seed(seed))
        options = check_options(options)
        check_names("reset option", options, self.reset_options)
        self._begin(seed, options)
        self._started = True
        return self._observe(), self._info()

    def step(self, action: np.ndarray):
        """Carries out one action; see the class for units."""
        require_reset(self._started)
        reward, success = self._advance(check_action(action, self.action_space))
        return self._observe(), reward, success and self.config.terminate_on_success, False, self._info()

    def render(self) -> np.ndarray | None:
        """The scene as (256, 256, 3) uint8, for people to look at."""
        return self.frame(256) if self.render_mode == "rgb_array" else None

    def frame(self, size: int) -> np.ndarray:
        """The camera's picture as (size, size, 3) uint8."""
        raise NotImplementedError

    def _begin(self, seed: int | None, options: dict[str, Any]) -> None:
        """Draws the scene of a new episode by `np_random`, with these of the `reset_options` set by hand."""
        raise NotImplementedError

    def _advance(self, action: np.ndarray) -> tuple[float, bool]:
        """Steps the physics by an action that was checked; its reward and success."""
        raise NotImplementedError

    def _agent_pos(self) -> np.ndarray:
        """The robot's own position (D,)."""
        raise NotImplementedError

    def _info(self) -> dict[str, Any]:
        """The info of `reset` and `step`."""
        raise NotImplementedError

    def _observe(self) -> dict[str, np.ndarray]:
        position = np.clip(self._agent_pos(), self._agent_space.low, self._agent_space.high).astype(np.float32)
        return {PIXELS: self.frame(self.config.image_size), AGENT_POS: position}
