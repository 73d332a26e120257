"""iCEM, the sample-efficient cross-entropy method of Pinneri et al. (arXiv 2008.06389). Knows no world and no goal."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .base import Budget, Memory, PlannerConfig, Search, SearchPlanner
from .cem import check_elites
from .noise import coloured_noise, keep_best


@dataclass(frozen=True, kw_only=True)
class ICEMConfig(PlannerConfig):
    """Budget and settings of the planner; the paper's symbols in brackets.

    Attributes:
        elites: best candidates that the next round is fitted to (K).
        decay: a round has 1 / decay of the candidates of the one before, and at least 2 K (gamma).
        exponent: of the noise's power spectrum 1 / f^exponent; 0 white, 1 pink, 2 brown (beta).
        keep: share of the elites that stays among the candidates of the next round, and of the next plan (xi).
        initial_std: spread of the first round's noise, in action units (sigma_init).
        momentum: share of the old mean and spread that a refit keeps (alpha).
    """

    name: str = field(default="icem", init=False)
    elites: int = 8
    decay: float = 1.25
    exponent: float = 2.0
    keep: float = 0.3
    initial_std: float = 0.5
    momentum: float = 0.1

    def __post_init__(self) -> None:
        self._check_whole("elites")
        self._check_number("decay", 1)
        super().__post_init__()
        check_elites(self, self.elites)
        self._check_number("exponent", 0, 10)
        self._check_number("keep", 0, 1)
        self._check_number("initial_std", 0, above=True)
        self._check_number("momentum", 0, 0.999)

    def population(self, round: int) -> int:
        """Candidates of a round: max(N / gamma^i, 2 K), and never more than in the first."""
        return min(self.candidates, max(int(self.candidates * self.decay**-round), 2 * self.elites))


class ICEM(SearchPlanner[ICEMConfig]):
    """A planner by iCEM.

    In two points it differs from the paper's algorithm 1: elites that stay within a plan keep their costs instead of being
    imagined again, and the mean joins every round but the first, since a budget of seconds does not know which is the last.
    """

    Config = ICEMConfig

    def search(self, memory: Memory, budget: Budget) -> Search:
        c = self.config
        # The mean is the last plan's, shifted; the spread is new.
        mean_KA = memory.still_KA if memory.centre is None else memory.centre
        std_KA, stay = torch.full_like(mean_KA, c.initial_std), round(c.keep * c.elites)
        elites_EKA, elite_costs_E = mean_KA.new_zeros(0, *mean_KA.shape), mean_KA.new_zeros(0)
        joining_NKA = mean_KA[None]
        if memory.elites_EKA is not None:
            # A share of the last plan's elites, shifted, joins the first round.
            joining_NKA = torch.cat([joining_NKA, memory.elites_EKA[:stay]])
        while budget.fits():
            # 1. The population decays.
            population = c.population(budget.round)
            # 2. Draw coloured noise around the mean, clipped to the bounds.
            noise_SKA = coloured_noise((population, *mean_KA.shape), c.exponent, memory.generator)
            actions_SKA = (mean_KA + std_KA * noise_SKA).clamp(-1, 1)
            actions_SKA[: len(joining_NKA)] = joining_NKA[:population]
            # 3. The costs.
            costs_S = yield actions_SKA
            # 4. The elite set: the best K of these and of the share of the elites that stays.
            staying = (elites_EKA[:stay], elite_costs_E[:stay])
            elites_EKA, elite_costs_E = keep_best(staying, (actions_SKA, costs_S), c.elites)
            # 5. Fit mean and spread, with momentum; the mean joins the next round.
            mean_KA = c.momentum * mean_KA + (1 - c.momentum) * elites_EKA.mean(0)
            std_KA = c.momentum * std_KA + (1 - c.momentum) * elites_EKA.std(0, correction=0)
            joining_NKA, memory.centre, memory.elites_EKA = mean_KA[None], mean_KA, elites_EKA
