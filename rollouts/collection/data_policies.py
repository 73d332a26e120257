"""Which scripted policy plays which world for data, in which styles. Knows the worlds' true states, no dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from emu_embodied.envs.pusht.geometry import BOXES_CM, PUSHER_CM, REACH_CM, STEP_CM
from emu_embodied.envs.tabletop.tasks import OBJECTS, Task, goal_tasks
from emu_embodied.errors import DatasetError
from emu_embodied.policies.experts.arms import (
    ForkPusher,
    HandOver,
    Straying,
    move_to,
    push_on_table,
    reach_with_two_links,
)
from emu_embodied.policies.experts.pusht import TeeCollector, TeeConfig
from emu_embodied.policies.experts.tabletop import Collector
from emu_embodied.policies.experts.tabletop_avoiding import AvoidingExpert

FETCH_CM = 5.0  # the gripper's largest displacement per axis and control step
Act = Callable[[np.ndarray], np.ndarray]  # a state (E,) as in info["environment_state"] -> an action (A,)


@dataclass(frozen=True)
class Behaviour:
    """How a world is played for data.

    Attributes:
        styles: name -> share of the episodes.
        begin: (the env after its reset, style, rng) -> what acts in this episode.
    """

    styles: Mapping[str, float]
    begin: Callable[[Any, str, np.random.Generator], Act]


def _tabletop(world: Any, style: str, rng: np.random.Generator) -> Act:
    if world.config.spoken:
        return _instructed(world, rng)
    policy, task = Collector(style, rng), world.task_spec

    def act(state: np.ndarray) -> np.ndarray:
        rows = state.reshape(len(OBJECTS), 4).astype(np.float64)
        positions = rows[:, :2]
        return policy.act(positions, rows[:, 3] > 0, OBJECTS.index(task.cube), task.target(positions))

    return act


def _instructed(world: Any, rng: np.random.Generator, patience: int = 30) -> Act:
    """The avoiding expert, with little noise, from one goal to the next; of those not reached it lets go after a while."""
    expert, task, left = AvoidingExpert(), world.task_spec, patience

    def act(state: np.ndarray) -> np.ndarray:
        nonlocal task, left, expert
        rows = state.reshape(len(OBJECTS), 4).astype(np.float64)
        positions, left = rows[:, :2], left - 1
        if left < 0 or task.distance(positions) <= 0:
            there = tuple(name for name, row in zip(OBJECTS, rows, strict=True) if row[3] and name != "pusher")
            goals = [goal for goal in goal_tasks(there) if goal.distance(positions) > 2.0]
            kinds = sorted({goal.kind for goal in goals})
            kind = kinds[rng.integers(len(kinds))]
            goals = [goal for goal in goals if goal.kind == kind]
            task, left, expert = goals[rng.integers(len(goals))], patience, AvoidingExpert()
        cube, others = cube_and_others(rows, task)
        action = expert.act(positions[0], cube, task.targets(positions), others) + rng.normal(0, 0.08, 2)
        return np.clip(action, -1, 1).astype(np.float32)

    return act


def cube_and_others(rows: np.ndarray, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Where a task's cube is, (2,), and the other cubes on the table, (K, 2), from the table-top's state (O, 4)."""
    cube = OBJECTS.index(task.cube)
    others = [o for o in range(1, len(OBJECTS)) if rows[o, 3] > 0 and o != cube]
    return rows[cube, :2], rows[others, :2]


def _pusht(world: Any, style: str, rng: np.random.Generator) -> Act:
    step = STEP_CM * world.config.control_steps
    config = TeeConfig(tuple(map(tuple, BOXES_CM)), pusher=PUSHER_CM, step=step, reach=REACH_CM)
    policy, mark = TeeCollector(style, config, rng), world.goal()

    def act(state: np.ndarray) -> np.ndarray:
        pusher, tee, _ = state.reshape(3, 4)[:, :3].astype(np.float64)
        return policy.act(pusher[:2], tee, mark)

    return act


def _reacher(world: Any, style: str, rng: np.random.Generator) -> Act:
    mix, seconds = Straying(style, 2, 0.12, rng), 1 / world.metadata["render_fps"]

    def act(state: np.ndarray) -> np.ndarray:
        target, joints, speeds = state[4:6], state[8:10], state[10:12]
        return mix.act(lambda: reach_with_two_links(joints, speeds, target, seconds))

    return act


def _pusher(world: Any, style: str, rng: np.random.Generator) -> Act:
    mix, arm = Straying(style, 7, 0.5, rng), ForkPusher()

    def act(state: np.ndarray) -> np.ndarray:
        return mix.act(lambda: arm.act(state[12:19], state[19:26], state[4:6], state[8:10]))

    return act


def _fetch(world: Any, style: str, rng: np.random.Generator) -> Act:
    mix, step = Straying(style, 4, 0.4, rng), FETCH_CM * world.config.control_steps

    def act(state: np.ndarray) -> np.ndarray:
        *places, _ = state.reshape(-1, 4)[:, :3].astype(np.float64)  # the last row is the agent's
        expert: Callable[..., np.ndarray] = move_to if len(places) == 2 else push_on_table
        return mix.act(lambda: np.append(expert(*places, step), 0.0))

    return act


def _aloha(world: Any, style: str, rng: np.random.Generator) -> Act:
    mix, arms = Straying(style, 14, 0.15, rng), HandOver(1 / world.metadata["render_fps"])
    now = None

    def act(state: np.ndarray) -> np.ndarray:
        nonlocal now
        joints = state[12:26] if now is None else now
        way = arms.act(state[8:11].astype(np.float64)) - joints
        limit = np.where(np.arange(14) % 7 == 6, 0.5, 0.15)  # an arm that jumps throws the cube
        now = joints + np.clip(way, -limit, limit)
        return mix.act(lambda: world.scaled(now), world.scaled(state[12:26]))

    return act


def _metaworld(world: Any, style: str, rng: np.random.Generator) -> Act:
    from metaworld.policies import ENV_POLICY_MAP  # the env is there, so is the package

    mix, policy = Straying(style, 4, 0.6, rng), ENV_POLICY_MAP[world.task_name]()

    def act(state: np.ndarray) -> np.ndarray:
        return mix.act(lambda: policy.get_action(state[-39:].astype(np.float64)))

    return act


ARM = {"expert": 0.4, "noisy": 0.45, "random": 0.15}
BEHAVIOURS = {
    "emu_embodied/TabletopPush-v0": Behaviour({"expert": 0.4, "noisy": 0.52, "random": 0.08}, _tabletop),
    "emu_embodied/PushT-v0": Behaviour({"expert": 0.35, "noisy": 0.6, "random": 0.05}, _pusht),
    "emu_embodied/Reacher-v0": Behaviour(ARM, _reacher),
    "emu_embodied/Pusher-v0": Behaviour(ARM, _pusher),
    "emu_embodied/FetchReach-v0": Behaviour(ARM, _fetch),
    "emu_embodied/FetchPush-v0": Behaviour(ARM, _fetch),
    "emu_embodied/AlohaTransferCube-v0": Behaviour(ARM, _aloha),
    "emu_embodied/MetaWorld-v0": Behaviour(ARM, _metaworld),
}


def behaviour_of(env_id: str) -> Behaviour:
    """The behaviour that plays an env.

    Raises:
        DatasetError: there is no data policy for it.
    """
    if env_id not in BEHAVIOURS:
        raise DatasetError("env", env_id, f"there is a scripted policy for {sorted(BEHAVIOURS)}")
    return BEHAVIOURS[env_id]
