"""Predictive sampling (Howell et al., arXiv 2212.00541): the best of noisy copies of the last plan. Knows no world, no goal."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .base import Budget, Memory, PlannerConfig, Search, SearchPlanner


@dataclass(frozen=True, kw_only=True)
class PredictiveSamplingConfig(PlannerConfig):
    """Budget and settings of the planner.

    The paper's plans are splines; here `block` makes them of zero order. It has one round a plan; `iterations` repeats it.

    Attributes:
        std: spread of the noise, in action units.
    """

    name: str = field(default="predictive", init=False)
    std: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("std", 0, above=True)


class PredictiveSampling(SearchPlanner[PredictiveSamplingConfig]):
    """A planner by predictive sampling."""

    Config = PredictiveSamplingConfig

    def search(self, memory: Memory, budget: Budget) -> Search:
        c = self.config
        # The nominal plan is the last one, shifted.
        nominal_KA = memory.still_KA if memory.best_KA is None else memory.best_KA
        while budget.fits():
            # 1. Noisy copies of the nominal plan, and the plan itself.
            noise_SKA = c.std * torch.randn(c.candidates, *nominal_KA.shape, generator=memory.generator)
            noise_SKA[0] = 0
            actions_SKA = (nominal_KA + noise_SKA).clamp(-1, 1)
            # 2. Roll out all, and take the best.
            costs_S = yield actions_SKA
            nominal_KA = actions_SKA[costs_S.argmin()]
