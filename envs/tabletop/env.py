"""TabletopPush-v0: a table, a position-controlled pusher, coloured cubes and an instruction. Knows no world model."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import gymnasium
import numpy as np

from emu_embodied.envs.checks import check_keywords, check_pose
from emu_embodied.envs.rendering import Renderers, mujoco
from emu_embodied.envs.simulated import SimulatedEnv
from emu_embodied.errors import InputError, SimulationError
from emu_embodied.types import IS_SUCCESS
from emu_embodied.validation import whole_fields

from .tasks import COLOURS, OBJECTS, UNSEEN_COLOUR, Task, all_tasks, goal_tasks, parse_task

RGB = {
    "red": (0.86, 0.16, 0.13),
    "green": (0.16, 0.65, 0.26),
    "blue": (0.15, 0.33, 0.86),
    "yellow": (0.95, 0.77, 0.12),
    "purple": (0.58, 0.20, 0.74),
}
TABLE_CM = 32.0  # side of the square that the camera sees
REACH_CM = 11.0  # the pusher's centre stays within this distance of the middle, per axis
SPAWN_CM = 8.5
STEP_CM = 0.5  # the pusher's largest displacement per axis and control step
CONTROL_SECONDS = 0.05
MAX_CUBES = 3
STATE_NAMES = tuple(f"{name}.{part}" for name in OBJECTS for part in ("x", "y", "yaw", "present"))
SHIFTS = ("background", "colour", "camera")


@dataclass(frozen=True)
class TabletopConfig:
    """Options of the table-top, each a keyword of `gymnasium.make`.

    Attributes:
        image_size: side of the frame in px: 64, 96 or 128 are the tested ones.
        cubes: (fewest, most) cubes on the table, 1 to 3.
        control_steps: control steps of 0.05 s per action; 5 make one model step of 0.25 s.
        stochastic: hidden friction and mass per episode, and gusts that push cubes at random.
        shift: None, or one of "background", "colour", "camera", for tests outside the training distribution.
        terminate_on_success: end the episode at success (collectors go on).
        spoken: sample instructions from all sentence templates (`tasks.PHRASES`) instead of the few of `tasks.TEMPLATES`.
    """

    image_size: int = 64
    cubes: tuple[int, int] = (1, 3)
    control_steps: int = 5
    stochastic: bool = False
    shift: str | None = None
    terminate_on_success: bool = True
    spoken: bool = False

    def __post_init__(self) -> None:
        whole_fields(self, {"image_size": (16, 512), "control_steps": (1, None)}, InputError)
        counts = self.cubes if all(type(count) is int for count in self.cubes) else ()
        if not (len(counts) == 2 and 1 <= counts[0] <= counts[1] <= MAX_CUBES):
            raise InputError("cubes", self.cubes, f"give (fewest, most) between 1 and {MAX_CUBES}")
        if self.shift is not None and self.shift not in SHIFTS:
            raise InputError("shift", self.shift, f"choose None or one of {SHIFTS}")


class TabletopPushEnv(SimulatedEnv[TabletopConfig]):
    """Push coloured cubes on a table as a sentence says.

    | what | where | unit |
    |---|---|---|
    | action | Box(-1, 1, (2,)) float32 | pusher displacement right and up; 1 = 2.5 cm (0.5 cm per control step) |
    | `pixels` | (H, W, 3) uint8 | RGB from straight above, 32 cm a side: 1 px of 64 = 0.5 cm; x right, y up |
    | `agent_pos` | (2,) float32 | pusher x, y in cm from the table's centre |
    | reward | float | minus the distance in dm that the cube has still to go; plus 1 at success |
    | one step | 5 control steps | 0.25 s; the pusher moves in the first four fifths and settles in the last |
    | `info["object_states"]` | name -> (x, y, yaw) | cm, cm, rad: simulator truth of pusher and cubes |
    | `info["environment_state"]` | (24,) float32 | the same as a vector, named by `STATE_NAMES`; absent: zero |
    | `info["distance"]` | float | cm left to go; `is_success` is distance == 0 |

    The instruction is `env.unwrapped.task` (text) and `info["task"]`. `reset(options={"instruction": ..., "cubes":
    {"red": (x, y, yaw)}, "pusher": (x, y)})` sets a scene by hand.

    The same seed and actions give the same states everywhere, and the same frames from the same process, machine and driver. In
    frames of another thread or driver single values may differ by 1 of 255: OpenGL promises no more.

    Raises:
        InputError: an action with a wrong shape, dtype, range or non-finite values; unknown options.
        SimulationError: MuJoCo's state became non-finite.
    """

    state_names = STATE_NAMES
    reset_options = ("instruction", "cubes", "pusher")

    def __init__(self, render_mode: str | None = None, **options: Any) -> None:
        check_keywords("TabletopPush-v0", options, TabletopConfig.__dataclass_fields__)
        if "cubes" in options:
            cubes = options["cubes"]
            options["cubes"] = tuple(cubes) if isinstance(cubes, list | tuple) else (cubes, cubes)
        agent = gymnasium.spaces.Box(-TABLE_CM / 2, TABLE_CM / 2, (2,), np.float32)
        super().__init__(TabletopConfig(**options), render_mode, 1 / CONTROL_SECONDS, agent, 2)
        xml = (resources.files("emu_embodied.envs.tabletop") / "assets" / "tabletop.xml").read_text()
        self.model = mujoco.MjModel.from_xml_string(xml)
        self.data = mujoco.MjData(self.model)
        self._home = {"mass": self.model.body_mass.copy(), "friction": self.model.geom_friction.copy()}
        self._renderers = Renderers()
        self._colours: tuple[str, ...] = ()
        self.task_spec: Task | None = None
        if self.config.shift == "background":
            self.model.geom_rgba[self.model.geom("table").id, :3] = (0.52, 0.66, 0.60)
        if self.config.shift == "camera":
            self.model.cam_pos[0, :2] = (0.012, -0.008)

    # Gymnasium's interface

    def _begin(self, seed: int | None, options: dict[str, Any]) -> None:
        self._draw_scene(options)
        self._forward()
        task = parse_task(options["instruction"]) if "instruction" in options else self._draw_task()
        missing = {task.cube, task.other} - {"", *self._colours}
        if missing:
            raise InputError("instruction", task.text, f"there is no {missing.pop()} cube among {self._colours}")
        self.task_spec = task

    def _advance(self, action: np.ndarray) -> tuple[float, bool]:
        self.act(action)
        return self.judge()

    def close(self) -> None:
        """Frees the OpenGL contexts."""
        self._renderers.close()

    # The simulator, for those who need no pixels (oracle planners, experts)

    @property
    def task(self) -> str:
        """The episode's instruction."""
        return self.task_spec.text if self.task_spec else ""

    task_description = task

    def act(self, action: np.ndarray) -> None:
        """Steps the physics by one action without rendering; actions are trusted."""
        start = self.data.qpos[:2].copy()
        goal = np.clip(start + action * (STEP_CM / 100) * self.config.control_steps, -REACH_CM / 100, REACH_CM / 100)
        substeps = round(CONTROL_SECONDS * self.config.control_steps / self.model.opt.timestep)
        moving = max(1, round(0.8 * substeps))
        warnings = self.data.warning.number.sum()
        if self.config.stochastic:
            self._gust()
        for i in range(0, moving, 2):
            self.data.ctrl[:] = start + (goal - start) * min(1.0, (i + 2) / moving)
            mujoco.mj_step(self.model, self.data, nstep=min(2, moving - i))
        mujoco.mj_step(self.model, self.data, nstep=substeps - moving)
        if self.data.warning.number.sum() != warnings or not np.isfinite(self.data.qpos).all():
            raise SimulationError("simulator state", "non-finite or reset", "reset the environment; report the actions")

    def judge(self) -> tuple[float, bool]:
        """Reward and success of the present state; see the class."""
        distance = self._distance(self.positions())
        return float((distance <= 0.0) - 0.1 * distance), distance <= 0.0

    def positions(self) -> np.ndarray:
        """True positions (O, 2) in cm, in the order of `OBJECTS`; absent objects are zero."""
        return self.environment_state().reshape(len(OBJECTS), 4)[:, :2]

    def environment_state(self) -> np.ndarray:
        """(24,) float32: x, y (cm), yaw (rad) and presence of each of `OBJECTS`."""
        state = np.zeros((len(OBJECTS), 4), np.float32)
        state[0] = (*self.data.qpos[:2] * 100, 0.0, 1.0)
        for i, colour in enumerate(self._colours):
            x, y, _, qw, qx, qy, qz = self.data.qpos[2 + 7 * i : 9 + 7 * i]
            yaw = np.arctan2(2 * (qw * qz + qx * qy), 1 - 2 * (qy**2 + qz**2))
            state[OBJECTS.index(colour)] = (x * 100, y * 100, yaw, 1.0)
        return state.reshape(-1)

    def frame(self, size: int) -> np.ndarray:
        """Renders the camera as (size, size, 3) uint8."""
        mujoco.mj_kinematics(self.model, self.data)  # mj_step leaves the bodies' poses one substep behind their joints
        return self._renderers.draw(self.model, self.data, "top", size)

    def get_state(self) -> np.ndarray:
        """The full physics state, for `set_state`: a float64 vector, MuJoCo's integration state."""
        state = np.empty(mujoco.mj_stateSize(self.model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(self.model, self.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        return state

    def set_state(self, state: np.ndarray) -> None:
        """Puts the physics back to a state from `get_state` of this episode: same actions, same future to the bit.

        The gusts of the stochastic variant come from `np_random`, which is not part of the state.
        """
        mujoco.mj_setState(self.model, self.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        self._forward()
        # Once more: the forward pass changed the solver's warm start, which is part of the state.
        mujoco.mj_setState(self.model, self.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)

    # Details

    def _draw_scene(self, options: dict[str, Any]) -> None:
        rng = self.np_random
        mujoco.mj_resetData(self.model, self.data)
        palette = (*COLOURS[:3], UNSEEN_COLOUR) if self.config.shift == "colour" else COLOURS
        if "cubes" in options:
            poses = _check_cubes(options["cubes"])
        else:
            count = int(rng.integers(self.config.cubes[0], self.config.cubes[1] + 1))
            names = list(rng.permutation(palette)[:count])
            if self.config.shift == "colour" and UNSEEN_COLOUR not in names:
                names[0] = UNSEEN_COLOUR
            poses = dict(zip(map(str, names), self._draw_poses(count), strict=True))
        self._colours = tuple(poses)
        pusher = options.get("pusher")
        if pusher is not None:
            pusher = check_pose("pusher", pusher, 2, REACH_CM + 0.5) / 100
        self.data.qpos[:2] = self._free_spot(poses.values()) if pusher is None else pusher
        self.data.ctrl[:] = self.data.qpos[:2]
        self.model.body_mass[:], self.model.geom_friction[:] = self._home["mass"], self._home["friction"]
        for i in range(MAX_CUBES):
            self._place_cube(i)
            if i < len(poses):
                x, y, yaw = poses[self._colours[i]]
                turn = (np.cos(yaw / 2), 0, 0, np.sin(yaw / 2))
                self.data.qpos[2 + 7 * i : 9 + 7 * i] = (x / 100, y / 100, 0.0225, *turn)
        if self.config.stochastic:
            bodies = [self.model.body(f"cube{i}").id for i in range(MAX_CUBES)]
            geoms = [self.model.geom(f"cube{i}").id for i in range(MAX_CUBES)]
            self.model.body_mass[bodies] *= rng.uniform(0.5, 4.0, MAX_CUBES)
            self.model.geom_friction[geoms, 0] *= rng.uniform(0.5, 1.8, MAX_CUBES)

    def _place_cube(self, i: int) -> None:
        """Shows cube i in its colour, or parks it outside, weightless and without contacts."""
        there = i < len(self._colours)
        geom, body = self.model.geom(f"cube{i}").id, self.model.body(f"cube{i}").id
        self.model.geom_rgba[geom] = (*RGB[self._colours[i]], 1.0) if there else (0, 0, 0, 0)
        self.model.geom_contype[geom] = self.model.geom_conaffinity[geom] = int(there)
        self.model.body_gravcomp[body] = 0.0 if there else 1.0
        if not there:
            self.data.qpos[2 + 7 * i : 9 + 7 * i] = (1.0 + i, 0, 0.0225, 1, 0, 0, 0)

    def _draw_poses(self, count: int) -> list[tuple[float, float, float]]:
        rng = self.np_random
        while True:
            spots = rng.uniform(-SPAWN_CM, SPAWN_CM, (count, 2))
            gaps = np.linalg.norm(spots[:, None] - spots[None], axis=-1) + 99 * np.eye(count)
            if gaps.min() > 7.5:
                return [(x, y, rng.uniform(-np.pi / 4, np.pi / 4)) for x, y in spots]

    def _free_spot(self, poses) -> np.ndarray:
        while True:
            spot = self.np_random.uniform(-REACH_CM, REACH_CM, 2)
            if all(np.hypot(spot[0] - x, spot[1] - y) > 5.2 for x, y, _ in poses):
                return spot / 100

    def _draw_task(self) -> Task:
        """A random task that is not done yet, each kind equally likely; at least 2 cm are left to go."""
        known = goal_tasks if self.config.spoken else all_tasks
        open_tasks = [task for task in known(self._colours) if task.distance(self.positions()) > 2.0]
        kinds = sorted({task.kind for task in open_tasks})
        kind = kinds[self.np_random.integers(len(kinds))]
        choice = [task for task in open_tasks if task.kind == kind]
        task = choice[self.np_random.integers(len(choice))]
        return replace(task, text=str(self.np_random.choice(task.phrases()))) if self.config.spoken else task

    def _gust(self) -> None:
        self.data.xfrc_applied[:] = 0
        if self.np_random.random() < 0.15:
            i = self.np_random.integers(len(self._colours))
            angle, force = self.np_random.uniform(0, 2 * np.pi), self.np_random.uniform(0.5, 1.2)
            body = self.model.body(f"cube{i}").id
            force *= self.model.body_mass[body] / 0.1
            self.data.xfrc_applied[body, :2] = force * np.cos(angle), force * np.sin(angle)

    def _forward(self) -> None:
        mujoco.mj_forward(self.model, self.data)

    def _agent_pos(self) -> np.ndarray:
        return self.data.qpos[:2] * 100

    def _distance(self, positions: np.ndarray) -> float:
        assert self.task_spec is not None  # since the reset
        return float(self.task_spec.distance(positions.astype(np.float64)))

    def _info(self) -> dict[str, Any]:
        state = self.environment_state()
        rows = state.reshape(len(OBJECTS), 4)
        poses = {name: tuple(map(float, row[:3])) for name, row in zip(OBJECTS, rows, strict=True) if row[3]}
        distance = self._distance(rows[:, :2])
        return {
            IS_SUCCESS: distance <= 0.0,
            "distance": distance,
            "task": self.task,
            "object_states": poses,
            "environment_state": state,
        }


def _check_cubes(cubes: Any) -> dict[str, tuple[float, float, float]]:
    """The poses of a scene set by hand.

    Raises:
        InputError: no mapping of 1 to 3 known colours to finite x, y, yaw on the table, or cubes inside each other.
    """
    if not isinstance(cubes, dict) or not 1 <= len(cubes) <= MAX_CUBES or not set(cubes) <= set(RGB):
        raise InputError("cubes", cubes, f"give {{colour: (x, y, yaw)}} for 1 to {MAX_CUBES} of {tuple(RGB)}")
    poses = {name: check_pose(f"cubes[{name!r}]", pose, 3, TABLE_CM / 2) for name, pose in cubes.items()}
    for (name, pose), (other, pose2) in itertools.combinations(poses.items(), 2):
        if np.linalg.norm(pose[:2] - pose2[:2]) < 4.0:
            raise InputError("cubes", f"{name} and {other} are inside each other", "keep centres 4.5 cm apart or more")
    return {name: (float(x), float(y), float(yaw)) for name, (x, y, yaw) in poses.items()}
