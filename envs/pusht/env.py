"""PushT-v0: LeRobot's PushT (gym_pusht) in the house's keys and units. Knows pymunk through gym_pusht, no world model."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import cv2
import gymnasium
import numpy as np

from emu_embodied.envs.checks import check_keywords, check_pose
from emu_embodied.envs.simulated import SimulatedEnv
from emu_embodied.errors import ConfigError, InputError, SimulationError
from emu_embodied.types import IS_SUCCESS
from emu_embodied.validation import whole_fields

from .geometry import (
    ARENA_CM,
    CENTROID_CM,
    PUSHER_CM,
    PX_PER_CM,
    REACH_CM,
    STEP_CM,
    TASK,
    TIP_CM,
    outside,
    to_cm,
    to_px,
    turn,
)

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pygame still reads pkg_resources
        from gym_pusht.envs import PushTEnv as GymPushT
except ImportError as error:
    raise ConfigError("env", "PushT-v0", f'{error}; pip install "emu-embodied[pusht]"') from error

CONTROL_SECONDS = 0.1
OBJECTS = ("pusher", "T", "tip")
POSES = {"pusher": (2, REACH_CM), "T": (3, ARENA_CM / 2)}  # that can be set by hand: numbers, and how far from the middle


@dataclass(frozen=True)
class PushTConfig:
    """Options of PushT, each a keyword of `gymnasium.make`.

    Attributes:
        image_size: side of the frame in px; gym_pusht's drawing of 512 px, averaged over areas.
        control_steps: control steps of 0.1 s per action; 5 make one model step of 0.5 s.
        terminate_on_success: end the episode at success (collectors go on).
    """

    image_size: int = 64
    control_steps: int = 5
    terminate_on_success: bool = True

    def __post_init__(self) -> None:
        whole_fields(self, {"image_size": (16, 512), "control_steps": (1, None)}, InputError)


class PushTEnv(SimulatedEnv[PushTConfig]):
    """Push a T onto its green mark, with the pusher's displacement as the action.

    | what | where | unit |
    |---|---|---|
    | action | Box(-1, 1, (2,)) float32 | the pusher's target less its position, right and down; 1 = 3 cm |
    | `pixels` | (H, W, 3) uint8 | RGB from above, 32 cm (PushT's 512 px) a side: 1 px of 64 = 0.5 cm; x right, y down |
    | `agent_pos` | (2,) float32 | pusher x, y in cm from the middle |
    | reward | float | gym_pusht's: covered share of the mark over 0.95, at most 1 |
    | one step | 5 control steps | 0.5 s; the target is held, and the pusher arrives within 4% of the way |
    | `info["environment_state"]` | (12,) float32 | `state_names`: x, y (cm), yaw (rad), presence of pusher, T's centroid, tip |
    | `info["distance"]` | float | cm left to go: mean of centroid's and tip's |
    | `info["coverage"]` | float | covered share of the mark; `is_success` is over 0.95, as in gym_pusht, when the step ends |

    gym_pusht's own action is the target itself, 0 to 512. Displacements keep the world the same wherever the pusher is; the
    target is kept in reach of the walls. A reset is gym_pusht's of the same seed, drawn again where the pusher would stand
    in the T.
    `reset(options={"pusher": (x, y), "T": (x, y, yaw)})` sets a scene by hand.

    Raises:
        InputError: an action with a wrong shape, dtype, range or non-finite values; unknown options.
        SimulationError: the physics left the numbers.
    """

    reset_options = ("pusher", "T")
    state_names = tuple(f"{name}.{part}" for name in OBJECTS for part in ("x", "y", "yaw", "present"))
    task = task_description = TASK

    def __init__(self, render_mode: str | None = None, **options: Any) -> None:
        check_keywords("PushT-v0", options, PushTConfig.__dataclass_fields__)
        agent = gymnasium.spaces.Box(-ARENA_CM / 2, ARENA_CM / 2, (2,), np.float32)
        super().__init__(PushTConfig(**options), render_mode, 1 / CONTROL_SECONDS, agent, 2)
        self._game = _new_game()

    # Gymnasium's interface

    def _begin(self, seed: int | None, options: dict[str, Any]) -> None:
        given = {name: check_pose(name, pose, *POSES[name]) for name, pose in options.items()}
        self._game.np_random = self.np_random
        while True:
            self._game.reset()
            self._place(**given)
            if len(given) == 2 or self._clearance() > 0.05:
                break

    def _advance(self, action: np.ndarray) -> tuple[float, bool]:
        self.act(action)
        return self.judge()

    def close(self) -> None:
        """Frees what the simulator holds."""
        self._game.close()

    # The simulator, for those who need no pixels (oracle planners, experts)

    def act(self, action: np.ndarray) -> None:
        """Steps the physics by one action without rendering; actions are trusted."""
        way = np.asarray(action, np.float64) * STEP_CM * self.config.control_steps
        target = to_px(np.clip(to_cm(self._game.agent.position) + way, -REACH_CM, REACH_CM))
        for _ in range(self.config.control_steps):
            self._game.step(target)
        if not np.isfinite(self.get_state()).all():
            raise SimulationError("simulator state", "non-finite", "reset the environment; report the actions")

    def judge(self) -> tuple[float, bool]:
        """Reward and success of the present state; see the class."""
        coverage = float(self._game._get_coverage())
        return min(1.0, coverage / self._game.success_threshold), coverage > self._game.success_threshold

    def poses(self) -> np.ndarray:
        """True x, y (cm) and yaw (rad) of pusher, T's centroid and tip: (3, 3) float64."""
        yaw = (self._game.block.angle + np.pi) % (2 * np.pi) - np.pi
        centre, tip = (to_cm(self._game.block.local_to_world(tuple(_block_px(p)))) for p in (np.zeros(2), TIP_CM))
        return np.array([[*to_cm(self._game.agent.position), 0.0], [*centre, yaw], [*tip, yaw]])

    def goal(self) -> np.ndarray:
        """x, y (cm) and yaw (rad) of the mark's centroid: (3,) float64."""
        x, y, yaw = self._game.goal_pose
        return np.array([*(to_cm((x, y)) + turn(yaw) @ CENTROID_CM), yaw])

    def aims(self) -> np.ndarray:
        """Where the T's centroid and tip belong: (2, 2) float64 in cm."""
        x, y, yaw = self.goal()
        return np.array([x, y]) + np.stack([np.zeros(2), turn(yaw) @ TIP_CM])

    def environment_state(self) -> np.ndarray:
        """(12,) float32: x, y (cm), yaw (rad) and presence in view of each of `OBJECTS`."""
        poses = self.poses()
        present = (np.abs(poses[:, :2]) < ARENA_CM / 2).all(-1)
        return np.column_stack([poses, present]).astype(np.float32).reshape(-1)

    def frame(self, size: int) -> np.ndarray:
        """gym_pusht's drawing as (size, size, 3) uint8, averaged over areas."""
        screen = self._game._draw()
        bgrx = np.asarray(screen.get_view("0"), np.uint8).reshape(512, 512, 4)
        return np.ascontiguousarray(cv2.resize(bgrx, (size, size), interpolation=cv2.INTER_AREA)[..., 2::-1])

    def get_state(self) -> np.ndarray:
        """The bodies' state for `set_state`, (10,) float64: positions, velocities, angle and its rate, in PushT's px."""
        agent, block = self._game.agent, self._game.block
        moving = (*agent.position, *agent.velocity, *block.position, *block.velocity)
        return np.array([*moving, block.angle, block.angular_velocity])

    def set_state(self, state: np.ndarray) -> None:
        """Puts the bodies back to a state from `get_state`: same actions, same future to the bit whenever it is set.

        The contact solver's memory of the step before is not part of it, so that the future may differ a little from that of
        the episode in which the state was read.
        """
        self._game._setup()
        agent, block = self._game.agent, self._game.block
        values = np.asarray(state, np.float64).tolist()
        agent.position, agent.velocity = values[0:2], values[2:4]
        block.angle, block.angular_velocity = values[8:10]  # before the position: turning moves it
        block.position, block.velocity = values[4:6], values[6:8]
        for body in (agent, block):
            self._game.space.reindex_shapes_for_body(body)

    def __getstate__(self) -> dict[str, Any]:
        """For `copy.deepcopy` and `pickle`: the bodies' state, as `get_state` has it, stands for pymunk's space."""
        return {**self.__dict__, "_game": self.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._game = _new_game()
        self.set_state(state["_game"])

    # Details

    def _place(self, pusher: np.ndarray | None = None, T: np.ndarray | None = None) -> None:
        state = self.get_state()
        if pusher is not None:
            state[0:2] = to_px(pusher)
        if T is not None:
            state[4:6], state[8] = to_px(T[:2] - turn(T[2]) @ CENTROID_CM), T[2]
        self.set_state(state)

    def _clearance(self) -> float:
        """cm between the pusher's rim and the T's; negative inside."""
        pusher, (x, y, yaw) = self.poses()[:2]
        return float(outside(turn(yaw).T @ (pusher[:2] - (x, y)))) - PUSHER_CM

    def _agent_pos(self) -> np.ndarray:
        return to_cm(self._game.agent.position)

    def _info(self) -> dict[str, Any]:
        coverage, poses = float(self._game._get_coverage()), self.poses()
        return {
            IS_SUCCESS: coverage > self._game.success_threshold,
            "coverage": coverage,
            "distance": float(np.linalg.norm(poses[1:, :2] - self.aims(), axis=-1).mean()),
            "task": self.task,
            "object_states": {name: tuple(map(float, pose)) for name, pose in zip(OBJECTS, poses, strict=True)},
            "environment_state": self.environment_state(),
        }


def _new_game() -> GymPushT:
    game = GymPushT(obs_type="state")
    game._setup()  # bodies, so that there is a state before the first reset
    return game


def _block_px(point: np.ndarray) -> np.ndarray:
    """A point of the T by its centroid, in cm, as one by gym_pusht's origin, in its px."""
    return (point + CENTROID_CM) * PX_PER_CM
