"""Imagined-v0: the real env's interface over a dream of it. Knows the world model's protocol, and no simulator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from emu_embodied.envs.checks import check_action, check_options
from emu_embodied.envs.window import Window, render_modes
from emu_embodied.errors import InputError
from emu_embodied.protocols import WorldModel
from emu_embodied.validation import check_seed

from .core import DEFAULT, Dreams, observed_space
from .starts import SEEDS, Starts


def make_window(render_mode: str | None, fps: float) -> Window | None:
    """The window of the mode "human"; None for the others.

    Raises:
        InputError: another mode than None, "rgb_array" and "human", or "human" without a screen.
    """
    if render_mode not in (None, "rgb_array", "human"):
        raise InputError("render_mode", render_mode, "choose None, 'rgb_array' or 'human'")
    return Window("emu-embodied: imagined", fps) if render_mode == "human" else None


class ImaginedEnv(gymnasium.Env):
    """A dream with the interface of the world: the same spaces, units and reward as the env that the model imitates.

    | what | where |
    |---|---|
    | action | the real env's space, in its units; where the model alone is asked, what its robot's recordings reached |
    | `pixels` | (H, W, 3) uint8, decoded from the model's codes, on reset too |
    | `agent_pos` | (D,) float32 in the real env's unit: given on reset, then as believed, clipped; (0,) where none is known |
    | `beliefs`, `instruction` | where `observe` asks for them; `beliefs.Beliefs` adds the same to the real env's |
    | reward | the model's estimate of the real env's; 0 where its data had none |
    | terminated | the model's success probability is above 1/2; never where its data did not tell of success |
    | `info["is_success"]`, `info["task"]` | bool; the instruction, also `env.unwrapped.task` |
    | `info["success_probability"]`, `info["entropy"]` | float; the tokens' mean entropy in nats as they were chosen |
    | `info["positions"]`, `info["presence"]` | name -> (x, y) in the real env's unit; name -> probability |
    | `reset`'s info | the same keys; NaN for what only a step reports |

    What the model's data had no labels of (success, positions) is absent from the infos.

    A dream starts where `reset`'s options say:

    - `{"observation": {"pixels", "agent_pos"} or Observation, "instruction": text}`: at a real observation;
    - `{"dataset": FrameCache, "episode": i, "frame": t}`: at a recorded frame, with its instruction unless another is
      given; without `episode` in a random one, without `frame` at the first;
    - none: in `starts` if there are, else by the real env's own reset with the seed. Other options reach that reset.

    The same seed and actions dream the same dream, whatever else uses the model.

    Args:
        world_model: what dreams.
        real_env: the real env or its id, by default the one that the model was trained for. An id is made when the
            first reset needs it: dreams that start at given observations need no simulator.
        render_mode: None; "rgb_array" for `render()` to return the frame at 256 px; or "human" for a window that shows
            every frame.
        starts: a FrameCache where resets without options start.
        terminate_on_success: end the episode at success.
        observe: which observations are wanted; frames are decoded only where "pixels" are.

    Raises:
        InputError: arguments, options or actions that do not fit; it names which and what would.
    """

    metadata = {"render_modes": render_modes(), "render_fps": 4}

    def __init__(
        self,
        world_model: WorldModel,
        real_env: gymnasium.Env | str | None = None,
        render_mode: str | None = None,
        starts: Any = None,
        terminate_on_success: bool = True,
        observe: Sequence[str] = DEFAULT,
    ) -> None:
        self.render_mode, self.world_model = render_mode, world_model
        self.terminate_on_success = terminate_on_success
        self._starts = Starts(world_model, real_env, starts)
        self.observation_space = observed_space(self._starts.observation_space, world_model, observe)
        self.action_space = self._starts.action_space
        self.metadata = {**self.metadata, "render_fps": self._starts.render_fps}
        self._window = make_window(render_mode, self._starts.render_fps)
        self._dreams = Dreams(world_model, self._starts.agent_space, 1, observe, self._starts.scale)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Starts a new dream; returns the first observation and info."""
        seed = None if seed is None else check_seed(seed)
        super().reset(seed=seed)
        noise = int(self.np_random.integers(SEEDS))
        start = self._starts.find(seed, self.np_random, check_options(options))
        infos = self._dreams.begin([0], [start], [noise])
        self._show()
        return self._observe(), infos[0]

    def step(self, action: np.ndarray):
        """Dreams one step; see the class for what comes back.

        Raises:
            InputError: an action with a wrong shape, dtype, range or non-finite values; the dream is then as before.
            gymnasium.error.ResetNeeded: there is no dream yet.
        """
        if self._dreams.history is None:
            raise gymnasium.error.ResetNeeded("call reset() before step(): there is no dream yet")
        done = self._dreams.step(check_action(action, self.action_space)[None])
        terminated = bool(done.successes[0]) and self.terminate_on_success
        self._show()
        return self._observe(), float(done.rewards[0]), terminated, False, done.infos[0]

    def render(self) -> np.ndarray | None:
        """The frame as (256, 256, 3) uint8, for people to look at; None where a window shows it already.

        Raises:
            gymnasium.error.ResetNeeded: there is no dream yet.
        """
        if self.render_mode != "rgb_array":
            return None
        if self._dreams.history is None:
            raise gymnasium.error.ResetNeeded("call reset() before render(): there is no dream yet")
        return self._dreams.picture(0)

    def close(self) -> None:
        """Closes the window, and the real env if it was made here."""
        self._starts.close()
        if self._window:
            self._window.close()

    @property
    def task(self) -> str:
        """The episode's instruction."""
        return self._dreams.tasks[0]

    task_description = task

    def _show(self) -> None:
        if self._window:
            self._window.show([self._dreams.picture(0)])

    def _observe(self) -> dict[str, np.ndarray]:
        return {name: array[0] for name, array in self._dreams.observations.items()}
