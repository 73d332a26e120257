"""The cross-entropy method over discretised actions, with a categorical distribution for each. Knows no world and no goal.

Rubinstein's method in its discrete form (De Boer et al., "A Tutorial on the Cross-Entropy Method", 2005): the probability of a
value is its share among the elites. Unlike a normal distribution, it can be undecided between left and right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from emu_embodied.errors import InputError

from .base import Budget, Memory, PlannerConfig, Search, SearchPlanner
from .cem import check_elites
from .noise import keep_best


@dataclass(frozen=True, kw_only=True)
class CategoricalCEMConfig(PlannerConfig):
    """Budget and settings of the planner.

    Attributes:
        elites: best candidates that the next round is fitted to.
        bins: V, values of an action from -1 to 1, an odd number, so that standing still is one of them.
        momentum: share of the old probabilities that a refit keeps.
        explore: share of the uniform distribution in the first round's, so that a shifted plan can be left.
    """

    name: str = field(default="categorical", init=False)
    elites: int = 8
    bins: int = 5
    momentum: float = 0.2
    explore: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_elites(self, self.elites)
        self._check_whole("bins", 3, 1001)
        if self.bins % 2 == 0:
            raise InputError("bins", self.bins, "give an odd number, so that standing still is one of them")
        self._check_number("momentum", 0, 0.999)
        self._check_number("explore", 0, 1)


class CategoricalCEM(SearchPlanner[CategoricalCEMConfig]):
    """A planner by the categorical cross-entropy method."""

    Config = CategoricalCEMConfig

    def search(self, memory: Memory, budget: Budget) -> Search:
        c, (steps, actions) = self.config, memory.still_KA.shape
        values_V = torch.linspace(-1, 1, c.bins)
        # Start from the last plan's probabilities, shifted, and explore again; standing still and the last plan are candidates.
        uniform_KAV = torch.full((steps, actions, c.bins), 1 / c.bins)
        probs_KAV, seeds = uniform_KAV, [memory.still_KA]
        if memory.centre is not None and memory.best_KA is not None:
            probs_KAV = (1 - c.explore) * memory.centre + c.explore * uniform_KAV
            seeds.append(memory.best_KA)
        seeds_NKA = (torch.stack(seeds)[..., None] - values_V).abs().argmin(-1)
        elites_EKA, elite_costs_E = seeds_NKA[:0], torch.zeros(0)
        while budget.fits():
            # 1. Draw a value for each planned action.
            drawn = torch.multinomial(probs_KAV.flatten(0, 1), c.candidates, True, generator=memory.generator)
            bins_SKA = drawn.T.reshape(c.candidates, steps, actions).clone()
            bins_SKA[: len(seeds_NKA)] = seeds_NKA[: c.candidates]
            # 2. The costs.
            costs_S = yield values_V[bins_SKA]
            # 3. The elites are the best of these and of the elites so far, which keep their costs.
            elites_EKA, elite_costs_E = keep_best((elites_EKA, elite_costs_E), (bins_SKA, costs_S), c.elites)
            # 4. A value's probability is its share among the elites, with momentum.
            shares_KAV = F.one_hot(elites_EKA, c.bins).float().mean(0)
            probs_KAV = c.momentum * probs_KAV + (1 - c.momentum) * shares_KAV
            memory.centre, seeds_NKA = probs_KAV, probs_KAV.argmax(-1)[None]
