"""Worlds of others (Gymnasium's, gymnasium-robotics', gym_aloha's, Meta-World's) in the house's keys and units; one class
reads them all by `specs.SPECS`. Knows MuJoCo, no world model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import gymnasium
import numpy as np

from emu_embodied.envs.checks import as_box, check_keywords, check_names
from emu_embodied.envs.rendering import Renderers, mujoco
from emu_embodied.envs.simulated import SimulatedEnv
from emu_embodied.errors import EmuEmbodiedError, InputError, SimulationError
from emu_embodied.types import AGENT_POS, IS_SUCCESS
from emu_embodied.validation import whole_fields

from .specs import ROBOTS, SPECS, Reading, simulator

WARNINGS = {  # what MuJoCo counts when it leaves the numbers; it resets itself silently then
    name: getattr(mujoco.mjtWarning, f"mjWARN_BAD{name.upper()}") for name in ("qpos", "qvel", "qacc", "ctrl")
}
WHOLE = mujoco.mjtState.mjSTATE_INTEGRATION


@dataclass(frozen=True)
class AdapterConfig:
    """Options of an adapted world, each a keyword of `gymnasium.make`.

    Attributes:
        image_size: side of the frame in px; drawn at twice that, averaged over areas.
        control_steps: control steps of the inner env per action, their rewards summed.
        task: which of the world's tasks (Meta-World's names, as "push-v3"); "" for its default.
        terminate_on_success: end the episode at success (collectors go on).
    """

    image_size: int = 64
    control_steps: int = 5
    task: str = ""
    terminate_on_success: bool = True

    def __post_init__(self) -> None:
        whole_fields(self, {"image_size": (16, 512), "control_steps": (1, None)}, InputError)
        if not isinstance(self.task, str):
            raise InputError("task", self.task, "give a task's name")


class AdaptedEnv(SimulatedEnv[AdapterConfig]):
    """A MuJoCo world of somebody else's.

    | what | where | unit |
    |---|---|---|
    | action | Box(-1, 1, (A,)) float32 | what `action_names` say; -1 and 1 are the inner action's bounds |
    | `pixels` | (H, W, 3) uint8 | RGB of the reading's camera |
    | `agent_pos` | (D,) float32 | `agent_names`: joints in rad, positions in cm; clipped to the declared bounds |
    | reward | float | the inner rewards of the control steps, summed |
    | one step | `control_steps` | of 1 / `Reading.fps` s; the action is held |
    | `info["is_success"]` | bool | see the reading; judged when the step ends |
    | `info["environment_state"]` | (E,) float32 | `state_names`: x, y, z (cm), yaw (rad) of each point, agent, details |

    Args:
        world: a name in `SPECS`.
        render_mode: None or "rgb_array".
        options: see `AdapterConfig`.

    Raises:
        ConfigError: the world's package is not installed; it names the extra.
        InputError: an action with a wrong shape, dtype, range or non-finite values; unknown options.
        SimulationError: the simulator left the numbers, reset itself or raised; it names the episode's seed and the key.
    """

    def __init__(self, world: str, render_mode: str | None = None, **options: Any) -> None:
        check_names("world", [world], SPECS)
        check_keywords(world, options, AdapterConfig.__dataclass_fields__)
        self.reading = reading = SPECS[world]
        low, high = (np.array(bounds, np.float32) for bounds in (reading.agent_low, reading.agent_high))
        agent = gymnasium.spaces.Box(low, high, dtype=np.float32)
        super().__init__(AdapterConfig(**options), render_mode, reading.fps, agent, len(reading.action_names))
        task = self.config.task or reading.task
        if task != reading.task:
            check_names("task", [task], reading.tasks())
        self.task = self.task_description = reading.sentence.format(task=task.removesuffix("-v3").replace("-", " "))
        self.inner = reading.make(task)
        self.task_name, self.agent_names, self.action_names = task, reading.agent_names, reading.action_names
        self.robots = tuple(name for name in reading.points if name in ROBOTS)
        parts = tuple(f"{name}.{part}" for name in reading.points for part in ("x", "y", "z", "yaw"))
        self.state_names = (*parts, *(f"agent.{name}" for name in reading.agent_names), *reading.detail_names)
        box = as_box(self.inner.action_space)
        self._low = np.array(box.low if reading.action_low is None else reading.action_low, np.float64)
        self._high = np.array(box.high if reading.action_high is None else reading.action_high, np.float64)
        self._renderers = Renderers()
        self._seed: int | None = None
        self._last: tuple = ()

    # Gymnasium's interface

    def _begin(self, seed: int | None, options: dict[str, Any]) -> None:
        self._seed = seed
        inner_seed = int(self.np_random.integers(2**31))
        observation = self._guard("reset", self.reading.rewind, self.inner, inner_seed)
        self._last = (observation, 0.0, False, False, {IS_SUCCESS: False, "success": False})
        self._settle()

    def _advance(self, action: np.ndarray) -> tuple[float, bool]:
        return self.act(action), self._info()[IS_SUCCESS]

    def close(self) -> None:
        """Frees what the simulator and the renderers hold."""
        self._renderers.close()
        self.inner.close()

    # The simulator, for those who need no pixels (oracle planners, experts)

    def act(self, action: np.ndarray) -> float:
        """Steps the physics by one action without rendering, and returns the reward; actions are trusted."""
        inner_action = self._low + (np.asarray(action, np.float64) + 1) / 2 * (self._high - self._low)
        inner_action, reward = inner_action.astype(self.inner.action_space.dtype), 0.0
        for _ in range(self.config.control_steps):
            self._last = self._guard("step", self.inner.step, inner_action)
            self._check_warnings()
            reward += float(self._last[1])
        self._settle()
        self._check("reward", reward)
        return reward

    def scaled(self, inner_action: np.ndarray) -> np.ndarray:
        """The action (A,) in [-1, 1] that stands for one of the inner env's, clipped."""
        return np.clip(2 * (inner_action - self._low) / (self._high - self._low) - 1, -1, 1)

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the reading's points are: (P, 3) float64 in m, and their yaw (P,) in rad, 0 where they have none."""
        places, yaws = [], []
        for where in self.reading.points.values():
            if callable(where):
                place, yaw = where(self.inner), 0.0
            else:
                part = getattr(self._data, where[0])(where[1])
                place, yaw = part.xpos, np.arctan2(part.xmat[3], part.xmat[0])
            places.append(np.array(place, np.float64))
            yaws.append(float(yaw))
        return np.stack(places), np.array(yaws)

    def environment_state(self) -> np.ndarray:
        """(E,) float32, named by `state_names`."""
        places, yaws = self.points()
        details = self.reading.details(self.inner, self._data, self._last[0])
        state = np.concatenate([np.column_stack([100 * places, yaws]).reshape(-1), self._agent(), details])
        return self._check("environment_state", state.astype(np.float32))

    def frame(self, size: int) -> np.ndarray:
        """The camera's picture as (size, size, 3) uint8, averaged over areas."""
        model, data = simulator(self.inner)
        glob = model.vis.global_
        glob.offwidth, glob.offheight = max(glob.offwidth, 2 * size), max(glob.offheight, 2 * size)
        picture = self._renderers.draw(model, data, _camera(self.reading), 2 * size)
        picture = picture[:: -1 if self.reading.turned else 1, :: -1 if self.reading.turned else 1]
        return cv2.resize(np.ascontiguousarray(picture), (size, size), interpolation=cv2.INTER_AREA)

    def get_state(self) -> np.ndarray:
        """The full physics state, for `set_state`: a float64 vector, MuJoCo's integration state."""
        model, data = simulator(self.inner)
        state = np.empty(mujoco.mj_stateSize(model, WHOLE))
        mujoco.mj_getState(model, data, state, WHOLE)
        return state

    def set_state(self, state: np.ndarray) -> None:
        """Puts the physics back to a state from `get_state` of this episode: same actions, same future."""
        model, data = simulator(self.inner)
        mujoco.mj_setState(model, data, np.asarray(state, np.float64), WHOLE)
        mujoco.mj_forward(model, data)
        mujoco.mj_setState(model, data, np.asarray(state, np.float64), WHOLE)  # forward warms the solver
        self._settle()

    def __reduce__(self):
        """For `copy.deepcopy` and `pickle`, which would copy Gymnasium's envs as they were made, not as they are."""
        remedy = "make another with gymnasium.make and reset it with the same seed; get_state and set_state carry the physics"
        raise InputError("copy", f"of the env {self.reading.sentence!r}", remedy)

    # Details

    @property
    def _data(self) -> mujoco.MjData:
        return simulator(self.inner)[1]

    def _settle(self) -> None:
        """Brings the bodies' poses, which a step leaves one substep behind, up to their joints."""
        model, data = simulator(self.inner)
        mujoco.mj_kinematics(model, data)
        self.reading.show(self.inner, model, data)

    def _agent(self) -> np.ndarray:
        return self.reading.agent(self.inner, *simulator(self.inner))

    def _agent_pos(self) -> np.ndarray:
        return self._check(AGENT_POS, self._agent())

    def _info(self) -> dict[str, Any]:
        places, yaws = self.points()
        return {
            IS_SUCCESS: self.reading.success(self.inner, places, self._last),
            "task": self.task,
            "object_states": {
                name: (100 * float(place[0]), 100 * float(place[1]), float(yaw))
                for name, place, yaw in zip(self.reading.points, places, yaws, strict=True)
            },
            "environment_state": self.environment_state(),
        }

    def _guard(self, what: str, call: Callable, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except EmuEmbodiedError:
            raise
        except Exception as error:
            raise self._failure(what, f"{type(error).__name__}: {error}") from error

    def _check_warnings(self) -> None:
        for name, kind in WARNINGS.items():
            if self._data.warning[kind].number:
                self._data.warning[kind].number = 0
                raise self._failure(name, "MuJoCo left the numbers and reset itself")
        self._check("qpos", self._data.qpos)

    def _check(self, key: str, values: Any) -> Any:
        if not np.isfinite(values).all():
            raise self._failure(key, "non-finite")
        return values

    def _failure(self, key: str, value: str) -> SimulationError:
        where = "" if self._seed is None else f" in the episode of seed {self._seed}"
        return SimulationError(f"{key}{where}", value, "reset the environment; report the actions")


def _camera(reading: Reading) -> str | mujoco.MjvCamera:
    if isinstance(reading.camera, str):
        return reading.camera
    camera = mujoco.MjvCamera()
    for name, value in reading.camera.items():
        setattr(camera, name, value)
    return camera
