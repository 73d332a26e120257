"""Drives LeRobot's envs by an agent that plans: translates, and holds its actions. Knows no LeRobot and no checkpoint.

The agent thinks in the model's steps and words; an env may have others, and need several of its steps for one of the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from emu_embodied.protocols import Cost
from emu_embodied.rollouts.agents.mpc import MPCAgent
from emu_embodied.types import Observation, short_repr

from .dialects import Dialect


@dataclass
class Held:
    """The model's present action in an env: to what end, (A,) in the env's units, and for how many more of its steps."""

    instruction: str
    action: np.ndarray
    left: int

    __repr__ = short_repr


class Pilot:
    """Drives a batch of envs, those that need an action at once by one call of the model.

    Args:
        agent: plans.
        dialect: of the envs.
        cost_of: instruction -> cost. Another instruction than before begins a new episode in its env.
    """

    def __init__(self, agent: MPCAgent, dialect: Dialect, cost_of: Callable[[str], Cost]) -> None:
        self.agent, self.dialect, self.cost_of = agent, dialect, cost_of
        self._held: dict[int, Held] = {}

    def reset(self) -> None:
        """New episodes begin in all envs."""
        self._held = {}

    def act(self, observations: Sequence[Observation]) -> tuple[np.ndarray, torch.Tensor]:
        """The next actions (B, A) float32 in the envs' units, and the codes (B, N) of what had been imagined for the model's
        present moment (at an episode's beginning: what is seen).

        Raises:
            InputError: an observation that does not fit the model, an instruction without a cost, or costs that are not finite.
        """
        seen = dict(enumerate(observations))
        fresh = {env: now for env, now in seen.items() if self._instruction(env) != now.instruction}
        due = {env: now for env, now in seen.items() if env in fresh or not self._held[env].left}
        if due:
            shown = {env: self.dialect.to_model_observation(now) for env, now in due.items()}
            self._begin({env: shown[env] for env in fresh})
            actions = self.agent.act(list(shown.values()), list(shown))
            for action, (env, now) in zip(actions, shown.items(), strict=True):
                (mine,) = self.dialect.to_env_action(action[None], now.agent_pos)
                self._held[env] = Held(seen[env].instruction, mine, self.dialect.hold)
        for env in seen:
            self._held[env].left -= 1
        return np.stack([self._held[env].action for env in seen]), self.agent.foreseen(list(seen))

    def chunk(self, observations: Sequence[Observation]) -> np.ndarray:
        """The envs' actions (B, T, A) for the first steps of a plan from these frames alone, as at an episode's beginning."""
        shown = [self.dialect.to_model_observation(seen) for seen in observations]
        self._begin(dict(enumerate(shown)))
        self.agent.act(shown)
        pursuits = [self.agent.pursuits[env] for env in range(len(shown))]
        planned = [[x for x in (one.last, *one.actions) if x is not None] for one in pursuits]
        actions_BTA = [self.agent.scale.to_robot(np.stack(actions)) for actions in planned]
        self.reset()
        rows = zip(actions_BTA, shown, strict=True)
        return np.stack([self.dialect.to_env_action(row, seen.agent_pos) for row, seen in rows]).repeat(
            self.dialect.hold, 1
        )

    def _instruction(self, env: int) -> str | None:
        return self._held[env].instruction if env in self._held else None

    def _begin(self, shown: dict[int, Observation]) -> None:
        if shown:
            self.agent.reset(
                list(shown.values()), [self.cost_of(seen.instruction) for seen in shown.values()], list(shown)
            )
