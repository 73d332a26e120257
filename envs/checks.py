"""Checks of what callers hand to an env, done once at its boundary. Knows Gymnasium's spaces, no env and no model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium
import numpy as np

from emu_embodied.errors import InputError, KeywordError
from emu_embodied.types import AGENT_POS, PIXELS, Observation
from emu_embodied.units import forgiven
from emu_embodied.validation import frame_of, numbers_of, whole_number


def as_box(space: gymnasium.Space) -> gymnasium.spaces.Box:
    """A space that is known to be a box."""
    assert isinstance(space, gymnasium.spaces.Box)
    return space


def bounds(space: gymnasium.Space) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest action (A,) of a box, float64."""
    box = as_box(space)
    return box.low.astype(np.float64), box.high.astype(np.float64)


def check_action(action: Any, space: gymnasium.Space) -> np.ndarray:
    """Returns the action, or a vector env's batch of them, as float64 after checking it once, at the boundary.

    Raises:
        InputError: wrong shape, not a number, NaN, inf or out of the space's bounds (a thousandth of half their
            distance is forgiven).
    """
    space = as_box(space)
    array = numbers_of("action", action, f"give a float32 array of shape {space.shape}")
    if array.shape != space.shape:
        raise InputError("action", f"shape {array.shape}", f"give shape {space.shape}")
    room = forgiven(space)
    if (array < space.low - room).any() or (array > space.high + room).any():
        raise InputError("action", array.tolist(), f"stay within {_bounds(space)}")
    return np.clip(array.astype(np.float64), space.low, space.high)


def _bounds(space: gymnasium.spaces.Box) -> str:
    """A space's bounds, once where all its numbers share them."""
    ends = np.unique(np.stack([space.low.ravel(), space.high.ravel()], 1), axis=0)
    if len(ends) == 1:
        return "[{:g}, {:g}]".format(*ends[0])
    return " to ".join("[" + ", ".join(f"{x:.3g}" for x in end.ravel()) + "]" for end in (space.low, space.high))


def require_reset(started: bool) -> None:
    """Says, as Gymnasium's own wrapper does, that there is nothing to step yet.

    Raises:
        gymnasium.error.ResetNeeded: `reset` was never called.
    """
    if not started:
        raise gymnasium.error.ResetNeeded("call reset() before step(): there is no scene yet")


def frame_rate(control_rate: float, control_steps: int) -> int:
    """The frames a second, a whole number as datasets and videos have it, of so many control steps each.

    Raises:
        InputError: less than one in two seconds, which rounds to none.
    """
    if control_steps >= 2 * control_rate:
        most = math.ceil(2 * control_rate) - 1
        raise InputError("control_steps", control_steps, f"the frame rate would be 0 a second: choose at most {most}")
    return round(control_rate / control_steps)


def check_observation(observation: Any, instruction: Any, space: gymnasium.spaces.Dict) -> Observation:
    """Returns a frame, the robot's position and the task as an `Observation` after checking each.

    Args:
        observation: a mapping with `pixels` (H, W, 3) uint8 and `agent_pos` (D,) numbers in the space's unit, or an
            `Observation`.
        instruction: the task as text; None for the observation's own, or none.
        space: what the observation must fit, by the same keys.

    Raises:
        InputError: a missing part, a wrong type, shape or dtype, NaN, inf, or a position out of the space (0.001 is
            forgiven).
    """
    if isinstance(observation, Observation):
        instruction = observation.instruction if instruction is None else instruction
        observation = {PIXELS: observation.pixels, AGENT_POS: observation.agent_pos}
    if not isinstance(observation, Mapping) or not {PIXELS, AGENT_POS} <= set(observation):
        found = sorted(map(str, observation)) if isinstance(observation, Mapping) else type(observation).__name__
        raise InputError("observation", found, f"give a dict with {PIXELS!r} and {AGENT_POS!r}, as the env returns it")
    if not isinstance(instruction, str | None):
        raise InputError("instruction", instruction, "give the task as text")
    pixels = frame_of(f"observation[{PIXELS!r}]", observation[PIXELS], as_box(space[PIXELS]).shape)
    agent_pos = _check_agent_pos(observation[AGENT_POS], as_box(space[AGENT_POS]))
    return Observation(pixels, agent_pos, instruction or "")


def _check_agent_pos(agent_pos: Any, box: gymnasium.spaces.Box) -> np.ndarray:
    field = f"observation[{AGENT_POS!r}]"
    array = numbers_of(field, agent_pos, f"give float32 of shape {box.shape}")
    if array.shape != box.shape:
        raise InputError(field, f"{array.dtype} {array.shape}", f"give float32 of shape {box.shape}")
    if (array < box.low - 1e-3).any() or (array > box.high + 1e-3).any():
        raise InputError(field, array.tolist(), f"stay within {box.low.tolist()} and {box.high.tolist()}")
    return np.clip(array.astype(np.float32), box.low, box.high)


def picture_of(observation: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Returns the pixels of an env's observation, of a shape if one is given.

    Raises:
        InputError: there are none, or they are no uint8 picture of that shape.
    """
    if not isinstance(observation, Mapping) or PIXELS not in observation:
        found = sorted(map(str, observation)) if isinstance(observation, Mapping) else type(observation).__name__
        raise InputError("observation", found, f"give a dict with {PIXELS!r}, as the env's observation_space says")
    pixels = observation[PIXELS]
    return pixels if shape is None else frame_of(f"observation[{PIXELS!r}]", pixels, shape)


def check_names(field: str, names: Iterable[Any], known: Iterable[str]) -> None:
    """Raises an InputError that names the first of `names` that is not among the `known`."""
    known = tuple(known)
    for name in names:
        if name not in known:
            raise InputError(field, name, f"choose among {known}")


def check_options(options: Any) -> dict[str, Any]:
    """Returns a copy of `reset`'s options.

    Raises:
        InputError: they are neither None nor a dict.
    """
    if not isinstance(options, dict | None):
        raise InputError("options", options, "give a dict, or None")
    return dict(options or {})


def check_keywords(env: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises a KeywordError that names the first of an env's keywords that is not among the `known`."""
    known = sorted(known)
    for name in names:
        if name not in known:
            raise KeywordError("option", f"unexpected keyword argument {name!r}", f"{env} knows {known}")


def check_index(field: str, value: Any, length: int) -> int:
    """Returns a whole number of 0..length - 1 as int.

    Raises:
        InputError: it is no whole number, or outside.
    """
    return whole_number(field, value, 0, length - 1, InputError)


def check_pose(field: str, pose: Any, length: int, bound: float) -> np.ndarray:
    """Returns a pose that is set by hand, x and y in cm and perhaps more, as (length,) float64.

    Raises:
        InputError: other than `length` finite numbers, or x or y beyond the bound.
    """
    try:
        array = np.asarray(pose, np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(field, pose, f"give {length} numbers") from error
    if array.shape != (length,) or not np.isfinite(array).all() or np.abs(array[:2]).max() > bound:
        raise InputError(field, pose, f"give {length} finite numbers, x and y within {bound:g} cm of the middle")
    return array
