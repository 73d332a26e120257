"""Costs that need no goal, and what puts costs together: sums by weight, one cost for each world. Knows no concrete model.

A cost is a `protocols.Cost`: (model, rollout, actions (B, S, T, A)) -> (B, S) float32, lower is better. A cost by a head that
was not trained (`labels`) is an InputError.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from emu_embodied.errors import InputError
from emu_embodied.labels import need
from emu_embodied.protocols import Cost, WorldModel
from emu_embodied.types import Rollout
from emu_embodied.validation import number


class WeightedSum:
    """sum_i w_i * cost_i; the unit is that of the terms, which the weights should bring to one.

    Args:
        terms: (weight, cost) pairs.

    Raises:
        InputError: no terms, or a weight that is not a finite number.
    """

    def __init__(self, terms: Sequence[tuple[float, Cost]]) -> None:
        self.terms = tuple(terms)
        if not self.terms:
            raise InputError("terms", "none", "give at least one (weight, cost)")
        for weight, _ in self.terms:
            number("weight", weight, error=InputError)

    def __call__(self, model: WorldModel, rollout: Rollout, actions: torch.Tensor) -> torch.Tensor:
        first, *others = (weight * cost(model, rollout, actions) for weight, cost in self.terms)
        return sum(others, first)


@dataclass(frozen=True)
class RewardHead:
    """-(sum_t discount^t * r_t) / T, in reward per step, of the model's own estimate.

    Attributes:
        discount: in (0, 1].
    """

    discount: float = 1.0

    def __call__(self, model: WorldModel, rollout: Rollout, actions: torch.Tensor) -> torch.Tensor:
        need(model, "reward", "cost")
        rewards_BST = rollout.rewards_BST
        steps_T = torch.arange(rewards_BST.shape[-1], device=rewards_BST.device)
        return -(rewards_BST * self.discount**steps_T).mean(-1)


@dataclass(frozen=True)
class ActionEffort:
    """mean over steps and values of a^2, in [0, 1]."""

    def __call__(self, model: WorldModel, rollout: Rollout, actions: torch.Tensor) -> torch.Tensor:
        return actions.square().mean((-2, -1))


@dataclass(frozen=True)
class Uncertainty:
    """mean_t of the tokens' entropy when they were chosen, in nats: keeps plans where the model knows what will happen."""

    def __call__(self, model: WorldModel, rollout: Rollout, actions: torch.Tensor) -> torch.Tensor:
        return rollout.entropy_BST.mean(-1)


class PerWorld:
    """Each world of a batch by its own cost.

    Args:
        costs: B of them.

    Raises:
        InputError: when called: another number of worlds.
    """

    def __init__(self, costs: Sequence[Cost]) -> None:
        self.costs = tuple(costs)

    def __call__(self, model: WorldModel, rollout: Rollout, actions: torch.Tensor) -> torch.Tensor:
        if len(self.costs) != len(actions):
            raise InputError("costs", f"{len(self.costs)} of them", f"give one for each of {len(actions)} worlds")
        rows = []
        for b, cost in enumerate(self.costs):
            alone = slice(b, b + 1)
            rows.append(cost(model, rollout.map(lambda x, alone=alone: x[alone]), actions[alone]))
        return torch.cat(rows)
