"""An env's pictures, positions and actions in a model's words, and back. Knows neither LeRobot nor a checkpoint.

An env that a model was trained in speaks its language. LeRobot's PushT shows the same world as `emu_embodied/PushT-v0` in
other units, and asks for an action five times as often.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from emu_embodied.envs.pusht.geometry import REACH_CM, SIDE_PX, STEP_CM, TASK, to_cm, to_px
from emu_embodied.errors import ConfigError, InputError
from emu_embodied.framing import fitted
from emu_embodied.types import OBS_STATE, Observation

WORLDS = ("auto", "own", "pusht")
PUSHT_ID, PUSHT_STEPS = (
    "emu_embodied/PushT-v0",
    5,
)  # the world that a PushT model knows, and its control steps per action
WHITE, WALL_PX, WALL_GREY = 255, (3, 8), 211  # of gym_pusht's drawing: from where to where its walls reach


class Dialect(Protocol):
    """Translates between an env and a model.

    Attributes:
        hold: the env's steps per action of the model, in which its action stays the same.
        instruction: what the env means where it says nothing.
    """

    hold: int
    instruction: str

    def to_model_observation(self, observation: Observation) -> Observation:
        """The env's observation as the model's."""
        ...

    def to_env_action(self, actions_TA: np.ndarray, agent_pos: np.ndarray) -> np.ndarray:
        """The robot's successive actions (T, A), in its own units, as the env's, (T, A) float32, from where it is."""
        ...


class OwnWorld:
    """The env speaks as the model's own world: nothing changes but the size of pictures, if asked.

    Args:
        image_size: side of the model's frames in px.
        camera: what its pictures are called, for messages.
        letterbox: fit pictures of another size into the model's; otherwise they are an error.
    """

    hold, instruction = 1, ""

    def __init__(self, image_size: int, camera: str, letterbox: bool) -> None:
        self.image_size, self.camera, self.letterbox = image_size, camera, letterbox

    def to_model_observation(self, observation: Observation) -> Observation:
        """See `Dialect`.

        Raises:
            InputError: a picture of another size than the model's, where none are fitted.
        """
        size, (height, width) = self.image_size, observation.pixels.shape[:2]
        if (height, width) != (size, size) and not self.letterbox:
            rule = f"the model sees {size} x {size} px: give those, or let --policy.letterbox=true fit them"
            raise InputError(self.camera, f"{height} x {width} px", rule)
        return Observation(fitted(observation.pixels, size), observation.agent_pos, observation.instruction)

    def to_env_action(self, actions_TA: np.ndarray, agent_pos: np.ndarray) -> np.ndarray:
        """See `Dialect`."""
        return actions_TA


class GymPushT:
    """LeRobot's PushT (gym_pusht) for a model of `emu_embodied/PushT-v0`.

    | what | there | for the model |
    |---|---|---|
    | picture | 96 px (0.6.1, whatever `observation_width` says), sampled | `image_size` px, averaged over areas |
    | `agent_pos` | px, 0 to 512 | cm from the middle; 16 px count as 1 cm |
    | action | the pusher's target in px, each 0.1 s | its displacement, 1 = 3 cm, each 0.5 s: the target stays for five steps |
    | task | none | `pusht.geometry.TASK` |

    The walls are thin, and sampled they come out lighter and wider than averaged; a model that never saw such walls takes its
    eyes off the pusher. They never change, so they are drawn anew. The red cross of the last action is in the videos for
    people only, not in what is observed.

    Args:
        image_size: side of the model's frames in px.
        camera: what the pictures are called, for messages.
    """

    hold, instruction = PUSHT_STEPS, TASK

    def __init__(self, image_size: int, camera: str) -> None:
        self.image_size, self.camera = image_size, camera
        low, high = WALL_PX
        drawn = np.full((SIDE_PX, SIDE_PX, 3), WHITE, np.uint8)
        drawn[low : SIDE_PX - low, low : SIDE_PX - low] = WALL_GREY
        drawn[high : SIDE_PX - high, high : SIDE_PX - high] = WHITE
        self._walls = fitted(drawn, image_size)
        self._border = np.ones((image_size, image_size), bool)
        blurred = max(1, 2 * high * image_size // SIDE_PX)  # px that sampling may have touched
        self._border[blurred:-blurred, blurred:-blurred] = False

    def to_model_observation(self, observation: Observation) -> Observation:
        """See `Dialect`.

        Raises:
            InputError: a picture that is not square, or a position that is not one of gym_pusht's.
        """
        pixels, agent = observation.pixels, observation.agent_pos
        if pixels.shape[0] != pixels.shape[1]:
            raise InputError(self.camera, f"{pixels.shape[0]} x {pixels.shape[1]} px", "PushT's pictures are square")
        if agent.shape != (2,) or agent.min() < 0 or agent.max() > SIDE_PX:
            remedy = f"PushT's pusher is at x, y from 0 to {SIDE_PX} px: --env.obs_type=pixels_agent_pos tells them"
            raise InputError(OBS_STATE, agent.tolist(), remedy)
        frame = fitted(pixels, self.image_size)
        faint = (
            self._border & (frame.min(-1) > 200) & (np.ptp(frame, axis=-1) < 4)
        )  # a wall or nothing, no T and no pusher
        frame[faint] = self._walls[faint]
        return Observation(frame, to_cm(agent).astype(np.float32), observation.instruction)

    def to_env_action(self, actions_TA: np.ndarray, agent_pos: np.ndarray) -> np.ndarray:
        """See `Dialect`; each action begins where the one before was to end."""
        target, targets = np.asarray(agent_pos, np.float64), []
        for action in actions_TA:
            target = np.clip(target + action.astype(np.float64) * STEP_CM * self.hold, -REACH_CM, REACH_CM)
            targets.append(to_px(target))
        return np.array(targets, np.float32)


def choose(world: str, env_id: str, image_size: int, shown: int | None) -> str:
    """Which of `WORLDS` is spoken.

    Args:
        world: what was asked for; "auto" is "pusht" for a PushT model that is shown pictures of another size than its
            own, for ours come in its size and LeRobot's do not.
        env_id: of the world that the model was trained in.
        image_size: side of the model's frames in px.
        shown: height of the env's pictures in px; None where it is not given.

    Raises:
        ConfigError: no such world, or PushT for a model of something else.
    """
    if world not in WORLDS:
        raise ConfigError("world", world, f"choose one of {WORLDS}")
    if world == "pusht" and env_id != PUSHT_ID:
        raise ConfigError(
            "world", world, f"the checkpoint's world is {env_id or 'unknown'}: choose own, or a model of PushT"
        )
    if world == "auto":
        return "pusht" if env_id == PUSHT_ID and shown not in (None, image_size) else "own"
    return world

