"""An env as a model sees it: its pictures fitted into the model's frames as a dataset's are. Knows no model and no world."""

from __future__ import annotations

from typing import Any, TypeGuard

import gymnasium
import numpy as np

from emu_embodied.envs.checks import picture_of
from emu_embodied.errors import InputError
from emu_embodied.framing import fitted
from emu_embodied.types import PIXELS


class Letterboxed(gymnasium.ObservationWrapper):
    """Shows `pixels` of another size than a model's as training fits them: whole, in the middle, the rest black.

    Args:
        env: shows a Dict with `pixels` (h, w, 3) uint8.
        size: side of the model's frames in px.

    Raises:
        InputError: an env without such pictures.
    """

    def __init__(self, env: gymnasium.Env, size: int) -> None:
        super().__init__(env)
        seen = env.observation_space
        if not isinstance(seen, gymnasium.spaces.Dict) or not _is_picture(seen.spaces.get(PIXELS)):
            raise InputError("env.observation_space", seen, f"show a Dict of {PIXELS!r}, (H, W, 3) uint8, and more")
        self.size, self._shown = size, seen[PIXELS].shape
        own = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict({**seen.spaces, PIXELS: own})

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """The env's, with pictures of the model's size.

        Raises:
            InputError: pictures of another shape or type than its space says.
        """
        pixels = picture_of(observation, self._shown)
        return {**observation, PIXELS: fitted(pixels, self.size)}


def as_seen(env: gymnasium.Env, size: int) -> gymnasium.Env:
    """The env itself, or one that shows its pictures in a model's size.

    Raises:
        InputError: as `Letterboxed`.
    """
    seen = env.observation_space
    if isinstance(seen, gymnasium.spaces.Dict) and _is_picture(pixels := seen.spaces.get(PIXELS)):
        if pixels.shape == (size, size, 3):
            return env
    return Letterboxed(env, size)


def _is_picture(space: gymnasium.Space | None) -> TypeGuard[gymnasium.spaces.Box]:
    return isinstance(space, gymnasium.spaces.Box) and space.dtype == np.uint8 and space.shape[2:] == (3,)
