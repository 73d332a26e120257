"""The cross-entropy method: draws action sequences, imagines them, refits to the best. Knows no world and no goal.

The method is Rubinstein's; planning in a learned world with it follows PlaNet (arXiv 1811.04551); coloured noise, kept
elites and the shifted start are iCEM's (arXiv 2008.06389).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from emu_embodied.errors import InputError
from emu_embodied.protocols import Cost, WorldModel
from emu_embodied.types import History, Plan


@dataclass(frozen=True)
class CEMConfig:
    """Budget and habits of the planner.

    Attributes:
        horizon: T, model steps of a candidate.
        candidates: S, sequences imagined per iteration.
        iterations: rounds of drawing and refitting.
        elites: best candidates that the next round is fitted to.
        execute: steps of a plan that are carried out before the next plan; the warm start shifts by as many.
        initial_std: spread of the first round's noise, in action units.
        min_std: the spread never falls below this.
        momentum: share of the old mean and spread that a refit keeps.
        correlation: of the noise from one step to the next, in [0, 1); 0 is white noise.
        held: share of the candidates that hold each action for two steps.
    """

    horizon: int = 8
    candidates: int = 64
    iterations: int = 3
    elites: int = 8
    execute: int = 2
    initial_std: float = 0.7
    min_std: float = 0.1
    momentum: float = 0.1
    correlation: float = 0.6
    held: float = 0.5

    def __post_init__(self) -> None:
        for name in ("horizon", "candidates", "iterations", "elites", "execute"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(name, value, "give a whole number of at least 1")
        if self.candidates < self.elites:
            raise InputError("candidates", self.candidates, f"give at least as many as elites, {self.elites}")
        if self.execute > self.horizon:
            raise InputError(
                "execute", self.execute, f"a plan has {self.horizon} steps (horizon): execute at most those"
            )
        if not 0 < self.min_std <= self.initial_std < float("inf"):
            raise InputError(
                "initial_std", self.initial_std, f"give at least min_std ({self.min_std}), and that above 0"
            )
        for name in ("momentum", "correlation", "held"):
            value, top = getattr(self, name), 1.0 if name == "held" else 0.999
            if not 0 <= value <= top:
                raise InputError(name, value, f"give a number from 0 to {top:g}")

    @property
    def predicted_frames(self) -> int:
        """Frames imagined per plan."""
        return self.candidates * self.horizon * self.iterations


class CEM:
    """A planner by the cross-entropy method; implements `protocols.Planner`.

    Args:
        config: budget and habits.
        seed: of the noise; same seed, same model, same plans.
    """

    def __init__(self, config: CEMConfig | None = None, seed: int = 0) -> None:
        self.config, self.seed = config or CEMConfig(), seed
        self.reset()

    def reset(self) -> None:
        """A new episode: forgets the warm start and restarts the noise."""
        self.generator = torch.Generator().manual_seed(self.seed)
        self._mean_TA: torch.Tensor | None = None
        self._best_TA: torch.Tensor | None = None

    def plan(self, model: WorldModel, history: History, cost: Cost) -> Plan:
        """Plans for a history of one world.

        Returns:
            The best sequence that was imagined, actions (T, A).

        Raises:
            InputError: a history of several worlds, or a cost that is not finite or has another shape.
        """
        if len(history) != 1:
            raise InputError("history", f"{len(history)} worlds", "plan for one world at a time")
        start = time.perf_counter()
        best_TA, trace = self._plan(model, history, cost)
        frames = self.config.predicted_frames
        return Plan(best_TA.numpy(), trace[-1], frames, time.perf_counter() - start, tuple(trace))

    @torch.inference_mode()
    def _plan(self, model: WorldModel, history: History, cost: Cost) -> tuple[torch.Tensor, list[float]]:
        c, trace = self.config, []
        # Start from the last plan's mean, moved on by the steps carried out, and spread the noise again.
        mean_TA, seeds_KTA = self._start(model.action_dim)
        std_TA = torch.full_like(mean_TA, c.initial_std)
        elites_ETA, elite_costs_E = mean_TA[None, :0].new_zeros(0, *mean_TA.shape), mean_TA.new_zeros(0)
        for _ in range(c.iterations):
            # 1. Draw candidates around the mean; the first of them are not drawn: stand still, go on as before, the mean.
            actions_STA = self._draw(mean_TA, std_TA)
            actions_STA[: len(seeds_KTA)] = seeds_KTA[: c.candidates]
            # 2. Imagine all of them from the shared history, and score what was imagined.
            rollout = model.rollout(history, actions_STA[None])
            costs_S = self._score(cost(model, rollout, actions_STA[None].to(rollout.rewards_BST.device)))
            # 3. The elites are the best of these and of the elites so far, which keep their costs.
            pool_PTA, costs_P = torch.cat([elites_ETA, actions_STA]), torch.cat([elite_costs_E, costs_S])
            order_E = costs_P.argsort(stable=True)[: c.elites]
            elites_ETA, elite_costs_E = pool_PTA[order_E], costs_P[order_E]
            # 4. Refit mean and spread to the elites, keeping some of the old.
            mean_TA = c.momentum * mean_TA + (1 - c.momentum) * elites_ETA.mean(0)
            std_TA = c.momentum * std_TA + (1 - c.momentum) * elites_ETA.std(0, correction=0)
            std_TA, seeds_KTA = std_TA.clamp(min=c.min_std), mean_TA[None]
            trace.append(float(elite_costs_E[0]))
        # 5. Carry out the best sequence of all, not the mean.
        self._mean_TA, self._best_TA = mean_TA, elites_ETA[0]
        return elites_ETA[0].clone(), trace

    def _start(self, action_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first mean (T, A), and the candidates (K, T, A) that the first round begins with."""
        still_TA = torch.zeros(self.config.horizon, action_dim)
        if self._mean_TA is None or self._mean_TA.shape != still_TA.shape:
            return still_TA, still_TA[None]
        mean_TA = self._shift(self._mean_TA)
        return mean_TA, torch.stack([still_TA, self._shift(self._best_TA), mean_TA])

    def _shift(self, actions_TA: torch.Tensor) -> torch.Tensor:
        """Drops the steps that were carried out; the last action fills the end."""
        moved, last = actions_TA[self.config.execute :], actions_TA[-1:]
        return torch.cat([moved, last.expand(self.config.execute, -1)])

    def _draw(self, mean_TA: torch.Tensor, std_TA: torch.Tensor) -> torch.Tensor:
        """Candidates (S, T, A) in [-1, 1]: AR(1) noise around the mean; the last ones hold each action for two steps."""
        c = self.config
        white_STA = torch.randn(c.candidates, *mean_TA.shape, generator=self.generator)
        noise_STA, fresh = white_STA.clone(), (1 - c.correlation**2) ** 0.5
        for t in range(1, c.horizon):
            noise_STA[:, t] = c.correlation * noise_STA[:, t - 1] + fresh * white_STA[:, t]
        held = round(c.held * c.candidates)
        if held:
            halves = noise_STA[-held:, : (c.horizon + 1) // 2]
            noise_STA[-held:] = halves.repeat_interleave(2, 1)[:, : c.horizon]
        return (mean_TA + std_TA * noise_STA).clamp(-1, 1)

    def _score(self, costs_BS: torch.Tensor) -> torch.Tensor:
        """Checks costs (1, S) once, where they enter."""
        shape = (1, self.config.candidates)
        if tuple(costs_BS.shape) != shape:
            raise InputError("cost", f"shape {tuple(costs_BS.shape)}", f"return one cost per candidate, shape {shape}")
        wrong = int((~torch.isfinite(costs_BS)).sum())
        if wrong:
            found = f"{wrong} of {shape[1]} candidates are NaN or inf"
            raise InputError("cost", found, "check the cost's goal and weights, and the model's estimates")
        return costs_BS[0].float().cpu()
