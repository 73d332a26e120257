"""How worlds of others are read: who makes them, what is where, from which camera, when it is a success. Knows no pixels."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np

from emu_embodied.envs.rendering import no_opengl
from emu_embodied.errors import ConfigError, InputError

REACHED_M = 0.02  # Reacher: fingertip and target touch
PUSHED_M = 0.05  # Pusher: the object's centre from the goal's


@dataclass(frozen=True)
class Reading:
    """How one world is read; `env` stands for the inner env, unwrapped, `model, data` for its MuJoCo pair.

    Attributes:
        make: task name -> the inner env, unwrapped. The name is "" for worlds of one task.
        extra: what to install, as in `pip install "emu-embodied[EXTRA]"`; "" for nothing more.
        sentence: the task in words; `{task}` is replaced.
        fps: control steps a second, before action repeat.
        camera: the name of one of the model's own, or lookat (m), distance (m), azimuth and elevation (degrees).
        points: name -> (model's "body" or "site", its name), or a function of env; the robot itself first.
        success: (env, points (P, 3) in m, what the inner step returned) -> bool.
        agent: (env, model, data) -> the robot's own position; agent_names its elements; agent_low, agent_high its bounds.
        action_names: what the action's elements are called.
        details, detail_names: (env, data, inner observation) -> more numbers of the state.
        action_low, action_high: what -1 and 1 stand for; None takes the inner action space's bounds.
        rewind: (env, seed) -> inner observation, a reset.
        show: moves what only a picture needs, such as a goal's mark.
        turned: the camera hangs upside down.
        task: the default task's name.
        tasks: () -> all the task names.
    """

    make: Callable[[str], gymnasium.Env]
    extra: str
    sentence: str
    fps: float
    camera: str | Mapping[str, Any]
    points: Mapping[str, Any]
    success: Callable[[Any, np.ndarray, tuple], bool]
    agent: Callable[[Any, Any, Any], np.ndarray]
    agent_names: tuple[str, ...]
    agent_low: tuple[float, ...]
    agent_high: tuple[float, ...]
    action_names: tuple[str, ...]
    details: Callable[[Any, Any, Any], np.ndarray] = lambda env, data, observation: np.empty(0)
    detail_names: tuple[str, ...] = ()
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None
    rewind: Callable[[Any, int], Any] = lambda env, seed: env.reset(seed=seed)[0]
    show: Callable[[Any, Any, Any], None] = lambda env, model, data: None
    turned: bool = False
    task: str = ""
    tasks: Callable[[], tuple[str, ...]] = lambda: ("",)


def needed(extra: str, error: ImportError) -> ConfigError:
    """The error that names what to install."""
    return ConfigError("env", extra, f'{error}; pip install "emu-embodied[{extra}]"')


def simulator(env: Any) -> tuple[Any, Any]:
    """The inner env's MjModel and MjData; dm_control's are wrapped."""
    if hasattr(env, "model"):
        return env.model, env.data
    physics = env._env.physics
    return physics.model.ptr, physics.data.ptr


# Gymnasium's MuJoCo envs

PUSHER_JOINTS = ("pan", "lift", "upper_roll", "elbow", "forearm_roll", "wrist", "wrist_roll")


def _gymnasium(name: str) -> Callable[[str], gymnasium.Env]:
    return lambda task: gymnasium.make(name, disable_env_checker=True).unwrapped


def _near(first: int, second: int, metres: float) -> Callable[[Any, np.ndarray, tuple], bool]:
    return lambda env, points, last: bool(np.linalg.norm(points[first, :2] - points[second, :2]) < metres)


def _reacher_agent(env, model, data) -> np.ndarray:
    return (data.qpos[:2] + np.pi) % (2 * np.pi) - np.pi


REACHER = Reading(
    make=_gymnasium("Reacher-v5"),
    extra="",
    sentence="Move the fingertip to the red target.",
    fps=50,
    camera={"lookat": (0, 0, 0), "distance": 0.62, "azimuth": 90, "elevation": -90},
    points={"fingertip": ("body", "fingertip"), "target": ("body", "target")},
    success=_near(0, 1, REACHED_M),
    agent=_reacher_agent,
    agent_names=("shoulder", "elbow"),
    agent_low=(-np.pi, -np.pi),
    agent_high=(np.pi, np.pi),
    action_names=("shoulder", "elbow"),
    details=lambda env, data, observation: data.qvel[:2].copy(),
    detail_names=("shoulder.speed", "elbow.speed"),
)
PUSHER = Reading(
    make=_gymnasium("Pusher-v5"),
    extra="",
    sentence="Push the white cylinder onto the red disc.",
    fps=20,
    camera={"lookat": (0.42, -0.3, -0.2), "distance": 1.5, "azimuth": 90, "elevation": -70},
    points={"tips": ("body", "tips_arm"), "object": ("body", "object"), "goal": ("body", "goal")},
    success=_near(1, 2, PUSHED_M),
    agent=lambda env, model, data: data.qpos[:7].copy(),
    agent_names=PUSHER_JOINTS,
    agent_low=(-2.5, -0.8, -1.8, -2.6, -1.8, -1.4, -1.8),
    agent_high=(2.0, 1.7, 2.0, 0.3, 1.8, 0.3, 1.8),
    action_names=PUSHER_JOINTS,
    details=lambda env, data, observation: data.qvel[:7].copy(),
    detail_names=tuple(f"{name}.speed" for name in PUSHER_JOINTS),
)

# gymnasium-robotics


def _fetch(name: str) -> Callable[[str], gymnasium.Env]:
    def make(task: str) -> gymnasium.Env:
        try:
            import gymnasium_robotics
        except ImportError as error:
            raise needed("robotics", error) from error
        gymnasium.register_envs(gymnasium_robotics)
        env: Any = gymnasium.make(name, disable_env_checker=True).unwrapped
        handle = env.model.body("robot0:mocap").id
        env.model.geom_rgba[env.model.geom_bodyid == handle, 3] = 0  # green lines through the gripper: a tool, not the world
        return env

    return make


def _fetch_agent(env, model, data) -> np.ndarray:
    fingers = data.joint("robot0:l_gripper_finger_joint").qpos + data.joint("robot0:r_gripper_finger_joint").qpos
    return 100 * np.concatenate([data.site("robot0:grip").xpos, fingers])


def _fetch_mark(env, model, data) -> None:
    site = model.site("target0")
    data.site("target0").xpos[:] = env.goal
    site.pos[:] = env.goal - data.xpos[model.site_bodyid[site.id]]


_FETCH = partial(
    Reading,
    extra="robotics",
    fps=25,
    success=lambda env, points, last: bool(last[-1]["is_success"]),
    agent=_fetch_agent,
    agent_names=("x", "y", "z", "opening"),
    agent_low=(90.0, 20.0, 20.0, -2.0),
    agent_high=(180.0, 130.0, 110.0, 12.0),
    action_names=("x", "y", "z", "opening"),
    show=_fetch_mark,
)
FETCH_REACH = _FETCH(
    make=_fetch("FetchReach-v4"),
    sentence="Move the gripper to the red mark.",
    camera={"lookat": (1.3, 0.75, 0.55), "distance": 1.05, "azimuth": 132, "elevation": -24},
    points={"gripper": ("site", "robot0:grip"), "target": lambda env: env.goal},
)
FETCH_PUSH = _FETCH(
    make=_fetch("FetchPush-v4"),
    sentence="Push the block to the red mark.",
    camera={"lookat": (1.3, 0.75, 0.45), "distance": 0.9, "azimuth": 170, "elevation": -48},
    points={"gripper": ("site", "robot0:grip"), "block": ("site", "object0"), "target": lambda env: env.goal},
)

# gym_aloha

ALOHA_HOME = np.array([0, -0.96, 1.16, 0, -0.3, 0])  # an arm's joints at the start, rad
ALOHA_REACH = 1.5  # rad from there
ALOHA_LIMITS = np.array([[-3.14, -1.85, -1.76, -3.14, -1.86, -3.14], [3.14, 1.25, 1.6, 3.14, 2.23, 3.14]])
ALOHA_JOINTS = tuple(
    f"{side}_{joint}"
    for side in ("left", "right")
    for joint in ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
)


def _aloha(task: str) -> gymnasium.Env:
    try:
        from gym_aloha.env import AlohaEnv
    except ModuleNotFoundError as error:
        raise needed("aloha", error) from error
    except Exception as error:  # dm_control opens OpenGL with its import
        raise no_opengl(error) from error
    env = AlohaEnv("transfer_cube", obs_type="pixels_agent_pos")
    inner = env._env.task
    nothing = {"top": np.zeros((1, 1, 3), np.uint8)}  # it would draw three pictures of 640 x 480 a control step
    inner.get_observation = lambda physics: {"qpos": inner.get_qpos(physics), "images": nothing}
    return env


def _aloha_bounds(row: int) -> tuple[float, ...]:
    arm = np.clip(ALOHA_HOME + (ALOHA_REACH if row else -ALOHA_REACH), *ALOHA_LIMITS)
    return (*arm.tolist(), float(row)) * 2


ALOHA = Reading(
    make=_aloha,
    extra="aloha",
    sentence="Pick up the cube with the right arm and hand it to the left one.",
    fps=50,
    camera="top",
    points={
        "right": ("body", "vx300s_right/gripper_link"),
        "left": ("body", "vx300s_left/gripper_link"),
        "cube": ("body", "box"),
    },
    success=lambda env, points, last: bool(last[-1]["is_success"]),
    agent=lambda env, model, data: env._env.task.get_qpos(env._env.physics),
    agent_names=ALOHA_JOINTS,
    agent_low=(*ALOHA_LIMITS[0], -1.0) * 2,
    agent_high=(*ALOHA_LIMITS[1], 2.0) * 2,
    action_names=ALOHA_JOINTS,
    action_low=_aloha_bounds(0),
    action_high=_aloha_bounds(1),
)

# Meta-World


def _metaworld_tasks() -> tuple[str, ...]:
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ImportError as error:
        raise needed("metaworld", error) from error
    return tuple(sorted(ALL_V3_ENVIRONMENTS))


def _metaworld(task: str) -> gymnasium.Env:
    if task not in (known := _metaworld_tasks()):
        raise InputError("task", task, f"choose among {known}")
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

    make: Any = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{task}-goal-observable"]
    env = make(seed=0)
    env.model.camera(METAWORLD.camera).pos[:] = (0.75, 0.075, 0.7)  # nearer, as LeRobot has it
    env._freeze_rand_vec, env.seeded_rand_vec = False, True  # or every episode would be the first
    env.max_path_length = sys.maxsize  # it would refuse control step 501
    return env


def _metaworld_reset(env, seed: int) -> np.ndarray:
    env.seed(seed)
    return env.reset()[0]


def _metaworld_marks(env, model, data) -> None:
    for site in env._target_site_config:
        env._set_pos_site(*site)


METAWORLD = Reading(
    make=_metaworld,
    extra="metaworld",
    sentence="{task}",
    fps=80,
    camera="corner2",
    turned=True,
    points={
        "hand": ("body", "hand"),
        "object": lambda env: env._get_pos_objects()[:3],
        "target": lambda env: env._target_pos,
    },
    success=lambda env, points, last: bool(last[-1]["success"]),
    agent=lambda env, model, data: np.append(100 * env.get_endeff_pos(), env._get_curr_obs_combined_no_goal()[3]),
    agent_names=("x", "y", "z", "opening"),
    agent_low=(-52.5, 34.8, -5.25, 0.0),
    agent_high=(52.5, 102.5, 70.0, 1.0),
    action_names=("x", "y", "z", "closing"),
    details=lambda env, data, observation: observation,
    detail_names=tuple(f"observation.{i}" for i in range(39)),
    rewind=_metaworld_reset,
    show=_metaworld_marks,
    task="reach-v3",
    tasks=_metaworld_tasks,
)

ROBOTS = ("fingertip", "tips", "gripper", "left", "right", "hand")  # points that are the robot's own
SPECS = {
    "reacher": REACHER,
    "pusher": PUSHER,
    "fetch_reach": FETCH_REACH,
    "fetch_push": FETCH_PUSH,
    "aloha": ALOHA,
    "metaworld": METAWORLD,
}
