"""Which scripted policy plays which world for data, in which styles. Knows the worlds' true states, no dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from emu_embodied.envs.tasks import OBJECTS
from emu_embodied.envs.tee import BOXES_CM, PUSHER_CM, REACH_CM, STEP_CM
from emu_embodied.errors import DatasetError
from emu_embodied.policies.pusht import TeeCollector, TeeConfig
from emu_embodied.policies.scripted import Collector

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
    policy, task = Collector(style, rng), world.task_spec

    def act(state: np.ndarray) -> np.ndarray:
        rows = state.reshape(len(OBJECTS), 4).astype(np.float64)
        positions = rows[:, :2]
        return policy.act(positions, rows[:, 3] > 0, OBJECTS.index(task.cube), task.target(positions))

    return act


def _pusht(world: Any, style: str, rng: np.random.Generator) -> Act:
    step = STEP_CM * world.config.control_steps
    config = TeeConfig(tuple(map(tuple, BOXES_CM)), pusher=PUSHER_CM, step=step, reach=REACH_CM)
    policy, mark = TeeCollector(style, config, rng), world.goal()

    def act(state: np.ndarray) -> np.ndarray:
        pusher, tee, _ = state.reshape(3, 4)[:, :3].astype(np.float64)
        return policy.act(pusher[:2], tee, mark)

    return act


BEHAVIOURS = {
    "emu_embodied/TabletopPush-v0": Behaviour({"expert": 0.4, "noisy": 0.52, "random": 0.08}, _tabletop),
    "emu_embodied/PushT-v0": Behaviour({"expert": 0.35, "noisy": 0.6, "random": 0.05}, _pusht),
}


def behaviour_of(env_id: str) -> Behaviour:
    """The behaviour that plays an env.

    Raises:
        DatasetError: nobody plays this one.
    """
    if env_id not in BEHAVIOURS:
        raise DatasetError("env", env_id, f"there is a scripted policy for {sorted(BEHAVIOURS)}")
    return BEHAVIOURS[env_id]
