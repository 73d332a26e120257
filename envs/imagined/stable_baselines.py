"""Imagined vector envs for Stable-Baselines3, whose vector interface is another. Knows no algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import DictInfoToList

from emu_embodied.errors import ConfigError, InputError

from .vector_env import ImaginedVectorEnv

try:
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise ConfigError("stable_baselines3", "missing", 'pip install "emu-embodied[rl]"') from error


class StableBaselinesVecEnv(VecEnv):
    """A Gymnasium vector env as Stable-Baselines3 wants it: PPO's rollouts are then one model call a step for all dreams.

        env = gymnasium.make_vec("emu_embodied/Imagined-v0", num_envs=64, autoreset_mode="SameStep",
                                 observe=["agent_pos", "beliefs", "instruction"])
        PPO("MultiInputPolicy", StableBaselinesVecEnv(env), n_steps=40).learn(100_000)

    Args:
        env: a vector env with Dict observations that resets in the step in which an episode ends ("SameStep").

    Raises:
        InputError: an env that resets at another time.
    """

    def __init__(self, env: VectorEnv) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise InputError("autoreset_mode", mode, 'make the env with autoreset_mode="SameStep"')
        self.env: Any = DictInfoToList(env)  # whose types know neither lists of seeds nor `call`
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> dict[str, np.ndarray]:
        """Starts all dreams; `seed()` and `set_options()` before it are heeded, each dream's own."""
        seeds = None if all(seed is None for seed in self._seeds) else self._seeds
        none: dict[str, Any] = {}
        observations, infos = self._begin(seeds, [own or none for own in self._options])
        self.reset_infos = list(infos)
        self._reset_seeds()
        self._reset_options()
        return observations

    def _begin(self, seeds: list[int | None] | None, options: list[dict[str, Any]]):
        """A reset with options for each; vector envs that take but one dict are reset once for each that differs."""
        if isinstance(self.env.unwrapped, ImaginedVectorEnv):
            return self.env.reset(seed=seeds, options=options if any(options) else None)
        unlike = list({id(own): own for own in options}.values())  # where all have the same it is one object
        observations, infos = self.env.reset(seed=seeds, options=dict(unlike[0]) or None)
        for own in unlike[1:]:
            mask = np.array([other is own for other in options])
            observations, anew = self.env.reset(seed=seeds, options={**own, "reset_mask": mask})
            infos = [new if chosen else old for old, new, chosen in zip(infos, anew, mask, strict=True)]
        return observations, infos

    def step_async(self, actions: np.ndarray) -> None:
        """Keeps the actions for `step_wait`."""
        self._actions = np.asarray(actions, self.action_space.dtype)

    def step_wait(self):
        """Steps all dreams: observations, rewards (N,) float32, dones (N,) bool, and one info each.

        Where a dream ended, the info is its end's, with "terminal_observation" and "TimeLimit.truncated"; that of the dream
        that began in its place is in `reset_infos`.
        """
        observations, rewards, ends, cuts, infos = self.env.step(self._actions)
        dones = ends | cuts
        for i in np.flatnonzero(dones).tolist():
            last, end = infos[i].pop("final_obs"), infos[i].pop("final_info")
            self.reset_infos[i] = infos[i]
            infos[i] = {**end, "terminal_observation": last, "TimeLimit.truncated": bool(cuts[i] and not ends[i])}
        return observations, rewards.astype(np.float32), dones, list(infos)

    def close(self) -> None:
        """Closes the vector env."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """The dreams' frames."""
        return self.env.render()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The attribute of each dream asked for."""
        values = self.env.unwrapped.get_attr(attr_name)
        return [values[i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Sets the attribute of the dreams asked for.

        Raises:
            InputError: some only, of an attribute that the dreams share.
        """
        chosen = set(self._get_indices(indices))
        if len(chosen) == self.num_envs:
            values = [value] * self.num_envs
        else:
            values = [value if i in chosen else old for i, old in enumerate(self.get_attr(attr_name))]
        self.env.unwrapped.set_attr(attr_name, values)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Calls the method of each dream asked for; where the envs are processes of their own, of all."""
        chosen = list(self._get_indices(indices))
        if hasattr(self.env.unwrapped, "envs"):
            envs = [self.env.unwrapped.envs[i] for i in chosen]
            return [env.get_wrapper_attr(method_name)(*args, **kwargs) for env in envs]
        results = self.env.unwrapped.call(method_name, *args, **kwargs)
        return [results[i] for i in chosen]

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """False for each dream: they are not wrapped one by one."""
        return [False for _ in self._get_indices(indices)]
