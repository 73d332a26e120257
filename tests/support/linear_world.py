"""Linear dynamics with a known optimum: for tests of what plans."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from emu_embodied.types import History, Rollout

GAIN, EFFORT = 0.5, 0.2


class LinearWorld:
    """A point in the plane: x' = x + GAIN * a, exactly; its codes are x itself. Keeps what was asked of it."""

    image_size, action_dim, agent_dim, context_frames, tokens_per_frame, text_size = 8, 2, 2, 1, 2, 0
    objects = ("point",)
    gain = GAIN

    def __init__(self) -> None:
        self.asked: list[torch.Tensor] = []

    def at(self, *places: float) -> History:
        """The history of worlds that are at x, y, x, y, ..."""
        codes_BCN = torch.tensor(places).view(-1, 1, 2)
        return History(codes_BCN, torch.zeros(len(codes_BCN), 0, 2), torch.zeros(len(codes_BCN), 0))

    @property
    def frames(self) -> int:
        """How many it was asked to imagine."""
        return sum(actions[..., 0].numel() for actions in self.asked)

    def encode(self, observations):
        return self.at(*observations[0].agent_pos)

    def observe(self, history, actions, observations):
        return self.encode(observations)

    def rollout(self, history, actions):
        self.asked.append(actions.detach().clone())
        path_BSTA = history.codes_BCN[:, -1][:, None, None] + GAIN * actions.cumsum(2)
        zeros_BST = torch.zeros(actions.shape[:3])
        return Rollout(path_BSTA, zeros_BST, zeros_BST, path_BSTA[..., None, :], zeros_BST[..., None], zeros_BST)

    soft_rollout = rollout  # it has a gradient as it is

    def step(self, history, actions):
        rollout = self.rollout(history, torch.as_tensor(actions)[:, None, None])
        return history.push(torch.as_tensor(actions), rollout.codes_BSTN[:, 0, 0]), rollout

    def decode(self, codes):
        return np.zeros((*codes.shape[:-1], 8, 8, 3), np.uint8)

    def agent_pos(self, rollout):
        return rollout.positions_BSTOD[..., 0, :].numpy()


@dataclass(frozen=True)
class ToPoint:
    """|x_T - goal|^2 + EFFORT * sum_t |a_t|^2."""

    goal: tuple[float, float]

    def __call__(self, model, rollout, actions):
        miss_BS2 = rollout.positions_BSTOD[:, :, -1, 0] - torch.tensor(self.goal)
        return miss_BS2.square().sum(-1) + EFFORT * actions.square().sum((-2, -1))


def best_action(goal: tuple[float, float], steps: int) -> torch.Tensor:
    """Every action of the optimum from the origin: GAIN * goal / (GAIN^2 * steps + EFFORT)."""
    return GAIN * torch.tensor(goal) / (GAIN**2 * steps + EFFORT)
