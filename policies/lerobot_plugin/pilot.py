"""One robot's plan-act-observe loop, an observation at a time. Knows protocols; no LeRobot, no env and no checkpoint.

`Pilot` thinks in the model's steps and words; `Interpreter` lets it drive an env that has others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import torch

from emu_embodied.protocols import Cost, Planner, WorldModel
from emu_embodied.types import History, Observation
from emu_embodied.units import ActionScale

from .dialects import Dialect


class Pilot:
    """Plans, gives out `execute` actions one by one, observes what they led to, and plans again.

    Args:
        model: where plans are imagined; the history holds real observations only.
        planner: its warm start should shift by `execute`.
        cost_of: instruction -> cost.
        execute: steps of each plan that are carried out.
    """

    def __init__(self, model: WorldModel, planner: Planner, cost_of: Callable[[str], Cost], execute: int) -> None:
        self.model, self.planner, self.cost_of, self.execute = model, planner, cost_of, execute
        self.reset()

    def reset(self) -> None:
        """Forgets the episode."""
        self.planner.reset()
        self._history: History | None = None
        self._instruction = ""
        self._actions: deque[np.ndarray] = deque()
        self._imagined: deque[torch.Tensor] = deque()

    def act(self, observation: Observation) -> tuple[np.ndarray, torch.Tensor]:
        """The next action, for what is seen now; another instruction than before begins a new episode.

        Returns:
            The action (A,) float32 in [-1, 1], and the codes (N,) of what had been imagined for this moment (at an
            episode's beginning: what is seen).

        Raises:
            InputError: an observation that does not fit the model, an instruction without a cost, or costs that are not finite.
        """
        if self._history is None or observation.instruction != self._instruction:
            self._begin(observation)
        else:
            self._history = self.model.observe(self._history, self._last[None], [observation])
        if not self._actions:
            self._plan()
        self._last = self._actions.popleft()
        return self._last, self._imagined.popleft()

    def chunk(self, observation: Observation) -> np.ndarray:
        """The first `execute` actions of a plan (T, A) from this frame alone, as at an episode's beginning; see `act`."""
        self._begin(observation)
        self._plan()
        actions_TA = np.stack(self._actions)
        self.reset()
        return actions_TA

    def _begin(self, observation: Observation) -> None:
        self.reset()
        self._instruction, self._cost = observation.instruction, self.cost_of(observation.instruction)
        self._history = self.model.encode([observation])
        self._imagined.append(self._history.codes_BCN[0, -1])

    def _plan(self) -> None:
        actions_TA = self.planner.plan(self.model, self._history, self._cost).actions[: self.execute]
        self._actions.extend(actions_TA)
        self._imagined.extend(self.model.rollout(self._history, actions_TA[None, None]).codes_BSTN[0, 0])


class Interpreter:
    """Drives an env by a pilot: translates, and holds each action for as many of the env's steps as it is meant for.

    Args:
        pilot: decides.
        dialect: of the env.
        scale: of the model's robot.
    """

    def __init__(self, pilot: Pilot, dialect: Dialect, scale: ActionScale) -> None:
        self.pilot, self.dialect, self.scale = pilot, dialect, scale
        self.reset()

    def reset(self) -> None:
        """Forgets the episode."""
        self.pilot.reset()
        self._left, self._instruction = 0, ""

    def act(self, observation: Observation) -> tuple[np.ndarray, torch.Tensor]:
        """The env's next action (A,), and the codes (N,) of what had been imagined for the model's moment; see `Pilot.act`."""
        if self._left == 0 or observation.instruction != self._instruction:
            heard = self.dialect.to_model_observation(observation)
            action, self._imagined = self.pilot.act(heard)
            (self._action,) = self.dialect.to_env_action(self.scale.to_robot(action[None]), heard.agent_pos)
            self._left, self._instruction = self.dialect.hold, observation.instruction
        self._left -= 1
        return self._action, self._imagined

    def chunk(self, observation: Observation) -> np.ndarray:
        """The env's actions (T, A) for the first `execute` of a plan from this frame alone; see `Pilot.chunk`."""
        heard = self.dialect.to_model_observation(observation)
        actions_TA = self.dialect.to_env_action(self.scale.to_robot(self.pilot.chunk(heard)), heard.agent_pos)
        self.reset()
        return actions_TA.repeat(self.dialect.hold, 0)
