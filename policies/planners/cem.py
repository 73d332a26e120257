"""The cross-entropy method: draws action sequences, imagines them, refits to the best. Knows no world and no goal.

The method is Rubinstein's; planning in a learned world with it follows PlaNet (arXiv 1811.04551); correlated noise, kept
elites and the shifted start are in the spirit of iCEM (arXiv 2008.06389), which is in `icem` as its paper has it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from emu_embodied.errors import InputError

from .base import Budget, Memory, PlannerConfig, Search, SearchPlanner
from .noise import ar1_noise, keep_best


@dataclass(frozen=True, kw_only=True)
class CEMConfig(PlannerConfig):
    """Budget and settings of the planner.

    Attributes:
        elites: best candidates that the next round is fitted to.
        initial_std: spread of the first round's noise, in action units.
        min_std: the spread never falls below this.
        momentum: share of the old mean and spread that a refit keeps.
        correlation: of the noise from one planned action to the next, in [0, 1); 0 is white noise.
        held: share of the candidates that hold each planned action for two.
    """

    name: str = field(default="cem", init=False)
    elites: int = 8
    initial_std: float = 0.7
    min_std: float = 0.1
    momentum: float = 0.1
    correlation: float = 0.6
    held: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_elites(self, self.elites)
        if not 0 < self.min_std <= self.initial_std < float("inf"):
            rule = f"give at least min_std ({self.min_std}), and that above 0"
            raise InputError("initial_std", self.initial_std, rule)
        for name, top in (("momentum", 0.999), ("correlation", 0.999), ("held", 1.0)):
            self._check_number(name, 0, top)


class CEM(SearchPlanner[CEMConfig]):
    """A planner by the cross-entropy method."""

    Config = CEMConfig

    def search(self, memory: Memory, budget: Budget) -> Search:
        c = self.config
        # Start from the last plan's mean, moved on by the steps carried out, and spread the noise again.
        mean_KA, seeds_NKA = memory.still_KA, memory.still_KA[None]
        if memory.centre is not None and memory.best_KA is not None:
            mean_KA, seeds_NKA = memory.centre, torch.stack([memory.still_KA, memory.best_KA, memory.centre])
        std_KA = torch.full_like(mean_KA, c.initial_std)
        elites_EKA, elite_costs_E = mean_KA.new_zeros(0, *mean_KA.shape), mean_KA.new_zeros(0)
        while budget.fits():
            # 1. Draw candidates around the mean; the first of them are not drawn: stand still, go on as before, the mean.
            actions_SKA = self._draw(mean_KA, std_KA, memory.generator)
            actions_SKA[: len(seeds_NKA)] = seeds_NKA[: c.candidates]
            # 2. Have them imagined from the history, and what was imagined scored.
            costs_S = yield actions_SKA
            # 3. The elites are the best of these and of the elites so far, which keep their costs.
            elites_EKA, elite_costs_E = keep_best((elites_EKA, elite_costs_E), (actions_SKA, costs_S), c.elites)
            # 4. Refit mean and spread to the elites, keeping some of the old.
            mean_KA = c.momentum * mean_KA + (1 - c.momentum) * elites_EKA.mean(0)
            std_KA = c.momentum * std_KA + (1 - c.momentum) * elites_EKA.std(0, correction=0)
            std_KA, seeds_NKA = std_KA.clamp(min=c.min_std), mean_KA[None]
            memory.centre = mean_KA

    def _draw(self, mean_KA: torch.Tensor, std_KA: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Candidates (S, K, A) in [-1, 1] around the mean; the last ones hold each action for two."""
        c, steps = self.config, len(mean_KA)
        noise_SKA = ar1_noise((c.candidates, *mean_KA.shape), c.correlation, generator)
        held = round(c.held * c.candidates)
        if held:
            halves = noise_SKA[-held:, : (steps + 1) // 2]
            noise_SKA[-held:] = halves.repeat_interleave(2, 1)[:, :steps]
        return (mean_KA + std_KA * noise_SKA).clamp(-1, 1)


def check_elites(config: PlannerConfig, elites: int) -> None:
    """Checks a config's `elites` against its candidates.

    Raises:
        InputError: fewer candidates than elites, or too few that are not pruned.
    """
    config._check_whole("elites")
    if config.candidates < elites:
        raise InputError("candidates", config.candidates, f"give at least as many as elites, {elites}")
    if config.prune and math.ceil(config.candidates / 2) < elites:
        rule = f"half of them are pruned: give at least {2 * elites - 1}, for {elites} elites"
        raise InputError("candidates", config.candidates, rule)
