"""What imagined envs share: where dreams start, and B dreams that go on together. Knows no concrete model."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
import torch

from emu_embodied.envs.checks import as_box, check_index, check_names, check_observation
from emu_embodied.envs.registration import make_registered
from emu_embodied.errors import InputError
from emu_embodied.labels import knows
from emu_embodied.protocols import Seedable, Trained, WorldModel
from emu_embodied.types import (
    AGENT_POS,
    BELIEFS,
    INSTRUCTION,
    IS_SUCCESS,
    PIXELS,
    TASK,
    History,
    Observation,
    Rollout,
    short_repr,
)
from emu_embodied.units import ActionScale

from .beliefs import belief_space, believe, believed, instruction_space, instruction_words

SEEDS = 2**31  # drawn seeds lie below
RENDER_PX = 256
DEFAULT = (PIXELS, AGENT_POS)  # what dreams show unless told otherwise: what the real env does
OBSERVATIONS = (*DEFAULT, BELIEFS, INSTRUCTION)
DATASET_OPTIONS = ("dataset", "episode", "frame")


@runtime_checkable
class Recordings(Protocol):
    """What dreams start from, of a `FrameCache`."""

    @property
    def pixels(self) -> np.ndarray: ...
    @property
    def agent_pos(self) -> np.ndarray: ...
    @property
    def instructions(self) -> Sequence[str]: ...
    @property
    def episode_starts(self) -> np.ndarray: ...


class Starts:
    """Finds the observation that a dream starts from: given, in a dataset, or by the real env's own reset.

    Args:
        world_model: decides the spaces, unless `real_env` is an env.
        real_env: the env that the model imitates, or its Gymnasium id; None is the id in `world_model.world.env_id`.
            An id is made when the first start needs it; an env stays the caller's to close.
        dataset: where a reset without options starts: None is the real env's reset; else a `FrameCache` (anything with
            its `pixels`, `agent_pos`, `instructions` and `episode_starts`), for the first frame of a random episode.

    Attributes:
        observation_space, action_space: the real env's; without one, what the model knows of them.
        agent_space: of its `agent_pos`.
        scale: of the robot; that of the dataset's where the model was trained on several.
        render_fps: frames per second; 4 as long as no real env says otherwise.

    Raises:
        InputError: there is no real env to be found, or its spaces are not the model's.
    """

    def __init__(self, world_model: WorldModel, real_env: gymnasium.Env | str | None, dataset: Any = None) -> None:
        if isinstance(world_model, str | os.PathLike):
            remedy = "give a loaded model, emu_embodied.load(...), or the folder or name as checkpoint="
            raise InputError("world_model", str(world_model), remedy)
        own_id = world_model.world.env_id if isinstance(world_model, Trained) else None
        given = own_id if real_env is None else real_env
        if not isinstance(given, gymnasium.Env | str):
            raise InputError("real_env", given, "give the real env, or its Gymnasium id")
        self._id = given if isinstance(given, str) else ""
        self._make = make_registered if real_env is None else gymnasium.make  # a file's id is not the caller's
        self._made: gymnasium.Env | None = None  # by us: ours to close
        self._real = given if isinstance(given, gymnasium.Env) else None
        self._dataset = None if dataset is None else check_dataset(dataset)
        self._blind = world_model.agent_dim == 0  # the model does not know where its robot is
        self.scale = ActionScale.of(world_model, dataset)
        spaces = model_spaces(world_model, self.scale) if self._real is None else None
        if spaces is None:
            env = self.real_env
            spaces = self._as_seen(env.observation_space), env.action_space
        self.observation_space, self.action_space = check_spaces(world_model, *spaces, self.scale)
        self.agent_space = as_box(self.observation_space[AGENT_POS])
        self.render_fps = self._real.metadata.get("render_fps", 4) if self._real else 4

    @property
    def real_env(self) -> gymnasium.Env:
        """The real env, made if it was not yet.

        Raises:
            InputError: its id is unknown, or its spaces are not those that dreams have.
        """
        if self._real is None:
            if not self._id:
                remedy = "the model was trained on recordings alone: give the real env, a dataset (starts), or an observation"
                raise InputError("real_env", "none", remedy)
            try:
                env = self._make(self._id, disable_env_checker=True)
            except gymnasium.error.Error as error:
                raise InputError("real_env", self._id, f"give a registered id or the env itself ({error})") from error
            try:
                self._check(env)
            except InputError:
                env.close()
                raise
            self._real = self._made = env
        return self._real

    def _check(self, env: gymnasium.Env) -> None:
        """Refuses an env, made by its id, whose spaces are not those that dreams have."""
        for name in ("observation_space", "action_space"):
            dreamt, found = getattr(self, name, None), self._as_seen(getattr(env, name))
            if name == "action_space" and not self.scale.is_identity:  # recordings need not reach its bounds
                self.scale.check(found, f"{self._id}'s {name}")
            elif dreamt is not None and found != dreamt:
                remedy = f"dreams have {dreamt}: make a fitting env, and pass it as real_env"
                raise InputError(f"{self._id}'s {name}", found, remedy)

    def find(self, seed: int | None, rng: np.random.Generator, options: Mapping[str, Any]) -> Observation:
        """Finds one start.

        Args:
            seed: of this reset; None draws from `rng`.
            rng: the dream's own source of randomness, already seeded.
            options: of `reset`; see `ImaginedEnv`.

        Raises:
            InputError: options that are unknown or do not fit each other, or a start that does not fit the spaces.
        """
        options = dict(options)
        if "observation" in options:
            check_names("reset option beside 'observation'", options, ("observation", "instruction"))
            return self._checked(options["observation"], options.get("instruction"))
        if self._dataset is not None or any(name in options for name in DATASET_OPTIONS):
            check_names("reset option", options, (*DATASET_OPTIONS, "instruction"))
            return self._from_dataset(rng, **options)
        return self._from_real_env(int(rng.integers(SEEDS)) if seed is None else seed, options)

    def _from_dataset(
        self,
        rng: np.random.Generator,
        dataset: Any = None,
        episode: int | None = None,
        frame: int = 0,
        instruction: str | None = None,
    ) -> Observation:
        data = self._dataset if dataset is None else check_dataset(dataset)
        if data is None:
            raise InputError("dataset", "none", "give a FrameCache beside 'episode' and 'frame'")
        drawn = rng.integers(len(data.instructions)) if episode is None else episode
        i = check_index("episode", drawn, len(data.instructions))
        first, end = map(int, data.episode_starts[i : i + 2])
        row = first + check_index("frame", frame, end - first)
        text = data.instructions[i] if instruction is None else instruction
        return self._checked({PIXELS: data.pixels[row], AGENT_POS: data.agent_pos[row]}, text)

    def _from_real_env(self, seed: int, options: dict[str, Any]) -> Observation:
        env = self.real_env
        observation, info = env.reset(seed=seed, options=options or None)
        task = info.get(TASK) or getattr(env.unwrapped, "task_description", None) or getattr(env.unwrapped, TASK, None)
        return self._checked(observation, task)

    def _checked(self, observation: Any, instruction: Any) -> Observation:
        """The start, without a robot's position that the model does not know."""
        if self._blind and isinstance(observation, Mapping) and AGENT_POS in observation:
            observation = {**observation, AGENT_POS: np.zeros(0, np.float32)}
        elif self._blind and isinstance(observation, Observation):
            observation = replace(observation, agent_pos=np.zeros(0, np.float32))
        return check_observation(observation, instruction, self.observation_space)

    def _as_seen(self, space: gymnasium.Space) -> gymnasium.Space:
        """A space without a robot's position that the model does not know."""
        if not (self._blind and isinstance(space, gymnasium.spaces.Dict) and AGENT_POS in space.spaces):
            return space
        return gymnasium.spaces.Dict({**space.spaces, AGENT_POS: gymnasium.spaces.Box(-1, 1, (0,), np.float32)})

    def close(self) -> None:
        """Closes the real env if it was made here; the next fresh start makes it again."""
        if self._made is not None:
            self._made.close()
            self._real = self._made = None


@dataclass(frozen=True)
class DreamtStep:
    """What B dreams came to in one step.

    Attributes:
        rewards: (B,) float64.
        successes: (B,) bool.
        infos: one dict per dream.
    """

    rewards: np.ndarray
    successes: np.ndarray
    infos: list[dict[str, Any]]

    __repr__ = short_repr


class Dreams:
    """B dreams of one world model that step together, one model call for all; each may start anew on its own.

    Args:
        world_model: what they are dreamt with. If it draws (has `seed`), each dream's noise is set anew for every step, from
            its own seed and age, so that neither its neighbours nor anybody else who uses the model changes a dream. Of what
            its data had no labels of, nothing is told: rewards are 0 then, and nothing succeeds.
        agent_space: bounds of `agent_pos`.
        count: B.
        scale: of the robot's actions; by default the model's own.
        observe: which observations are wanted: `OBSERVATIONS`, or some of them. Frames are decoded only where they are.

    Attributes:
        history: what the model remembers; None before the first start.
        ages: (B,) int64, steps since each dream's start.
        tasks: each dream's instruction.
    """

    def __init__(
        self,
        world_model: WorldModel,
        agent_space: gymnasium.spaces.Box,
        count: int,
        observe: Sequence[str] = DEFAULT,
        scale: ActionScale | None = None,
    ) -> None:
        self.model, self.count, self.observe = world_model, count, tuple(observe)
        self.history: History | None = None
        self.ages = np.zeros(count, np.int64)
        self.tasks = [""] * count
        self._seeds = [0] * count
        self._bounds, self._scale = agent_space, scale or ActionScale.of(world_model)
        self._seen: dict[str, np.ndarray] = {}

    @property
    def observations(self) -> dict[str, np.ndarray]:
        """What is wanted of the present, each (B, ...), the caller's to keep."""
        return {name: self._seen[name].copy() for name in self.observe}

    def begin(self, rows: Sequence[int], starts: Sequence[Observation], seeds: Sequence[int]) -> list[dict[str, Any]]:
        """Starts some dreams anew (at first: all), in one model call.

        Args:
            rows: which, in ascending order.
            starts: where each of them starts.
            seeds: of each one's sampling noise.

        Returns:
            Their infos.

        Raises:
            InputError: an instruction that the model cannot read; the dreams are then as before.
        """
        new = self.model.encode(starts)
        seen = self._look(new, np.stack([start.agent_pos for start in starts]))
        if BELIEFS in self.observe:
            seen[BELIEFS] = believe(self.model, new, *_noise(self.model, seeds, [0] * len(rows)))
        if len(rows) == self.count:
            self.history, self._seen = new, seen
        else:
            order = np.arange(self.count)
            order[list(rows)] = self.count + np.arange(len(rows))
            assert self.history is not None  # all of them began first
            self.history = _join(self.history, new).select(order.tolist())
            self._seen = {name: np.concatenate([self._seen[name], seen[name]])[order] for name in seen}
        for row, start, seed in zip(rows, starts, seeds, strict=True):
            self.tasks[row], self._seeds[row], self.ages[row] = start.instruction, seed, 0
        return [self._info_before(start) for start in starts]

    def stand_still(self) -> Rollout:
        """What one step of standing still would lead to, right after all began; they stay where they are."""
        still = np.zeros((self.count, self.model.action_dim), np.float32)
        assert self.history is not None
        return self.model.step(self.history, still, *_noise(self.model, self._seeds, self.ages))[1]

    def step(self, actions: np.ndarray) -> DreamtStep:
        """Dreams one step of all from checked actions (B, A), in the robot's units."""
        actions = self._scale.from_robot(actions).astype(np.float32)
        assert self.history is not None
        noise = _noise(self.model, self._seeds, self.ages + 1)
        self.history, rollout = self.model.step(self.history, actions, *noise)
        self.ages += 1
        reached = self.model.agent_pos(rollout)[:, 0, 0]
        self._seen = self._look(self.history, np.clip(reached, self._bounds.low, self._bounds.high).astype(np.float32))
        if BELIEFS in self.observe:
            self._seen[BELIEFS] = believed(self.model, rollout)
        values = (rollout.rewards_BST, rollout.success_BST)
        rewards, chances = (x[:, 0, 0].float().cpu().numpy() for x in values)
        successes = chances > 0.5 if self._judges else np.zeros(self.count, bool)
        rewards = rewards.astype(np.float64) if knows(self.model, "reward") else np.zeros(self.count)
        return DreamtStep(rewards, successes, self._infos(rollout))

    @property
    def _judges(self) -> bool:
        return knows(self.model, "success")

    def _info_before(self, start: Observation) -> dict[str, Any]:
        """A step's info before the first step: the same keys, as recorders want them; NaN for what no step has told yet."""
        judged = {IS_SUCCESS: False, "success_probability": math.nan} if self._judges else {}
        info = {**judged, "entropy": math.nan, TASK: start.instruction}
        if knows(self.model, "positions"):
            info["positions"] = {name: (math.nan, math.nan) for name in self.model.objects}
            info["presence"] = {name: math.nan for name in self.model.objects}
        return info

    def _infos(self, rollout: Rollout) -> list[dict[str, Any]]:
        """One dict a dream, of what the model knows."""
        names, located = self.model.objects, knows(self.model, "positions")
        chances, entropy = (x[:, 0, 0].float().cpu().tolist() for x in (rollout.success_BST, rollout.entropy_BST))
        places, presence = (x[:, 0, 0].float().cpu().tolist() for x in (rollout.positions_BSTOD, rollout.presence_BSTO))
        infos: list[dict[str, Any]] = []
        for i in range(self.count):
            judged = {IS_SUCCESS: chances[i] > 0.5, "success_probability": chances[i]} if self._judges else {}
            infos.append({**judged, "entropy": entropy[i], TASK: self.tasks[i]})
            if located:
                infos[i]["positions"] = dict(zip(names, map(tuple, places[i]), strict=True))
                infos[i]["presence"] = dict(zip(names, presence[i], strict=True))
        return infos

    def picture(self, row: int) -> np.ndarray:
        """A dream's present frame, (256, 256, 3) uint8, for people to look at: enlarged without smoothing."""
        assert self.history is not None
        frame = self._seen[PIXELS][row] if PIXELS in self._seen else self.model.decode(self.history.codes_BCN[row, -1])
        nearest = np.arange(RENDER_PX) * len(frame) // RENDER_PX
        return frame[nearest][:, nearest]

    def _look(self, history: History, agent_pos: np.ndarray) -> dict[str, np.ndarray]:
        """The wanted observations of a history's last frames, without beliefs."""
        seen = {AGENT_POS: agent_pos}
        if PIXELS in self.observe:
            seen[PIXELS] = self.model.decode(history.codes_BCN[:, -1])
        if INSTRUCTION in self.observe:
            seen[INSTRUCTION] = instruction_words(self.model, history.text_BL)
        return seen


def _noise(model: WorldModel, seeds: Sequence[int], ages: Sequence[int] | np.ndarray) -> tuple[list[int], ...]:
    """The argument by which a model that draws is told each dream's noise at its age."""
    if not isinstance(model, Seedable):
        return ()
    states = [np.random.SeedSequence(pair).generate_state(1, np.uint64) for pair in zip(seeds, ages, strict=True)]
    return ([int(state[0] >> np.uint64(1)) for state in states],)


def _join(one: History, other: History) -> History:
    """The worlds of two histories, one after the other."""
    return History(
        torch.cat([one.codes_BCN, other.codes_BCN]),
        torch.cat([one.actions_BCA, other.actions_BCA]),
        torch.cat([one.text_BL, other.text_BL]),
    )


def observed_space(space: gymnasium.spaces.Dict, world_model: WorldModel, observe: Any) -> gymnasium.spaces.Dict:
    """The real env's observation space, with those of `OBSERVATIONS` that are asked for and no others.

    Raises:
        InputError: unknown observations, or none, or beliefs of a model that knows no objects.
    """
    names = tuple(observe) if isinstance(observe, list | tuple) else ()
    known = all(isinstance(name, str) and name in OBSERVATIONS for name in names)
    if not names or not known or len(set(names)) < len(names):
        raise InputError("observe", observe, f"give a list of some of {OBSERVATIONS}")
    spaces = dict(space.spaces)
    if BELIEFS in names:
        spaces[BELIEFS] = belief_space(world_model)
    if INSTRUCTION in names:
        spaces[INSTRUCTION] = instruction_space(world_model)
    return gymnasium.spaces.Dict({name: spaces[name] for name in names})


def model_spaces(
    world_model: WorldModel, scale: ActionScale
) -> tuple[gymnasium.spaces.Dict, gymnasium.spaces.Box] | None:
    """The real env's spaces as far as the model knows them: positions reach to the frame's edges. None: it does not."""
    places = world_model.world.position_scale if isinstance(world_model, Trained) else None
    if places is None or world_model.agent_dim not in (0, len(places)):
        return None
    size, edge = world_model.image_size, np.abs(np.asarray(places, np.float32))[: world_model.agent_dim]
    observation_space = gymnasium.spaces.Dict(
        {
            PIXELS: gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8),
            AGENT_POS: gymnasium.spaces.Box(-edge, edge, dtype=np.float32),
        }
    )
    return observation_space, scale.box


def check_spaces(
    world_model: WorldModel,
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    scale: ActionScale | None = None,
) -> tuple[gymnasium.spaces.Dict, gymnasium.spaces.Box]:
    """Returns the spaces, or raises an InputError: they are not those of a model of this size, and of its robot's units."""
    size = world_model.image_size
    wanted = {PIXELS: (size, size, 3), AGENT_POS: (world_model.agent_dim,)}
    found = observation_space
    if isinstance(observation_space, gymnasium.spaces.Dict):
        found = {name: space.shape for name, space in observation_space.items()}
    if not isinstance(observation_space, gymnasium.spaces.Dict) or found != wanted:
        raise InputError("real_env.observation_space", found, f"this model needs {wanted}: make the env so")
    (scale or ActionScale.of(world_model)).check(action_space, "real_env.action_space")
    return observation_space, as_box(action_space)


def check_dataset(dataset: Any) -> Recordings:
    """Returns a `FrameCache`, or what looks like one.

    Raises:
        InputError: it does not; a path, for one.
    """
    if not isinstance(dataset, Recordings):
        found = dataset if isinstance(dataset, str) else type(dataset).__name__
        remedy = "give a FrameCache: emu_embodied.data.frame_cache.frames_for(path) reads a dataset's"
        raise InputError("dataset", found, remedy)
    return dataset
