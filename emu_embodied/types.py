"""The values that travel between the rooms: frozen, with shapes, dtypes and units at each field. Knows no model and no env."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import torch

# Dictionary keys that cross a boundary (LeRobot's and Gymnasium's names).
PIXELS = "pixels"
AGENT_POS = "agent_pos"
IS_SUCCESS = "is_success"
OBS_IMAGE = "observation.image"
OBS_STATE = "observation.state"
OBS_ENVIRONMENT_STATE = "observation.environment_state"
ACTION = "action"
REWARD = "next.reward"
SUCCESS = "next.success"
TASK = "task"
BELIEFS = "beliefs"
INSTRUCTION = "instruction"


def short_repr(self: Any) -> str:
    """The `__repr__` of values that hold arrays, for people who look at one in a notebook: at most some hundred characters.

    Args:
        self: a dataclass or a named tuple; of its arrays dtype and shape are shown, of long fields the length.
    """
    names = self._fields if hasattr(self, "_fields") else [f.name for f in fields(self) if f.repr]
    return f"{type(self).__name__}({', '.join(f'{name}={_brief(getattr(self, name))}' for name in names)})"


def _brief(value: Any, most: int = 100) -> str:
    if isinstance(value, np.ndarray | torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    many = isinstance(value, tuple | list | dict) and not hasattr(value, "_fields")
    shown = "" if many and len(value) > 8 else repr(value)
    if type(value).__repr__ is short_repr or 0 < len(shown) <= most:
        return shown
    if isinstance(value, str):
        return shown[: most - 3] + "..."
    return f"<{type(value).__name__} of {len(value)}>" if many else f"<{type(value).__name__}>"


@dataclass(frozen=True)
class Observation:
    """What a robot sees at one moment.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        agent_pos: (D,) float32, the robot's own position (table-top: x, y in cm).
        instruction: the episode's task as text; empty where there is none.
    """

    pixels: np.ndarray
    agent_pos: np.ndarray
    instruction: str = ""

    __repr__ = short_repr


@dataclass(frozen=True)
class Episode:
    """One recorded trajectory of T model steps.

    Attributes:
        pixels: (T + 1, H, W, 3) uint8.
        agent_pos: (T + 1, D) float32.
        states: (T + 1, E) float32, the simulator's true state vector (`observation.environment_state`).
        actions: (T, A) float32, in the robot's units.
        rewards: (T,) float32, received on arrival at frame t + 1; None where they were not recorded.
        successes: (T,) bool, judged at frame t + 1; None where they were not recorded.
        instruction: the task as text.
    """

    pixels: np.ndarray
    agent_pos: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray | None
    successes: np.ndarray | None
    instruction: str

    __repr__ = short_repr


@dataclass(frozen=True)
class History:
    """What a world model remembers of B worlds: the last C frames as codes, and the actions between them.

    A world with fewer than C frames behind it is filled up with its first frame and zero actions.

    Attributes:
        codes_BCN: (B, C, N) int64 visual codes in 0..codebook_size - 1, N tokens a frame, row by row.
        actions_BCA: (B, C - 1, A) float32; action c led from frame c to frame c + 1.
        text_BL: (B, L) int64 instruction ids, padded to the model's text length.
    """

    codes_BCN: torch.Tensor
    actions_BCA: torch.Tensor
    text_BL: torch.Tensor

    __repr__ = short_repr

    def __len__(self) -> int:
        return self.codes_BCN.shape[0]

    @classmethod
    def cat(cls, histories: Sequence[History]) -> History:
        """The history of all the worlds of some histories, in their order."""
        return histories[0] if len(histories) == 1 else cls(*map(torch.cat, zip(*map(_parts, histories), strict=True)))

    def split(self) -> list[History]:
        """The history of each world by itself."""
        return [self.select(slice(b, b + 1)) for b in range(len(self))]

    def select(self, rows: slice | list[int] | torch.Tensor) -> History:
        """Returns the history of some of the worlds."""
        return History(self.codes_BCN[rows], self.actions_BCA[rows], self.text_BL[rows])

    def push(self, actions_BA: torch.Tensor, codes_BN: torch.Tensor) -> History:
        """Appends one action (B, A) and the frame (B, N) it led to; the oldest frame falls out."""
        return History(
            torch.cat([self.codes_BCN[:, 1:], codes_BN[:, None]], 1),
            torch.cat([self.actions_BCA, actions_BA[:, None]], 1)[:, 1:],
            self.text_BL,
        )


class Proposal(NamedTuple):
    """What a pass says of the next frame's slots, and what it drew; (...) is (B, N) in parallel, (B,) token by token.

    Attributes:
        codes: (...) int64 drawn, the likeliest where no noise was given.
        log_prob: (...) float32, of the drawn codes.
        entropy: (...) float32 nats.
        states: (..., D) hidden states: the slots' own in parallel, the token's just read token by token.
        logits: (..., V).
    """

    codes: torch.Tensor
    log_prob: torch.Tensor
    entropy: torch.Tensor
    states: torch.Tensor
    logits: torch.Tensor

    __repr__ = short_repr


@dataclass(frozen=True)
class Rollout:
    """S imagined futures of T steps for each of B worlds.

    Attributes:
        codes_BSTN: (B, S, T, N) int64 visual codes.
        rewards_BST: (B, S, T) float32, the reward head's estimate on arrival at each frame.
        success_BST: (B, S, T) float32 in [0, 1], the success head's probability at each frame.
        positions_BSTOD: (B, S, T, O, 2) float32 in world units (table-top: cm, x right, y up), the state head's estimate of
            each object, in the model's `objects` order.
        presence_BSTO: (B, S, T, O) float32 in [0, 1], the probability that the object is in view.
        entropy_BST: (B, S, T) float32 nats, mean entropy of the tokens when they were chosen.
    """

    codes_BSTN: torch.Tensor
    rewards_BST: torch.Tensor
    success_BST: torch.Tensor
    positions_BSTOD: torch.Tensor
    presence_BSTO: torch.Tensor
    entropy_BST: torch.Tensor

    __repr__ = short_repr

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Rollout:
        """The same change of every part, as a choice of worlds or candidates."""
        return Rollout(*map(change, _parts(self)))

    def join(self, later: Rollout) -> Rollout:
        """These futures, and how they go on."""
        return Rollout(*(torch.cat(pair, 2) for pair in zip(_parts(self), _parts(later), strict=True)))


def _parts(value: Any) -> list[Any]:
    return [getattr(value, field.name) for field in fields(value)]


DONE = "done"  # the caption that ends a chain of subgoals


@dataclass(frozen=True)
class Subgoal:
    """A key frame on the way to what an instruction asks for.

    Attributes:
        caption: what happens on the way to it, in words ("move behind the red cube").
        frame: (H, W, 3) uint8 RGB, what is to be seen then.
        places: (O, 3) float32: x and y in world units and presence, in [0, 1], of each of the proposer's objects, where the
            proposer believes them to be in the frame.
        log_prob: mean log-probability of its tokens; 0.0 where nothing was drawn by chance.
        last: the instruction is fulfilled there.
        codes: (N,) int64 visual codes of the frame, of a model's subgoal; None where no model drew it.
    """

    caption: str
    frame: np.ndarray
    places: np.ndarray
    log_prob: float
    last: bool
    codes: torch.Tensor | None = None

    __repr__ = short_repr


@dataclass(frozen=True)
class Plan:
    """What a planner decided.

    Attributes:
        actions: (T, A) float32, the best sequence, in the action space's bounds.
        cost: its predicted cost (lower is better).
        predicted_frames: frames imagined to find it: candidates x steps x iterations, less what was pruned.
        seconds: wall time it took, for all worlds that were planned for at once.
        costs_by_iteration: best cost after each iteration, for logs; of soft futures none.
        future: what the actions were imagined to lead to, B = S = 1; None where the planner does not tell.
        candidates: the futures that were imagined to their ends in the last round, B = 1; None as above.
        candidate_costs: (S,) float32, theirs; None as above.
    """

    actions: np.ndarray
    cost: float
    predicted_frames: int
    seconds: float
    costs_by_iteration: tuple[float, ...] = field(default=())
    future: Rollout | None = None
    candidates: Rollout | None = None
    candidate_costs: torch.Tensor | None = None

    __repr__ = short_repr
