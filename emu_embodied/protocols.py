"""What the rooms promise each other. Knows the types, and no concrete model, env or planner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

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


class StepEngine(Protocol):
    """Executes the model's pure steps; decoding loops are blind to which engine does it. See `inference.frame_step`.

    Attributes:
        name: says what executes: "eager", "compiled", "onnx", ...
        codebook_size: V.
    """

    name: str
    codebook_size: int

    def prefill(self, text_BL: torch.Tensor, codes_BCN: torch.Tensor, actions_BCA: torch.Tensor, ahead: int):
        """Reads C frames and the actions between them; returns a cache with room for `ahead` more frames."""
        ...

    def denoise(
        self,
        cache,
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

    def verify(self, cache, actions_BA: torch.Tensor, codes_BN: torch.Tensor):
        """One causal pass over a drafted frame, not kept; returns logits (B, N, V) and the slots' hidden states (B, N, D)."""
        ...

    def commit(self, cache, actions_BA: torch.Tensor, codes_BN: torch.Tensor) -> None:
        """Adds the finished frame to the past; its causal pass may wait for, or ride in, the next frame's first pass."""
        ...

    def frame_source(self, cache, actions_BA: torch.Tensor) -> torch.Tensor | None:
        """What the next frame's slots start from, (B, N, D); computed once a frame for `next_token`."""
        ...

    def next_token(
        self,
        cache,
        actions_BA: torch.Tensor,
        index: int,
        codes_B: torch.Tensor | None,
        source_BND: torch.Tensor | None,
        inverse_temperature: float = 1.0,
        gumbel_BV: torch.Tensor | None = None,
    ) -> Proposal:
        """Reads the token before slot `index`, which joins the cache, and draws the slot's code."""
        ...

    def finish(self, cache, codes_BN: torch.Tensor) -> None:
        """Closes a frame that `next_token` has read token by token."""
        ...

    def whole_frame(self, decode: Callable) -> Callable:
        """A decoding function as this engine runs it best: itself, or the same as one captured graph."""
        ...
