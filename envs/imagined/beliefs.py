"""What a world model believes of a scene, as numbers: for policies that look at no pixels. Knows no concrete model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.utils import RecordConstructorArgs

from emu_embodied.envs.checks import check_names
from emu_embodied.errors import InputError
from emu_embodied.labels import knows
from emu_embodied.protocols import Seedable, Trained, WorldModel
from emu_embodied.types import AGENT_POS, BELIEFS, INSTRUCTION, PIXELS, TASK, History, Observation, Rollout


def belief_space(world_model: WorldModel) -> gymnasium.spaces.Box:
    """The space of `beliefs`, (O, 3) float32; see `Beliefs`.

    Raises:
        InputError: the model knows no objects, or was trained without labels of where they are.
    """
    if not world_model.objects or not isinstance(world_model, Trained) or not knows(world_model, "positions"):
        raise InputError(
            BELIEFS, "of a model without objects", "observe something else: there is nothing to believe in"
        )
    return gymnasium.spaces.Box(-1.0, 1.0, (len(world_model.objects), 3), np.float32)


def instruction_space(world_model: WorldModel) -> gymnasium.spaces.Box:
    """The space of `instruction`, (V,) float32; see `Beliefs`."""
    return gymnasium.spaces.Box(0.0, 1.0, (world_model.text_size,), np.float32)


def believed(world_model: WorldModel, rollout: Rollout) -> np.ndarray:
    """Beliefs (B, O, 3) float32 of the frames that one step (S = T = 1) has led to."""
    places, presence = (x[:, 0, 0].float().cpu().numpy() for x in (rollout.positions_BSTOD, rollout.presence_BSTO))
    there = presence[..., None] > 0.5
    assert isinstance(world_model, Trained)  # see `belief_space`
    scaled = np.clip(places / np.abs(np.asarray(world_model.world.position_scale, np.float32)), -1, 1)
    return np.concatenate([np.where(there, scaled, 0), presence[..., None]], -1).astype(np.float32)


def believe(world_model: WorldModel, history: History, *noise: Sequence[int]) -> np.ndarray:
    """Beliefs (B, O, 3) float32 about the last frames of a history: the model imagines one step of standing still.

    `noise` is one seed a world, where the model draws.
    """
    still = np.zeros((len(history), world_model.action_dim), np.float32)
    return believed(world_model, world_model.step(history, still, *noise)[1])


def instruction_words(world_model: WorldModel, text_BL: torch.Tensor) -> np.ndarray:
    """Which of the model's text tokens occur in each instruction: (B, V) float32, 0 or 1."""
    size = world_model.text_size
    ids_BLV = F.one_hot(text_BL.cpu().clamp(max=size), size + 1)  # padding and the like lie above
    return ids_BLV[..., :size].amax(1).float().numpy()


class Beliefs(gymnasium.Wrapper, RecordConstructorArgs):
    """Adds to a real env's observations what a world model believes of them, as `ImaginedEnv` can observe it of dreams.

    So a policy that was trained in imagination can act in reality, on the same numbers:

    | key | what |
    |---|---|
    | `beliefs` | (O, 3) float32: x and y of each object over the frame's half side, in [-1, 1] (0 where absent); its presence |
    | `instruction` | (V,) float32: which of the model's text tokens occur in the instruction |

    The model reads a frame by imagining one step in which the robot stands still; if it draws, the episode's seed decides what.

    Args:
        env: with `pixels` and `agent_pos`, and the instruction in `info["task"]`.
        world_model: one that was trained for this env.
        observe: which observations are wanted, as a policy knows them from `ImaginedEnv`'s `observe`; None for all.

    Raises:
        InputError: the model knows no objects, or observations that there are not.
    """

    def __init__(self, env: gymnasium.Env, world_model: WorldModel, observe: Sequence[str] | None = None) -> None:
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, world_model=world_model, observe=observe)
        gymnasium.Wrapper.__init__(self, env)
        self.world_model, self._rng = world_model, np.random.default_rng()
        seen = env.observation_space
        if not isinstance(seen, gymnasium.spaces.Dict):
            raise InputError("env.observation_space", seen, f"give an env with {PIXELS!r} and {AGENT_POS!r}")
        spaces = {
            **seen.spaces,
            BELIEFS: belief_space(world_model),
            INSTRUCTION: instruction_space(world_model),
        }
        self.observe = tuple(spaces if observe is None else observe)
        check_names("observe", self.observe, spaces)
        self.observation_space = gymnasium.spaces.Dict({name: spaces[name] for name in self.observe})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._rng = np.random.default_rng([seed, 97])
        return self._add(observation, info), info

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._add(observation, info), reward, terminated, truncated, info

    def _add(self, observation: dict[str, np.ndarray], info: dict[str, Any]) -> dict[str, np.ndarray]:
        seen = Observation(observation[PIXELS], observation[AGENT_POS], info.get(TASK, ""))
        history = self.world_model.encode([seen])
        words = instruction_words(self.world_model, history.text_BL)
        noise = [[int(self._rng.integers(2**31))]] if isinstance(self.world_model, Seedable) else []
        beliefs = believe(self.world_model, history, *noise)[0]
        whole = {**observation, BELIEFS: beliefs, INSTRUCTION: words[0]}
        return {name: whole[name] for name in self.observe}
