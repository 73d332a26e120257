"""When one scene counts as another: protocol A's rules of success, and of what begins an episode. Knows no pixels."""

from __future__ import annotations

from typing import Any

import numpy as np


class TabletopRule:
    """The table-top: every cube within `reach` cm of where the goal has it; some cube has at least `least` cm to go.

    Of 100 episodes of random actions 10 succeed with 4 cm to go, 5 with 5 (seed 7, whose rows are not the protocol's).
    """

    env_id, reach, least = "emu_embodied/TabletopPush-v0", 2.0, 5.0

    @staticmethod
    def look(world: Any) -> np.ndarray:
        """What is judged of the present state."""
        return world.environment_state().reshape(-1, 4).astype(np.float64)

    def moved(self, now: np.ndarray, goal: np.ndarray) -> float:
        """The farthest that a thing is from its goal, in cm."""
        return float(np.linalg.norm(now[1:, :2] - goal[1:, :2], axis=-1).max())

    def miss(self, now: np.ndarray, goal: np.ndarray) -> float:
        """How far from success, in tolerances: below 1 is success."""
        return self.moved(now, goal) / self.reach

    def counts(self, start: np.ndarray, goal: np.ndarray) -> bool:
        """Whether this start and goal make an episode."""
        return self.moved(start, goal) >= self.least


class PushTRule:
    """PushT: agent's and block's x, y as one vector within 20 of gym_pusht's px, the block's angle within pi / 9."""

    env_id, reach, turn = "emu_embodied/PushT-v0", 20.0, np.pi / 9

    @staticmethod
    def look(world: Any) -> np.ndarray:
        """What is judged of the present state: agent x, y, block x, y in px, angle in rad."""
        return world.get_state()[[0, 1, 4, 5, 8]]

    def moved(self, now: np.ndarray, goal: np.ndarray) -> float:
        """How far the T is from its goal, in cm."""
        return float(np.linalg.norm(now[2:4] - goal[2:4]) / 16)

    def miss(self, now: np.ndarray, goal: np.ndarray) -> float:
        """How far from success, in tolerances of what is farther off, place or angle: below 1 is success."""
        angle = abs((now[4] - goal[4] + np.pi) % (2 * np.pi) - np.pi)
        return float(max(np.linalg.norm(now[:4] - goal[:4]) / self.reach, angle / self.turn))

    def counts(self, start: np.ndarray, goal: np.ndarray) -> bool:
        """Whether this start and goal make an episode: one that is not won by standing still."""
        return self.miss(start, goal) >= 1


RULES = {"tabletop": TabletopRule(), "pusht": PushTRule()}
