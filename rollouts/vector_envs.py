"""Several episodes at once, in the real env or in dreams of it, from the same starts by seed. Knows no policy and no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from emu_embodied.envs.checks import as_box
from emu_embodied.envs.imagined.core import Dreams
from emu_embodied.envs.imagined.starts import SEEDS, Starts
from emu_embodied.envs.opening import open_env
from emu_embodied.errors import ConfigError
from emu_embodied.labels import need
from emu_embodied.protocols import NamedWorld, Trained, WorldModel
from emu_embodied.types import AGENT_POS, IS_SUCCESS, OBS_ENVIRONMENT_STATE, OBS_IMAGE, OBS_STATE, PIXELS, short_repr
from emu_embodied.validation import registered_id

STATE = "environment_state"


@dataclass(frozen=True)
class Moment:
    """What N worlds show, and what the last step brought them.

    Attributes:
        pixels: (N, H, W, 3) uint8.
        agent_pos: (N, D) float32.
        states: size E -> (N, E) float32, the objects' state in each layout that a dataset of the world may have.
        tasks: N instructions.
        rewards: (N,) float64; zeros at the start.
        successes: (N,) bool; False at the start.
    """

    pixels: np.ndarray
    agent_pos: np.ndarray
    states: Mapping[int, np.ndarray]
    tasks: Sequence[str]
    rewards: np.ndarray = field(default_factory=lambda: np.zeros(0))
    successes: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    __repr__ = short_repr


def make_real(env_id: str, options: Mapping[str, Any]) -> gymnasium.Env:
    """The real env, which goes on after success and has no time limit.

    Raises:
        ConfigError: an unknown env.
        InputError: options out of range.
    """
    return open_env(env_id, "env", max_episode_steps=-1, terminate_on_success=False, **options)


class RealWorlds:
    """Copies of the real env, one an episode.

    Args:
        env_id, options: of `gymnasium.make`.
        objects: those that models of the world know, for the states as dreams have them.

    Attributes:
        envs: those of the present episodes.
        objects: whose places the states of 3 values an object tell: x, y and presence.
        action_space: of one of them.
        shapes: what LeRobot's policies may ask for: feature -> the shapes that there are.
    """

    def __init__(self, env_id: str, options: Mapping[str, Any], objects: Sequence[str] = ()) -> None:
        self._made = [make_real(env_id, options)]
        self._job, self.envs, self.objects = (env_id, options), self._made, tuple(objects)
        env = self._made[0]
        self.action_space, names = env.action_space, _state_names(env)
        dreamt = believed_names(objects)
        layouts = [names] + ([dreamt] if dreamt and set(dreamt) <= set(names) else [])
        self._layouts = [np.array([names.index(name) for name in layout]) for layout in layouts]
        self.shapes = _shapes(env.observation_space, [len(layout) for layout in self._layouts])

    def begin(self, seeds: Sequence[int]) -> Moment:
        """Resets one env a seed."""
        self._made += [make_real(*self._job) for _ in range(len(seeds) - len(self._made))]
        self.envs = self._made[: len(seeds)]
        seen, infos = zip(*[env.reset(seed=seed) for env, seed in zip(self.envs, seeds, strict=True)], strict=True)
        self._tasks = [info["task"] for info in infos]
        return self._moment(seen, infos, np.zeros(len(seeds)), np.zeros(len(seeds), bool))

    def step(self, actions: np.ndarray) -> Moment:
        """Acts in all, (N, A) in the env's units."""
        rows = [env.step(action) for env, action in zip(self.envs, actions, strict=True)]
        seen, rewards, _, _, infos = zip(*rows, strict=True)
        return self._moment(seen, infos, np.array(rewards), np.array([info[IS_SUCCESS] for info in infos], bool))

    def close(self) -> None:
        """Closes the envs."""
        for env in self._made:
            env.close()

    def _moment(self, seen, infos, rewards: np.ndarray, successes: np.ndarray) -> Moment:
        states = np.stack([info[STATE] for info in infos]).astype(np.float32)
        return Moment(
            np.stack([observation[PIXELS] for observation in seen]),
            np.stack([observation[AGENT_POS] for observation in seen]),
            {len(layout): states[:, layout] for layout in self._layouts},
            self._tasks,
            rewards,
            successes,
        )


class DreamtWorlds:
    """Dreams of one world model, all in one call of it; each starts where the real env's reset of its seed does.

    Args:
        model: dreams.
        env_id, options: of `gymnasium.make`, for the starts.

    Attributes:
        action_space, shapes, objects: as in `RealWorlds`; what a model does not believe in, such as yaw, is 0 in states.

    Raises:
        ConfigError: a model of another world.
        InputError: env options that do not fit the model, or a model that does not know success and where things are.
    """

    def __init__(self, model: WorldModel, env_id: str, options: Mapping[str, Any]) -> None:
        known = model.world.env_id if isinstance(model, Trained) else env_id
        if registered_id(known) != registered_id(env_id):
            raise ConfigError("checkpoint", known or "a model of an unknown world", f"give a model of {env_id}")
        for label in ("success", "positions"):
            need(model, label, "dreams")
        self.model, self.objects, self._real = model, tuple(model.objects), make_real(env_id, options)
        self._starts = Starts(model, self._real)
        self.action_space = self._starts.action_space
        own, real = believed_names(self.objects), _state_names(self._real)
        self._layouts = [own] * bool(own) + [real] * (bool(own) and set(own) <= set(real))
        self.shapes = _shapes(self._starts.observation_space, [len(layout) for layout in self._layouts])

    def begin(self, seeds: Sequence[int]) -> Moment:
        """Starts one dream a seed; the objects are where the model believes them after standing still for a step."""
        rngs = [np.random.default_rng([seed, 83]) for seed in seeds]
        starts = [self._starts.find(seed, rng, {}) for seed, rng in zip(seeds, rngs, strict=True)]
        self._dreams = Dreams(self.model, self._starts.agent_space, len(seeds))
        self._dreams.begin(range(len(seeds)), starts, [int(rng.integers(SEEDS)) for rng in rngs])
        still = self._dreams.stand_still()
        positions, presence = (x[:, 0, 0].float().cpu().numpy() for x in (still.positions_BSTOD, still.presence_BSTO))
        return self._moment(positions, presence, np.zeros(len(seeds)), np.zeros(len(seeds), bool))

    def step(self, actions: np.ndarray) -> Moment:
        """Dreams one step of all, from actions (N, A)."""
        done = self._dreams.step(actions)
        positions = np.array([list(info["positions"].values()) for info in done.infos])
        presence = np.array([list(info["presence"].values()) for info in done.infos])
        return self._moment(positions, presence, done.rewards, done.successes)

    def close(self) -> None:
        """Closes the real env of the starts."""
        self._real.close()

    def _moment(
        self, positions: np.ndarray, presence: np.ndarray, rewards: np.ndarray, successes: np.ndarray
    ) -> Moment:
        count, seen = len(rewards), self._dreams.observations
        rows = np.concatenate([positions.reshape(count, -1, 2), (presence > 0.5).reshape(count, -1, 1)], -1)
        own = believed_names(self.objects)
        states = {len(names): laid_out(rows.reshape(count, -1), own, names) for names in self._layouts}
        return Moment(seen[PIXELS], seen[AGENT_POS], states, list(self._dreams.tasks), rewards, successes)


def laid_out(states: np.ndarray, names: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """States (..., E) whose elements have such names in another layout (..., len(wanted)); 0 for what they do not tell."""
    found = np.zeros((*states.shape[:-1], len(wanted)), np.float32)
    columns = [wanted.index(name) for name in names]
    found[..., columns] = states
    return found


def believed_names(objects: Sequence[str]) -> list[str]:
    """What the elements of a state are called that a model believes in."""
    return [f"{name}.{part}" for name in objects for part in ("x", "y", "present")]


def _state_names(env: gymnasium.Env) -> list[str]:
    return list(env.unwrapped.state_names) if isinstance(env.unwrapped, NamedWorld) else []


def _shapes(space: gymnasium.Space, states: Sequence[int]) -> dict[str, list[tuple[int, ...]]]:
    assert isinstance(space, gymnasium.spaces.Dict)
    height, width, channels = as_box(space[PIXELS]).shape
    return {
        OBS_IMAGE: [(channels, height, width)],
        OBS_STATE: [as_box(space[AGENT_POS]).shape],
        OBS_ENVIRONMENT_STATE: [(size,) for size in states],
    }
