"""Planning by gradient: actions follow Adam down the cost of softly imagined futures. Knows no world and no goal.

The gradient goes through the model's soft tokens: expected embeddings instead of drawn codes (`protocols.SoftWorldModel`).
There are several starts, for the cost has many valleys; actions are kept in their bounds by projection.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from emu_embodied.errors import InputError

from .base import Budget, Memory, PlannerConfig, Search, SearchPlanner
from .noise import ar1_noise

FIRST, SECOND = 0.9, 0.999  # Adam's rates of forgetting (Kingma and Ba, arXiv 1412.6980)


@dataclass(frozen=True, kw_only=True)
class GradientConfig(PlannerConfig):
    """Budget and settings of the planner.

    `candidates` are starts and `iterations` are Adam's steps, each of which imagines all of them softly; at the end all are
    imagined as the model decodes, which decides between them.

    Attributes:
        learning_rate: Adam's, in action units.
        initial_std: spread of the random starts, in action units.
        correlation: of their noise from one planned action to the next, in [0, 1).
    """

    name: str = field(default="gradient", init=False)
    candidates: int = 4
    iterations: int = 15
    learning_rate: float = 0.15
    initial_std: float = 0.7
    correlation: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prune:
            raise InputError("prune", True, "a gradient looks at whole plans: choose false")
        self._check_number("learning_rate", 0, above=True)
        self._check_number("initial_std", 0, above=True)
        self._check_number("correlation", 0, 0.999)

    @property
    def closing_frames(self) -> int:
        """All candidates', once more."""
        return self.candidates * self.horizon


class GradientPlanner(SearchPlanner[GradientConfig]):
    """A planner by gradient descent with several starts."""

    Config = GradientConfig

    def search(self, memory: Memory, budget: Budget) -> Search:
        c = self.config
        # 1. Starts: the last plan, shifted; standing still; and random ones.
        actions_SKA = c.initial_std * ar1_noise((c.candidates, *memory.still_KA.shape), c.correlation, memory.generator)
        known = [memory.still_KA] if memory.best_KA is None else [memory.best_KA, memory.still_KA]
        actions_SKA[: len(known)] = torch.stack(known)[: c.candidates]
        actions_SKA = actions_SKA.clamp(-1, 1).requires_grad_()
        first_SKA, second_SKA = torch.zeros(2, *actions_SKA.shape)  # Adam's moments
        found_SKA, lowest_S = actions_SKA.detach().clone(), torch.full((c.candidates,), torch.inf)
        while budget.fits():
            # 2. Imagine them softly; the costs come with the actions' gradient.
            costs_S = yield actions_SKA
            # 3. Each start remembers the best place that it has been to.
            better_S = costs_S < lowest_S
            lowest_S = torch.where(better_S, costs_S, lowest_S)
            found_SKA[better_S] = actions_SKA.detach()[better_S]
            # 4. A step of Adam, projected into the bounds.
            gradient_SKA = actions_SKA.grad
            assert gradient_SKA is not None  # it came with the costs
            first_SKA = FIRST * first_SKA + (1 - FIRST) * gradient_SKA
            second_SKA = SECOND * second_SKA + (1 - SECOND) * gradient_SKA**2
            slope_SKA = first_SKA / (1 - FIRST**budget.round)
            size_SKA = (second_SKA / (1 - SECOND**budget.round)).sqrt() + 1e-12
            actions_SKA -= c.learning_rate * slope_SKA / size_SKA
            actions_SKA.clamp_(-1, 1)
        # 5. What was found is imagined as the model decodes: the best of it is the plan.
        yield found_SKA
