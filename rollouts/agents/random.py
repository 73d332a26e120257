"""Uniform actions, the control of everything that acts. Knows no world."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import gymnasium
import numpy as np

from emu_embodied.envs.checks import bounds
from emu_embodied.rollouts.vector_envs import DreamtWorlds, Moment, RealWorlds


def random_actions(space: gymnasium.Space, seed: int) -> Iterator[np.ndarray]:
    """Actions (A,) float32, uniform within a space's bounds; the same seed, the same actions."""
    rng, (low, high) = np.random.default_rng([seed, 5]), bounds(space)
    while True:
        yield rng.uniform(low, high).astype(np.float32)


class RandomAgent:
    """Uniform actions in many worlds, a source of them for each seed; a `policy_ranking.Agent`."""

    def check(self, worlds: RealWorlds | DreamtWorlds) -> None:
        """Nothing is asked for."""

    def begin(self, worlds: RealWorlds | DreamtWorlds, seeds: Sequence[int]) -> None:
        """See `Agent`."""
        self._sources = [random_actions(worlds.action_space, seed) for seed in seeds]

    def act(self, moment: Moment) -> np.ndarray:
        """See `Agent`."""
        return np.stack([next(source) for source in self._sources])
