"""Where dreams start: in a given frame, a dataset's, or one that the real env resets to. Knows no concrete model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np

from emu_embodied.envs.checks import as_box, check_index, check_names, check_observation
from emu_embodied.envs.registration import make_registered
from emu_embodied.errors import InputError
from emu_embodied.protocols import Trained, WorldModel
from emu_embodied.types import AGENT_POS, PIXELS, TASK, Observation
from emu_embodied.units import ActionScale

SEEDS = 2**31  # drawn seeds lie below
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
    size, blind = world_model.image_size, world_model.agent_dim == 0
    wanted = {PIXELS: (size, size, 3), AGENT_POS: (world_model.agent_dim,)}
    found = observation_space
    if isinstance(observation_space, gymnasium.spaces.Dict):
        found = {name: space.shape for name, space in observation_space.items()}
        if blind and AGENT_POS in found:  # the model does not look at it
            found[AGENT_POS] = (0,)
    if not isinstance(observation_space, gymnasium.spaces.Dict) or found != wanted:
        rule = f"make the env so; envs.letterboxed.Letterboxed(env, {size}) fits pictures of another size"
        raise InputError("real_env.observation_space", found, f"this model needs {wanted}: {rule}")
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
