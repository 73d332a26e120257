"""What the rooms promise each other. Knows the types, and no concrete model, env or planner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch

from emu_embodied.types import History, Observation, Plan, Proposal, Rollout, Subgoal


@runtime_checkable
class WorldModel(Protocol):
    """A world that can be dreamt in: remembers frames as tokens, predicts the next one from an action.

    Attributes:
        image_size: side of a frame in px.
        action_dim: A.
        agent_dim: D of `agent_pos`.
        objects: names of the objects whose positions a rollout reports ("pusher", "red", ...).
        context_frames: C, the frames a history holds.
        tokens_per_frame: N.
        text_size: V, ids of the text tokenizer; a history's text holds larger ones only as padding.
    """

    image_size: int
    action_dim: int
    agent_dim: int
    objects: tuple[str, ...]
    context_frames: int
    tokens_per_frame: int
    text_size: int

    def encode(self, observations: Sequence[Observation]) -> History:
        """Starts B histories, each from one observation."""
        ...

    def observe(self, history: History, actions: np.ndarray, observations: Sequence[Observation]) -> History:
        """Appends what really happened: actions (B, A) and the observations they led to."""
        ...

    def step(self, history: History, actions: np.ndarray) -> tuple[History, Rollout]:
        """Imagines one step of each world from actions (B, A); the rollout has S = T = 1."""
        ...

    def rollout(self, history: History, actions: np.ndarray | torch.Tensor) -> Rollout:
        """Imagines the futures of actions (B, S, T, A) in [-1, 1]; the S candidates of a world share its prefix."""
        ...

    def decode(self, codes: torch.Tensor) -> np.ndarray:
        """Renders visual codes (..., N) as frames (..., H, W, 3) uint8."""
        ...

    def agent_pos(self, rollout: Rollout) -> np.ndarray:
        """The robot's own position (B, S, T, D) float32, in the real env's units, as the model believes it."""
        ...


@runtime_checkable
class Seedable(Protocol):
    """Samples from a seed that can be set; a world model's `step` and `rollout` then take seeds for each world too."""

    def seed(self, seed: int) -> None:
        """Restarts the noise."""
        ...


class World(Protocol):
    """Names and scales of what a model's frames show; see `checkpoint.World`."""

    @property
    def objects(self) -> Mapping[str, tuple[int, int, int]]: ...
    @property
    def position_scale(self) -> tuple[float, float]: ...
    @property
    def env_id(self) -> str: ...
    @property
    def action_names(self) -> tuple[str, ...]: ...
    @property
    def action_scale(self) -> tuple[tuple[tuple[float, ...], ...], ...]: ...
    @property
    def known(self) -> tuple[str, ...] | None: ...


@runtime_checkable
class Trained(Protocol):
    """What was trained for a world, and says for which."""

    world: World


@runtime_checkable
class SoftWorldModel(WorldModel, Protocol):
    """A world model whose futures have a gradient by their actions."""

    def soft_rollout(self, history: History, actions: torch.Tensor) -> Rollout:
        """Imagines the futures of actions (B, S, T, A) with expected instead of drawn tokens; its floats are differentiable."""
        ...


@runtime_checkable
class Cost(Protocol):
    """Scores imagined futures."""

    def __call__(self, model: WorldModel, rollout: Rollout, actions: torch.Tensor) -> torch.Tensor:
        """Costs (B, S) float32, lower is better, of a rollout of actions (B, S, T, A)."""
        ...


@runtime_checkable
class Planner(Protocol):
    """Chooses actions by imagining their futures."""

    def reset(self, worlds: Sequence[int] | None = None) -> None:
        """Forgets the warm start of these worlds, by default of all: new episodes begin."""
        ...

    def plan(self, model: WorldModel, history: History, cost: Cost) -> Plan:
        """Plans for a history of one world (B = 1)."""
        ...

    def plan_batch(
        self, model: WorldModel, history: History, cost: Cost, worlds: Sequence[int] | None = None
    ) -> list[Plan]:
        """Plans for each world of a history of B; `worlds` are their numbers, by default 0 to B - 1."""
        ...


@runtime_checkable
class Rewindable(Protocol):
    """A simulator that can be put back to where it was."""

    def get_state(self) -> np.ndarray:
        """All that the future depends on: a float64 vector."""
        ...

    def set_state(self, state: np.ndarray) -> None:
        """Goes back to a state of this episode."""
        ...


@runtime_checkable
class NamedWorld(Protocol):
    """A real env, unwrapped, that says what its true state holds.

    Attributes:
        state_names: of the state's elements, `NAME.x` and `NAME.y` among them.
    """

    @property
    def state_names(self) -> Sequence[str]: ...


@runtime_checkable
class SimulatedWorld(NamedWorld, Rewindable, Protocol):
    """A real env, unwrapped, whose simulator tells where everything is, and can be tried out: an oracle's world."""

    @property
    def config(self) -> Any:
        """The env's options, `image_size` among them."""
        ...

    def act(self, action: np.ndarray) -> object:
        """Steps the physics by one action in [-1, 1], without rendering."""
        ...

    def judge(self) -> tuple[float, bool]:
        """Reward and success of the present state."""
        ...

    def environment_state(self) -> np.ndarray:
        """The true state (E,) float32, named by `state_names`."""
        ...

    def frame(self, size: int) -> np.ndarray:
        """The camera's picture (size, size, 3) uint8."""
        ...


class SubgoalProposer(Protocol):
    """Draws what should be seen on the way to what an instruction asks for.

    Attributes:
        objects: names of the objects whose places its subgoals report, the robot ("pusher") among them.
    """

    objects: tuple[str, ...]

    def propose(self, observation: Observation, count: int = 4, seed: int = 0) -> list[Subgoal]:
        """Key frames on the way from what is seen to what the instruction asks for, at most `count`; none where it is believed
        done.

        Args:
            observation: the frame seen now, and the instruction.
            count: most key frames.
            seed: of what is drawn by chance; the same seed, the same subgoals.
        """
        ...


@runtime_checkable
class GoalPolicy(Protocol):
    """Acts towards what a goal frame shows, without imagining anything."""

    def act(self, pixels: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """The action (A,) in [-1, 1] at a frame, towards a goal frame, both (H, W, 3) uint8."""
        ...


class Cache(Protocol):
    """What B dreams remember between an engine's steps.

    Attributes:
        text_BL: (B, L) instruction ids.
        previous_BN: (B, N) codes of the last clean frame.
    """

    @property
    def text_BL(self) -> torch.Tensor: ...
    @property
    def previous_BN(self) -> torch.Tensor: ...
    def expand(self, copies: int) -> Self:
        """The same past for `copies` candidates of each world."""
        ...


class TextEncoder(Protocol):
    """Reads instructions."""

    def batch(self, texts: Sequence[str], length: int, pad: int) -> torch.Tensor:
        """Ids (B, length) int64, cut or padded."""
        ...


class StepEngine[C: Cache](Protocol):
    """Executes the model's pure steps; decoding loops are blind to which engine does it. See `inference.frame_step`.

    Attributes:
        name: says what executes: "eager", "compiled", "onnx", ...
        codebook_size: V.
        largest_batch: most dreams in one call of a step; None for any number.
    """

    name: str
    codebook_size: int
    largest_batch: int | None

    def prefill(self, text_BL: torch.Tensor, codes_BCN: torch.Tensor, actions_BCA: torch.Tensor, ahead: int) -> C:
        """Reads C frames and the actions between them; returns a cache with room for `ahead` more frames."""
        ...

    def denoise(
        self,
        cache: C,
        actions_BA: torch.Tensor,
        codes_BN: torch.Tensor,
        hidden_BN: torch.Tensor,
        inverse_temperature: float = 1.0,
        gumbel_BNV: torch.Tensor | None = None,
    ) -> Proposal:
        """One bidirectional pass over the next frame's slots, with a drawing from softmax(inverse_temperature * logits).

        `gumbel_BNV` is the drawing's noise, so that engines can be compared token by token; None draws the likeliest.
        """
        ...

    def verify(
        self, cache: C, actions_BA: torch.Tensor, codes_BN: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One causal pass over a drafted frame, not kept; returns logits (B, N, V) and the slots' hidden states (B, N, D)."""
        ...

    def commit(self, cache: C, actions_BA: torch.Tensor, codes_BN: torch.Tensor) -> None:
        """Adds the finished frame to the past; its causal pass may wait for, or ride in, the next frame's first pass."""
        ...

    def frame_source(self, cache: C, actions_BA: torch.Tensor) -> torch.Tensor | None:
        """What the next frame's slots start from, (B, N, D); computed once a frame for `next_token`."""
        ...

    def next_token(
        self,
        cache: C,
        actions_BA: torch.Tensor,
        index: int,
        codes_B: torch.Tensor | None,
        source_BND: torch.Tensor | None,
        inverse_temperature: float = 1.0,
        gumbel_BV: torch.Tensor | None = None,
    ) -> Proposal:
        """Reads the token before slot `index`, which joins the cache, and draws the slot's code."""
        ...

    def finish(self, cache: C, codes_BN: torch.Tensor) -> None:
        """Closes a frame that `next_token` has read token by token."""
        ...

    def whole_frame(self, decode: Callable) -> Callable:
        """A decoding function as this engine runs it best: itself, or the same as one captured graph."""
        ...
