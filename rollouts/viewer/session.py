"""A dream that is driven step by step, from any of its frames, and the real world beside it. Knows no server and no page."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from emu_embodied.envs.imagined.starts import check_spaces
from emu_embodied.envs.letterboxed import as_seen
from emu_embodied.envs.tabletop.tasks import TaskWorld
from emu_embodied.errors import InputError
from emu_embodied.labels import knows
from emu_embodied.protocols import Rewindable, Seedable, Trained, WorldModel
from emu_embodied.rollouts.agents.trace import left_to_go, scene_of
from emu_embodied.types import AGENT_POS, IS_SUCCESS, PIXELS, TASK, History, Observation, Rollout, short_repr
from emu_embodied.units import ActionScale

from .page_builder import picture, psnr

MAX_FRAMES = 20_000  # of a scene, all branches together
PLOTS = (
    ("distance left", "cm", (("real", "real_distance"), ("imagined", "distance")), None),
    ("real against imagined, PSNR", "dB", (("", "psnr"),), None),
    ("probability of success, as imagined", "", (("", "success"),), (0, 1)),
    ("entropy of the imagined tokens", "nats", (("", "entropy"),), None),
)


@dataclass(frozen=True)
class Frame:
    """A moment of a dream, and all that is needed to go on from it.

    Attributes:
        history: what the model remembers (B = 1).
        step: steps since the scene's start.
        world: the real world's physics and random numbers at this moment; None where it is not played.
    """

    history: History
    step: int
    world: tuple[np.ndarray, Mapping[str, Any]] | None

    __repr__ = short_repr


class Play:
    """One scene at a time, dreamt from any of its frames; safe to call from several threads.

    The same seed, start and actions give the same frames, whatever was dreamt in between. All of it runs in one thread of its
    own, a call after the other: neither the model nor OpenGL is shared between threads.

    Args:
        model: what dreams.
        env: the real environment, for the scenes' starts, and to be played beside the dream; closed by `close`. Pictures of
            another size than the model's are letterboxed.
        checkpoint: its name, for people.
        real: step the env with the same actions, too. Branches of PushT differ a little from its own future: see
            `PushTEnv.set_state`.

    Attributes:
        frames: of the present scene; a frame's place here is its number.

    Raises:
        InputError: the env's spaces are not the model's, or it cannot be put back for branches.
    """

    def __init__(self, model: WorldModel, env: gymnasium.Env, checkpoint: str = "", real: bool = False) -> None:
        self.model, self.world, self.checkpoint, self.real = model, env.unwrapped, checkpoint, real
        self._env = as_seen(self.world, model.image_size)
        check_spaces(model, self._env.observation_space, self._env.action_space)
        self._units = ActionScale.of(model)
        if real and not isinstance(self.world, Rewindable):
            raise InputError(
                "real", type(self.world).__name__, "it cannot be put back to an earlier frame; leave real out"
            )
        self.frames: list[Frame] = []
        self._scenes, self._ahead = 0, -1  # scenes so far; the frame where the real world stands
        self._seconds: deque[float] = deque(maxlen=30)
        self._objects, _, self._scale = scene_of(model)
        self._thread = ThreadPoolExecutor(1)

    def reset(self, seed: int, instruction: str | None = None) -> dict[str, Any]:
        """Begins a scene.

        Args:
            seed: of the env's reset, and of the dream's noise.
            instruction: another one than the scene's own.

        Returns:
            `scene` and its first `frame`, as JSON.

        Raises:
            InputError: an instruction that the scene or the model cannot follow; the scene before then goes on.
        """
        return self._thread.submit(self._reset, seed, instruction).result()

    def step(self, scene: int, frame: int, action: Sequence[float]) -> dict[str, Any]:
        """Dreams one step from a frame.

        Args:
            scene: the number of the present one.
            frame: the number of the frame.
            action: A numbers in [-1, 1].

        Returns:
            The new `frame` as JSON, `milliseconds` it took to dream, and the `frames_per_second` of the last ones.

        Raises:
            InputError: no such frame or scene, an action that does not fit, or more than `MAX_FRAMES` frames.
        """
        return self._thread.submit(self._step, scene, frame, action).result()

    def close(self) -> None:
        """Closes the env, and ends the thread."""
        self._thread.submit(self.world.close).result()
        self._thread.shutdown()

    def _reset(self, seed: int, instruction: str | None) -> dict[str, Any]:
        try:
            observation, info, history = self._begin(seed, instruction)
        except InputError:
            if self.frames:
                self._begin(self._seed, self._asked)
                self._ahead = 0
            raise
        self._seed, self._asked, self._scenes, self._ahead = seed, instruction, self._scenes + 1, 0
        self._text, self._left = instruction or info.get(TASK, ""), left_to_go(self.world, self._objects)
        self.frames = [Frame(history, 0, self._remember())]
        imagined = self.model.decode(history.codes_BCN[0, -1])
        values = {"real_distance": info.get("distance")} if self.real else {}
        place = observation[AGENT_POS] if self.model.agent_dim else ()
        return {"scene": self._scene(), "frame": self._shown(None, imagined, observation[PIXELS], values, place)}

    def _begin(self, seed: int, instruction: str | None) -> tuple[dict[str, np.ndarray], dict[str, Any], History]:
        options = {"instruction": instruction} if instruction and isinstance(self.world, TaskWorld) else None
        observation, info = self._env.reset(seed=seed, options=options)
        text = instruction or info.get(TASK, "")
        return observation, info, self.model.encode([Observation(observation[PIXELS], observation[AGENT_POS], text)])

    def _step(self, scene: int, frame: int, action: Sequence[float]) -> dict[str, Any]:
        if scene != self._scenes:
            raise InputError("scene", scene, "another one was begun since, perhaps in another window; dream anew")
        if not 0 <= frame < len(self.frames):
            raise InputError("frame", frame, f"there are 0 to {len(self.frames) - 1}")
        if len(self.frames) >= MAX_FRAMES:
            raise InputError("frame", f"{MAX_FRAMES} of them", "that is enough; dream anew")
        begun, start = time.perf_counter(), self.frames[frame]
        if isinstance(self.model, Seedable):  # a step's noise is its own, so that branches do not disturb each other
            self.model.seed(int(np.random.SeedSequence([self._seed, start.step]).generate_state(1)[0]))
        action_A = np.asarray(action, np.float32)
        history, rollout = self.model.step(start.history, action_A[None])
        imagined = self.model.decode(rollout.codes_BSTN[0, 0, 0])
        self._seconds.append(time.perf_counter() - begun)
        values, real = self._values(rollout), None
        if self.real:
            real, values["real_distance"], values["real_success"] = self._act(frame, action_A)
        self.frames.append(Frame(history, start.step + 1, self._remember()))
        self._ahead = len(self.frames) - 1
        return {
            "frame": self._shown(action, imagined, real, values, self.model.agent_pos(rollout)[0, 0, 0]),
            "milliseconds": 1e3 * self._seconds[-1],
            "frames_per_second": len(self._seconds) / sum(self._seconds),
        }

    def _act(self, frame: int, action_A: np.ndarray) -> tuple[np.ndarray, float | None, bool]:
        """Acts in the real world from a frame, where it is put back to first unless it stands there."""
        if self._ahead != frame:
            kept = self.frames[frame].world
            assert kept is not None and isinstance(self.world, Rewindable)
            state, rng = kept
            self.world.set_state(state)
            self.world.np_random.bit_generator.state = rng
        self._ahead = -1  # should the physics fail, the world stands nowhere
        observation, _, _, _, info = self._env.step(self._units.to_robot(action_A))
        return observation[PIXELS], info.get("distance"), bool(info.get(IS_SUCCESS))

    def _remember(self) -> tuple[np.ndarray, Mapping[str, Any]] | None:
        if not self.real or not isinstance(self.world, Rewindable):
            return None
        return self.world.get_state(), self.world.np_random.bit_generator.state

    def _values(self, rollout: Rollout) -> dict[str, Any]:
        distance = self._left(rollout.positions_BSTOD[0, 0, 0].cpu()) if self._left else None
        success = rollout.success_BST[0, 0, 0] if knows(self.model, "success") else None
        return {"distance": distance, "success": success, "entropy": rollout.entropy_BST[0, 0, 0]}

    def _shown(self, action, imagined, real, values: dict[str, Any], place) -> dict[str, Any]:
        """The newest frame as JSON."""
        real = real if self.real else None
        if real is not None:
            values = values | {"psnr": psnr(real[None], imagined[None])[0]}
        done = bool(values.pop("real_success", False)) if self.real else float(values.get("success") or 0.0) > 0.5
        return {
            "id": len(self.frames) - 1,
            "action": None if action is None else [float(x) for x in action],
            "imagined": picture(imagined, quick=True),
            "real": None if real is None else picture(real, quick=True),
            "values": {name: round(float(x), 4) for name, x in values.items() if x is not None},
            "place": [round(float(x), 3) for x in place[:2]] or None,
            "success": done,
            "note": ("done" if self.real else "done, as imagined") if done else "",
        }

    def _scene(self) -> dict[str, Any]:
        named = self.model.world.action_names if isinstance(self.model, Trained) else ()
        axes = list(named) or [f"action {i + 1}" for i in range(self.model.action_dim)]
        return {
            "checkpoint": self.checkpoint,
            "number": self._scenes,
            "engine": getattr(getattr(self.model, "engine", None), "name", type(self.model).__name__),
            "size": self.model.image_size,
            "seed": self._seed,
            "instruction": self._text,
            "asked": self._asked,
            "real": self.real,
            "axes": axes,
            "action_size": self.model.action_dim,
            "scale": list(self._scale),
            "plots": [
                {
                    "title": title,
                    "unit": unit,
                    "range": span,
                    "lines": [{"name": name, "key": key} for name, key in lines],
                }
                for title, unit, lines, span in PLOTS
                if self.real or title != PLOTS[1][0]
            ],
        }
