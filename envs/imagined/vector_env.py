"""Imagined-v0 as a vector env: N dreams, one model call a step. Knows the world model's protocol, and no simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from emu_embodied.envs.checks import check_action, check_options
from emu_embodied.errors import InputError
from emu_embodied.protocols import WorldModel
from emu_embodied.types import PIXELS
from emu_embodied.validation import check_seed, whole_number

from .core import DEFAULT, Dreams, observed_space
from .env import ImaginedEnv, make_window
from .starts import SEEDS, Starts

PER_DREAM = ("observation", "instruction", "episode", "frame")  # options that may be given as one per dream
TASKS = ("task", "task_description")  # attributes of each dream; the dreams share all others
MOST = 65_536  # dreams


class ImaginedVectorEnv(VectorEnv):
    """N dreams of one world model, stepped together; each is what an `ImaginedEnv` of its seed would be, whoever is beside it:
    token by token, and in pixels but for 1/255 where rendering several frames at once rounds otherwise.

    Spaces are batched; infos are as `gymnasium.vector.SyncVectorEnv` makes them from `ImaginedEnv`'s. Of `reset`'s
    options, "observation" may also be a batch or a sequence of N, and "instruction", "episode" and "frame" a sequence
    of N; "reset_mask" ((N,) bool) resets some dreams only. Or they are a sequence of N, one dict for each dream. `call`,
    `get_attr` and `set_attr` are `SyncVectorEnv`'s, one value for each dream.

    Args:
        world_model: what dreams.
        num_envs: N.
        max_episode_steps: steps after which a dream is truncated; None never does.
        real_env, render_mode, starts, terminate_on_success, observe: see `ImaginedEnv`; one real env gives all starts.
        autoreset_mode: what follows an episode's end: "NextStep", a reset instead of the next step; "SameStep", a reset
            at once, the end being in `info["final_obs"]` and `info["final_info"]`; "Disabled", nothing: call `reset`
            with a mask. These resets have no options: they start in `starts`, or where the real env does.

    Raises:
        InputError: arguments, options or actions that do not fit; it names which and what would.
    """

    metadata = {**ImaginedEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        world_model: WorldModel,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        real_env: gymnasium.Env | str | None = None,
        render_mode: str | None = None,
        starts: Any = None,
        terminate_on_success: bool = True,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        observe: Sequence[str] = DEFAULT,
    ) -> None:
        num_envs = whole_number("num_envs", num_envs, 1, MOST, InputError)
        if max_episode_steps is not None:
            max_episode_steps = whole_number("max_episode_steps", max_episode_steps, 1, 2**63 - 1, InputError)
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except (ValueError, TypeError):
            modes = [mode.value for mode in AutoresetMode]
            raise InputError("autoreset_mode", autoreset_mode, f"choose one of {modes}") from None
        self.render_mode, self.world_model, self.num_envs = render_mode, world_model, num_envs
        self.max_episode_steps, self.terminate_on_success = max_episode_steps, terminate_on_success
        self._starts = Starts(world_model, real_env, starts)
        self.single_observation_space = observed_space(self._starts.observation_space, world_model, observe)
        self.single_action_space = self._starts.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        fps = self._starts.render_fps
        self._window = make_window(render_mode, fps)
        self.metadata = {**self.metadata, "render_fps": fps, "autoreset_mode": self.autoreset_mode}
        self._dreams = Dreams(world_model, self._starts.agent_space, num_envs, observe, self._starts.scale)
        self._rngs = [seeding.np_random()[0] for _ in range(num_envs)]
        self._ended = np.zeros(num_envs, np.bool_)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | Sequence[dict[str, Any] | None] | None = None,
    ):
        """Starts new dreams, all or those of `options["reset_mask"]`; returns the observations and infos.

        Args:
            seed: of the first dream, dream i has seed + i; or one for each; None goes on with the generators.
            options: see the class.

        Raises:
            gymnasium.error.ResetNeeded: a mask that leaves out dreams that never started.
        """
        seeds, mask = self._seeds(seed), None
        if isinstance(options, list | tuple):
            self._check_count("options", options)
            given = [check_options(own) for own in options]
        else:
            options = check_options(options)
            mask = options.pop("reset_mask", None)
            given = [self._options_of(row, options) for row in range(self.num_envs)]
        rows = self._masked(mask)
        super().reset(seed=seeds[0])
        infos: dict[str, Any] = {}
        each = [given[row] for row in rows]
        self._add_all(infos, rows, self._begin(rows, [seeds[row] for row in rows], each))
        self._show()
        return self._dreams.observations, infos

    def step(self, actions: np.ndarray):
        """Dreams one step of all dreams: (N, ...) observations, rewards, terminations, truncations, and the infos.

        Raises:
            InputError: actions with a wrong shape, dtype, range or non-finite values; the dreams are then as before.
            gymnasium.error.ResetNeeded: there is no dream yet, or, where autoreset is disabled, one has ended.
        """
        actions = check_action(actions, self.action_space)
        if self._dreams.history is None:
            raise gymnasium.error.ResetNeeded("call reset() before step(): there is no dream yet")
        if self.autoreset_mode is AutoresetMode.DISABLED and self._ended.any():
            ended = np.flatnonzero(self._ended).tolist()
            raise gymnasium.error.ResetNeeded(f"dreams {ended} have ended: reset them, with a reset_mask")
        over = self._ended  # with NEXT_STEP, these start anew instead of stepping
        rewards, infos_by_row = np.zeros(self.num_envs), [{} for _ in range(self.num_envs)]
        terminations = np.zeros(self.num_envs, np.bool_)
        truncations = terminations.copy()
        if not over.all():
            done = self._dreams.step(np.where(over[:, None], 0.0, actions))
            rewards, infos_by_row = np.where(over, 0.0, done.rewards), done.infos
            terminations = done.successes & ~over & self.terminate_on_success
            if self.max_episode_steps is not None:
                truncations = (self._dreams.ages >= self.max_episode_steps) & ~over
        self._ended = terminations | truncations
        infos = self._autoreset(over, infos_by_row)
        self._show()
        return self._dreams.observations, rewards, terminations, truncations, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The frames, each (256, 256, 3) uint8, for people to look at; None where a window shows them already.

        Raises:
            gymnasium.error.ResetNeeded: there is no dream yet.
        """
        if self.render_mode != "rgb_array":
            return None
        if self._dreams.history is None:
            raise gymnasium.error.ResetNeeded("call reset() before render(): there is no dream yet")
        return self._pictures()

    def close_extras(self, **kwargs: Any) -> None:
        """Closes the window, and the real env if it was made here."""
        self._starts.close()
        if self._window:
            self._window.close()

    @property
    def task(self) -> tuple[str, ...]:
        """Each dream's instruction."""
        return tuple(self._dreams.tasks)

    task_description = task

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of each dream; all but its task are shared."""
        value = getattr(self, name)
        return tuple(value) if name in TASKS else (value,) * self.num_envs

    def set_attr(self, name: str, values: Any) -> None:
        """Sets an attribute that the dreams share: one value, or N that are the same.

        Raises:
            InputError: values that differ, or an attribute that is each dream's own.
        """
        values = list(values) if isinstance(values, list | tuple) else [values] * self.num_envs
        self._check_count(name, values)
        if name in TASKS:
            raise InputError(name, values, 'begin the dreams anew, with the option "instruction"')
        if any(value is not values[0] and value != values[0] for value in values):
            raise InputError(name, values, "the dreams share it: set it for all of them")
        setattr(self, name, values[0])

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Calls a method as each dream's own: pictures for "render", else the shared result N times."""
        if name == "get_wrapper_attr":
            return self.get_attr(*args, **kwargs)
        attribute = getattr(self, name)
        if not callable(attribute):
            return self.get_attr(name)
        result: Any = attribute(*args, **kwargs)
        return result if name == "render" and result is not None else (result,) * self.num_envs

    def _pictures(self) -> tuple[np.ndarray, ...]:
        return tuple(self._dreams.picture(row) for row in range(self.num_envs))

    def _show(self) -> None:
        if self._window:
            self._window.show(self._pictures())

    def _autoreset(self, over: np.ndarray, infos_by_row: list[dict[str, Any]]) -> dict[str, Any]:
        """Starts anew what the mode says, and puts the infos together."""
        infos: dict[str, Any] = {}
        anew = np.zeros_like(over)
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            anew = over
        elif self.autoreset_mode is AutoresetMode.SAME_STEP:
            anew = self._ended
            last = self._dreams.observations
            for row in np.flatnonzero(anew).tolist():
                final_obs = {name: array[row].copy() for name, array in last.items()}
                self._add_info(infos, {"final_obs": final_obs, "final_info": infos_by_row[row]}, row)
        rows = np.flatnonzero(anew).tolist()
        if rows:
            for row, info in zip(rows, self._begin(rows, [None] * len(rows), [{}] * len(rows)), strict=True):
                infos_by_row[row] = info
        self._add_all(infos, range(self.num_envs), infos_by_row)
        return infos

    def _begin(self, rows: Sequence[int], seeds: Sequence[int | None], options: Sequence[dict]) -> list[dict[str, Any]]:
        starts, noises = [], []
        for row, seed, own in zip(rows, seeds, options, strict=True):
            if seed is not None:
                self._rngs[row], _ = seeding.np_random(seed)
            noises.append(int(self._rngs[row].integers(SEEDS)))
            starts.append(self._starts.find(seed, self._rngs[row], own))
        infos = self._dreams.begin(rows, starts, noises)
        self._ended[list(rows)] = False
        return infos

    def _add_all(self, infos: dict[str, Any], rows: Sequence[int], infos_by_row: Sequence[dict[str, Any]]) -> None:
        for row, info in zip(rows, infos_by_row, strict=True):
            self._add_info(infos, info, row)

    def _seeds(self, seed: Any) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if not isinstance(seed, list | tuple | np.ndarray):
            return [check_seed(seed) + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise InputError("seed", seed, f"give a whole number, or a list of {self.num_envs}")
        return [None if one is None else check_seed(one) for one in seed]

    def _masked(self, mask: Any) -> list[int]:
        """The rows of a reset mask."""
        if mask is None:
            return list(range(self.num_envs))
        fits = isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == (self.num_envs,)
        if not fits or not mask.any():
            remedy = f"give a bool array of shape ({self.num_envs},) with at least one True"
            raise InputError("reset_mask", mask, remedy)
        if self._dreams.history is None and not mask.all():
            raise gymnasium.error.ResetNeeded("call reset() without a mask first: there is no dream yet")
        return np.flatnonzero(mask).tolist()

    def _options_of(self, row: int, options: dict[str, Any]) -> dict[str, Any]:
        """What the options say of one dream."""
        own = dict(options)
        batch = options.get("observation")
        if isinstance(batch, Mapping) and np.ndim(batch.get(PIXELS, 0)) == 4:
            self._check_count("observation", batch[PIXELS])
            own["observation"] = {name: array[row] for name, array in batch.items() if len(array) == self.num_envs}
        for name in PER_DREAM:
            if isinstance(own.get(name), list | tuple | np.ndarray):
                self._check_count(name, own[name])
                own[name] = own[name][row]
        return own

    def _check_count(self, name: str, values: Any) -> None:
        if len(values) != self.num_envs:
            raise InputError(name, f"{len(values)} values", f"give one for all dreams, or {self.num_envs}")
