"""A true simulator as a world model, to plan in the truth with the learned model's planner and budget.

Knows states of the table-top and of PushT, and no pixels: its "codes" are the state's own 64-bit words, which `decode` renders.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from emu_embodied.envs.tabletop.tasks import UNSEEN_COLOUR
from emu_embodied.errors import InputError
from emu_embodied.protocols import SimulatedWorld
from emu_embodied.types import History, Observation, Rollout


class OracleWorldModel:
    """True dynamics behind `protocols.WorldModel`; what it imagines is what will happen.

    It works inside the env that is acted in and puts the env back as it was. In the table-top's stochastic variant it knows
    the hidden friction and mass, but draws gusts of its own. PushT it puts back but for its contact solver's memory; see
    `PushTEnv.set_state`.

    Args:
        env: the table-top or PushT, wrapped or not, after its reset.
        seed: of the gusts.

    Raises:
        InputError: another env.
    """

    context_frames = 1
    action_dim = agent_dim = 2
    text_size = 0  # it reads no instruction

    def __init__(self, env, seed: int = 0) -> None:
        world = getattr(env, "unwrapped", env)
        if not isinstance(world, SimulatedWorld):
            rule = "true dynamics are known of the table-top and PushT only; use agent=model"
            raise InputError("env", type(world).__name__, rule)
        self.env, self.rng = world, np.random.default_rng(seed)
        self.image_size = world.config.image_size
        known = tuple(dict.fromkeys(name.partition(".")[0] for name in world.state_names))
        unseen = getattr(world.config, "shift", None) != "colour"
        self.objects = tuple(name for name in known if not (unseen and name == UNSEEN_COLOUR))
        self.tokens_per_frame = len(world.get_state())
        self._rows = [known.index(name) for name in self.objects]

    def encode(self, observations: Sequence[Observation]) -> History:
        """Starts a history (B = 1) from the env's present state; the observation adds nothing to it.

        Raises:
            InputError: not exactly one observation, for there is one env.
        """
        if len(observations) != 1:
            raise InputError("observations", f"{len(observations)} of them", "the oracle knows one world: give one")
        codes_BN = self._codes(self.env.get_state())[None]
        return History(codes_BN[:, None], torch.zeros(1, 0, 2), torch.zeros(1, 0, dtype=torch.int64))

    def observe(self, history: History, actions: np.ndarray, observations: Sequence[Observation]) -> History:
        """The history of what really happened: the env's present state."""
        return self.encode(observations)

    def step(self, history: History, actions: np.ndarray) -> tuple[History, Rollout]:
        """Imagines one step of each world from actions (B, A)."""
        actions_BA = torch.as_tensor(actions, dtype=torch.float32)
        rollout = self.rollout(history, actions_BA[:, None, None])
        return history.push(actions_BA, rollout.codes_BSTN[:, 0, 0]), rollout

    def rollout(self, history: History, actions: np.ndarray | torch.Tensor) -> Rollout:
        """Simulates actions (B, S, T, 2) from each history; see `protocols.WorldModel`.

        Raises:
            SimulationError: the physics left the numbers.
        """
        actions_BSTA = np.asarray(actions, np.float64)
        shape = actions_BSTA.shape[:3]
        states = np.empty((*shape, self.tokens_per_frame))
        objects = np.empty((*shape, len(self.env.state_names) // 4, 4), np.float32)
        judged = np.empty((*shape, 2), np.float32)
        starts = self._states(history.codes_BCN[:, -1])
        with PreservedState(self.env, self.rng):
            for b, s in np.ndindex(shape[:2]):
                self.env.set_state(starts[b])
                for t in range(shape[2]):
                    self.env.act(actions_BSTA[b, s, t])
                    states[b, s, t] = self.env.get_state()
                    objects[b, s, t] = self.env.environment_state().reshape(-1, 4)
                    judged[b, s, t] = self.env.judge()
        rewards_BST, success_BST = torch.from_numpy(judged).unbind(-1)
        known = torch.from_numpy(objects[..., self._rows, :])
        return Rollout(
            self._codes(states),
            rewards_BST.contiguous(),
            success_BST.contiguous(),
            known[..., :2].contiguous(),
            known[..., 3].contiguous(),
            torch.zeros(shape),
        )

    def decode(self, codes: torch.Tensor) -> np.ndarray:
        """Renders states (..., N) as frames (..., H, W, 3) uint8."""
        states = self._states(codes)
        frames = np.empty((*states.shape[:-1], self.image_size, self.image_size, 3), np.uint8)
        with PreservedState(self.env, self.rng):
            for place in np.ndindex(states.shape[:-1]):
                self.env.set_state(states[place])
                frames[place] = self.env.frame(self.image_size)
        return frames

    def agent_pos(self, rollout: Rollout) -> np.ndarray:
        """The pusher's position (B, S, T, 2) float32 in cm."""
        return rollout.positions_BSTOD[..., 0, :].numpy()

    @staticmethod
    def _codes(states: np.ndarray) -> torch.Tensor:
        """float64 states (..., N) as int64 words, bit by bit."""
        return torch.from_numpy(np.ascontiguousarray(states, np.float64).view(np.int64).copy())

    @staticmethod
    def _states(codes: torch.Tensor) -> np.ndarray:
        return np.ascontiguousarray(codes.cpu().numpy()).view(np.float64)


class PreservedState:
    """Lends an env out and puts its physics and random numbers back."""

    def __init__(self, env, rng: np.random.Generator) -> None:
        self.env, self.rng = env, rng

    def __enter__(self) -> None:
        self.state, self.owner = self.env.get_state(), self.env.np_random
        self.env.np_random = self.rng

    def __exit__(self, *_) -> None:
        self.env.np_random = self.owner
        self.env.set_state(self.state)
