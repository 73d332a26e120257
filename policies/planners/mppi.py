"""Model predictive path integral control (Williams et al., arXiv 1707.02342): an average weighted by exponentiated costs.

Knows no world and no goal.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .base import Budget, Memory, PlannerConfig, Search, SearchPlanner
from .noise import ar1_noise


@dataclass(frozen=True, kw_only=True)
class MPPIConfig(PlannerConfig):
    """Budget and settings of the planner; the paper's symbols in brackets.

    Attributes:
        std: spread of the noise, in action units (sigma).
        temperature: in standard deviations of a round's costs, so that it suits costs of any unit (lambda); the smaller, the
            more the best candidates count.
        base: 1 leaves the price of actions to the cost; below 1, controls that depart from the mean's own direction are
            charged lambda (1 - base) u' sigma^-2 e (alpha).
        correlation: of the noise from one planned action to the next, in [0, 1); the paper's is white, 0.
    """

    name: str = field(default="mppi", init=False)
    std: float = 0.6
    temperature: float = 0.1
    base: float = 1.0
    correlation: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_number("std", 0, above=True)
        self._check_number("temperature", 0, above=True)
        self._check_number("base", 0, 1)
        self._check_number("correlation", 0, 0.999)

    @property
    def closing_frames(self) -> int:
        """The last mean's."""
        return self.horizon


class MPPI(SearchPlanner[MPPIConfig]):
    """A planner by MPPI. Each mean is a candidate of the next round, the last one by itself."""

    Config = MPPIConfig

    def search(self, memory: Memory, budget: Budget) -> Search:
        c = self.config
        # The control sequence u is the last plan's, shifted.
        mean_KA = memory.still_KA if memory.centre is None else memory.centre
        while budget.fits():
            # 1. Draw noise e, and clip u + e to the bounds; the first candidate is u itself.
            noise_SKA = c.std * ar1_noise((c.candidates, *mean_KA.shape), c.correlation, memory.generator)
            noise_SKA[0] = 0
            actions_SKA = (mean_KA + noise_SKA).clamp(-1, 1)
            noise_SKA = actions_SKA - mean_KA
            # 2. The trajectories' costs, and the price of the controls.
            costs_S = yield actions_SKA
            temperature = c.temperature * costs_S[costs_S.isfinite()].std(correction=0).clamp(min=1e-6)
            price_S = temperature * (1 - c.base) * (mean_KA * noise_SKA).sum((1, 2)) / c.std**2
            # 3. Weights: exp(-(S - min S) / lambda), normalised. Pruned candidates have none.
            weights_S = (-(costs_S + price_S) / temperature).softmax(0)
            # 4. u moves by the weighted noise.
            mean_KA = (mean_KA + (weights_S[:, None, None] * noise_SKA).sum(0)).clamp(-1, 1)
            memory.centre = mean_KA
        yield mean_KA[None]
