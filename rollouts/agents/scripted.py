"""The scripted experts as policies of many worlds, real or dreamt: they go by places. Knows no model, no simulator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emu_embodied.envs.checks import bounds
from emu_embodied.envs.pusht.geometry import AIMS_CM, BOXES_CM, PUSHER_CM, REACH_CM, STEP_CM
from emu_embodied.envs.tabletop.tasks import OBJECTS, parse_task
from emu_embodied.errors import ConfigError
from emu_embodied.policies.experts.pusht import TeeConfig, TeePusher
from emu_embodied.policies.experts.tabletop import Expert
from emu_embodied.rollouts.vector_envs import DreamtWorlds, Moment, RealWorlds
from emu_embodied.types import OBS_ENVIRONMENT_STATE

TEE_STEPS = 5  # control steps of PushT's action
MARK = np.array([*AIMS_CM[0], np.pi / 4])  # where the T belongs: x, y in cm and yaw


class ExpertAgent:
    """The scripted expert: on true places in the real env, on believed ones in dreams; a `policy_ranking.Agent`.

    Args:
        stray: share of the steps, drawn by each episode's seed, with a uniform action instead: a dial of how good it is.

    Raises:
        ConfigError: a share outside of [0, 1].
    """

    def __init__(self, stray: float = 0.0) -> None:
        self.stray = stray
        if isinstance(stray, bool) or not isinstance(stray, int | float) or not 0 <= stray <= 1:
            raise ConfigError("stray", stray, "give a share from 0 to 1")

    def check(self, worlds: RealWorlds | DreamtWorlds) -> None:
        """See `Agent`.

        Raises:
            ConfigError: worlds without a scripted expert, or that do not report where their objects are.
        """
        names, layouts = set(worlds.objects), worlds.shapes[OBS_ENVIRONMENT_STATE]
        scripted = {"pusher", "T", "tip"} <= names or "pusher" in names <= set(OBJECTS)
        if not scripted or (3 * len(worlds.objects),) not in layouts:
            raise ConfigError(
                "policy", "expert", "it is for the table-top and PushT, with the objects that their models know"
            )

    def begin(self, worlds: RealWorlds | DreamtWorlds, seeds: Sequence[int]) -> None:
        """See `Agent`."""
        self.objects, self._tee = worlds.objects, "tip" in worlds.objects
        self._bounds, self._rngs = bounds(worlds.action_space), [np.random.default_rng([seed, 7]) for seed in seeds]
        boxes = tuple(map(tuple, BOXES_CM))
        config = TeeConfig(boxes, pusher=PUSHER_CM, step=TEE_STEPS * STEP_CM, reach=REACH_CM)
        self._acts = [TeePusher(config, rng) if self._tee else Expert() for rng in self._rngs]

    def act(self, moment: Moment) -> np.ndarray:
        """See `Agent`."""
        places = moment.states[3 * len(self.objects)].reshape(len(self._acts), -1, 3)[..., :2].astype(np.float64)
        decide = self._on_pusht if self._tee else self._on_table
        wanted = [decide(i, places[i], moment.tasks[i]) for i in range(len(places))]
        for i, rng in enumerate(self._rngs):
            if rng.random() < self.stray:
                wanted[i] = rng.uniform(*self._bounds)
        return np.stack(wanted)

    def _on_table(self, i: int, places: np.ndarray, instruction: str) -> np.ndarray:
        known, task = np.zeros((len(OBJECTS), 2)), parse_task(instruction)
        known[[OBJECTS.index(name) for name in self.objects]] = places
        return self._acts[i].act(known[0], known[OBJECTS.index(task.cube)], task.target(known))

    def _on_pusht(self, i: int, places: np.ndarray, instruction: str) -> np.ndarray:
        pusher, tee, tip = (places[self.objects.index(name)] for name in ("pusher", "T", "tip"))
        x, y = tip - tee  # at yaw 0 the tip lies straight below
        return self._acts[i].act(pusher, np.array([*tee, np.arctan2(-x, y)]), MARK)
