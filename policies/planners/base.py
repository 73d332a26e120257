"""What all planners share: budget, warm start, and the loop in which a search asks and the model answers. Knows no method.

A planner's method is a generator, `search`: it yields candidates of one world and is sent their costs. `SearchPlanner` runs one
search for each world of a history, and has the candidates of all worlds imagined at once; so a method reads as if there were
one world, and a world's plan does not depend on its neighbours.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from emu_embodied.errors import InputError
from emu_embodied.protocols import Cost, Seedable, WorldModel
from emu_embodied.types import History, Plan, Rollout, short_repr
from emu_embodied.validation import check_seed, derived_seed, number, whole_number

from .scoring import score

# more would not end in a lifetime
MOST = {"horizon": 10_000, "candidates": 1_000_000, "iterations": 1_000_000, "execute": 10_000, "block": 10_000}

# Yields candidates (S, K, A) in [-1, 1] and is sent their costs (S,), infinite for pruned ones. Candidates that require a
# gradient are imagined softly, and have one in `.grad` when their costs come; they are never the plan itself.
Search = Generator[torch.Tensor, torch.Tensor, None]


@dataclass(frozen=True, kw_only=True)
class PlannerConfig:
    """Budget and settings that all planners have.

    A plan ends after `iterations` rounds, or before the round that would exceed `frames`, or with the round after which another
    would outlast `seconds`: whichever comes first. One round is always finished.

    Attributes:
        name: the method, a key of `planners.registry.PLANNERS`.
        horizon: T, model steps of a candidate.
        candidates: S, sequences imagined in a round.
        iterations: rounds.
        execute: steps of a plan that are carried out before the next plan; the warm start shifts by as many.
        block: model steps for which each planned action is repeated; K = horizon / block actions are planned.
        prune: look at all candidates after half the horizon, and imagine only the better half of them to its end.
        frames: most frames imagined per plan and world; None is as many as the rounds take.
        seconds: wall time after which no further round begins; None is any.

    Raises:
        InputError: a value out of range, or a budget that is not enough for one round.
    """

    name: str = field(default="", init=False)
    horizon: int = 8
    candidates: int = 64
    iterations: int = 3
    execute: int = 2
    block: int = 1
    prune: bool = False
    frames: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            self._check_whole(name, most=most)
        if self.execute > self.horizon:
            rule = f"a plan has {self.horizon} steps (horizon): execute at most those"
            raise InputError("execute", self.execute, rule)
        for name in ("horizon", "execute"):
            if getattr(self, name) % self.block:
                raise InputError(name, getattr(self, name), f"give a multiple of block, {self.block}")
        if type(self.prune) is not bool:
            raise InputError("prune", self.prune, "give true or false")
        if self.prune and (self.horizon < 2 or self.candidates < 2):
            raise InputError("prune", True, "there is no half of a single step, or of a single candidate: choose false")
        if self.seconds is not None:
            self._check_number("seconds", 0, above=True)
        least = self.frames_of(self.population(0)) + self.closing_frames
        if self.frames is not None:
            self._check_whole("frames")
            if self.frames < least:
                rule = f"one round takes {least}: give at least those, or fewer candidates"
                raise InputError("frames", self.frames, rule)

    def population(self, round: int) -> int:
        """Candidates of a round, the first being 0."""
        return self.candidates

    def frames_of(self, candidates: int) -> int:
        """Frames that so many candidates take."""
        if not self.prune or candidates < 2:
            return candidates * self.horizon
        half = self.horizon // 2
        return candidates * half + math.ceil(candidates / 2) * (self.horizon - half)

    @property
    def closing_frames(self) -> int:
        """Frames that are imagined after the last round, whatever the clock says."""
        return 0

    @property
    def predicted_frames(self) -> int:
        """Frames imagined per plan, where the clock does not end it earlier."""
        budget = Budget(self)
        while budget.fits():
            budget.spend(self.frames_of(self.population(budget.round)))
        return budget.spent + self.closing_frames

    def _check_whole(self, name: str, least: int = 1, most: int | None = None) -> None:
        object.__setattr__(self, name, whole_number(name, getattr(self, name), least, most, InputError))

    def _check_number(self, name: str, least: float, most: float | None = None, above: bool = False) -> None:
        value = number(name, getattr(self, name), least, most, InputError)
        if above and value == least:
            raise InputError(name, value, f"give a number above {least:g}")
        object.__setattr__(self, name, value)


class Budget:
    """What one plan may still spend. It changes between rounds alone, so that all worlds of a batch stop together."""

    def __init__(self, config: PlannerConfig) -> None:
        self.config, self.round, self.spent = config, 0, 0
        self.late, self.began, self.looked = False, time.perf_counter(), time.perf_counter()

    def fits(self) -> bool:
        """Whether another round may begin."""
        c = self.config
        if self.round and (self.late or self.round >= c.iterations):
            return False
        after = self.spent + c.frames_of(c.population(self.round)) + c.closing_frames
        return c.frames is None or after <= c.frames

    @property
    def seconds(self) -> float:
        """Since the plan began."""
        return time.perf_counter() - self.began

    def spend(self, frames: int) -> None:
        """Counts a round of so many frames."""
        self.round, self.spent = self.round + 1, self.spent + frames

    def look_at_the_clock(self) -> None:
        """Notes whether a round as long as the last one would still be in time."""
        if self.config.seconds is not None:
            now = time.perf_counter()
            self.late, self.looked = (now - self.began) + (now - self.looked) > self.config.seconds, now


@dataclass
class Memory:
    """What a planner remembers of one world from plan to plan; where it is None, there was no plan yet.

    Attributes:
        generator: of this world's noise.
        still_KA: zeros, the plan to stand still.
        best_KA: the last plan, moved on by the steps carried out; the present one as soon as there is one.
        centre: (K, ...) where the search ended, moved on: a mean (K, A), or a planner's own.
        elites_EKA: the best candidates of the last plan, moved on.
        rounds: of futures that were imagined.
    """

    generator: torch.Generator
    still_KA: torch.Tensor
    best_KA: torch.Tensor | None = None
    centre: torch.Tensor | None = None
    elites_EKA: torch.Tensor | None = None
    rounds: int = 0

    __repr__ = short_repr

    def move_on(self, steps: int) -> None:
        """Shifts everything by the steps that were carried out."""
        self.best_KA, self.centre = (x if x is None else shifted(x, steps) for x in (self.best_KA, self.centre))
        if self.elites_EKA is not None:
            self.elites_EKA = shifted(self.elites_EKA.transpose(0, 1), steps).transpose(0, 1)


class Found(NamedTuple):
    """The best sequence (K, A) that a plan has imagined so far for one world, its cost, and what it was imagined to lead to."""

    cost: float
    actions_KA: torch.Tensor
    future: Rollout | None = None

    __repr__ = short_repr


def shifted(plan: torch.Tensor, steps: int) -> torch.Tensor:
    """A plan (K, ...) without its first steps; the last one fills the end."""
    return torch.cat([plan[steps:], plan[-1:].expand(steps, *plan.shape[1:])])


class SearchPlanner[P: PlannerConfig]:
    """Plans by searching; implements `protocols.Planner`. A method has its own `Config` and `search`.

    Whatever the method, the plan is the best sequence that was imagined: an average whose future was not imagined is never
    carried out.

    Args:
        config: budget and settings.
        seed: of the noise; same seed, same model, same plans. World b of a batch has the noise of `seed + b`.

    Attributes:
        on_round: called with the plan's `Budget` after each of its rounds, to report progress; None for no reports.
    """

    Config: type[P]

    def __init__(self, config: P | None = None, seed: int = 0) -> None:
        self.config: P = self.Config() if config is None else config
        self.seed = check_seed(seed)
        if not isinstance(self.config, self.Config):
            raise InputError("config", type(self.config).__name__, f"give a {self.Config.__name__}")
        self.on_round: Callable[[Budget], None] | None = None
        self.reset()

    def search(self, memory: Memory, budget: Budget) -> Search:
        """The method, for one world: yields candidates while the budget fits, and leaves for the next plan what it needs."""
        raise NotImplementedError

    def reset(self, worlds: Sequence[int] | None = None) -> None:
        """New episodes begin in these worlds, by default in all: forgets their warm start and restarts their noise."""
        kept = {} if worlds is None else {b: m for b, m in self._memories.items() if b not in worlds}
        self._memories: dict[int, Memory] = kept

    def plan(self, model: WorldModel, history: History, cost: Cost) -> Plan:
        """Plans for a history of one world; see `plan_batch`.

        Raises:
            InputError: a history of several worlds too.
        """
        _check_history(history)
        if len(history) != 1:
            raise InputError("history", f"{len(history)} worlds", "plan for one world at a time, or call plan_batch")
        return self.plan_batch(model, history, cost)[0]

    @torch.inference_mode(False)
    @torch.no_grad()
    def plan_batch(
        self, model: WorldModel, history: History, cost: Cost, worlds: Sequence[int] | None = None
    ) -> list[Plan]:
        """Plans for each of B worlds; the same plans as one by one, the model willing, in one call of it a round.

        Args:
            model: where the candidates are imagined.
            history: of B worlds.
            cost: scores all worlds' futures; `costs.PerWorld` where their goals differ.
            worlds: their numbers, by default 0 to B - 1. A world goes on where this planner's last plan for it ended.

        Returns:
            For each world the best sequence that was imagined for it. `seconds` are of all worlds together.

        Raises:
            InputError: no worlds or another number of them, a cost that is not finite or has another shape, or one without a
                gradient where the method needs it.
        """
        worlds = _check_batch(history, cost, worlds)
        c, budget = self.config, Budget(self.config)
        memories = [self._recall(world, model.action_dim) for world in worlds]
        searches = [self.search(memory, budget) for memory in memories]
        best = [Found(math.inf, memory.still_KA) for memory in memories]
        traces: list[list[float]] = [[] for _ in searches]
        asked = [next(search) for search in searches]
        while True:
            # Imagine and score the candidates of all worlds at once, each action held for its block.
            scored = score(model, history, asked, cost, c.block, c.prune, self._noise(model, worlds, memories))
            budget.spend(scored.frames)
            budget.look_at_the_clock()
            if self.on_round:
                self.on_round(budget)
            if not asked[0].requires_grad:
                for b, (lowest, row) in enumerate(zip(*scored.costs_BS.min(-1), strict=True)):
                    if lowest < best[b].cost:
                        best[b] = Found(float(lowest), asked[b][row].clone(), scored.future(b, int(row)))
                        memories[b].best_KA = best[b].actions_KA
                    traces[b].append(best[b].cost)
            answers = [_answer(search, costs_S) for search, costs_S in zip(searches, scored.costs_BS, strict=True)]
            asked = [actions_SKA for actions_SKA in answers if actions_SKA is not None]
            if not asked:  # all are done at once
                break
        seconds = budget.seconds
        return [
            Plan(
                found.actions_KA.repeat_interleave(c.block, 0).numpy(),
                found.cost,
                budget.spent,
                seconds,
                tuple(traces[b]),
                found.future,
                scored.rollout.map(lambda x, b=b: x[b : b + 1]),
                scored.costs_BS[b, scored.kept_BS[b]],
            )
            for b, found in enumerate(best)
        ]

    def _noise(self, model: WorldModel, worlds: Sequence[int], memories: Sequence[Memory]) -> tuple[list[int], ...]:
        """The seeds of a round's futures, one a world, for a model that draws; another model takes none."""
        if not isinstance(model, Seedable):
            return ()
        for memory in memories:
            memory.rounds += 1
        return ([derived_seed(self.seed + world, memory.rounds) for world, memory in zip(worlds, memories, strict=True)],)

    def _recall(self, world: int, action_dim: int) -> Memory:
        """What is remembered of a world, moved on by the steps carried out; a new memory where the actions are others'."""
        memory, shape = self._memories.get(world), (self.config.horizon // self.config.block, action_dim)
        if memory is not None and memory.still_KA.shape == shape:
            memory.move_on(self.config.execute // self.config.block)
        else:
            generator = memory.generator if memory else torch.Generator().manual_seed(self.seed + world)
            memory = self._memories[world] = Memory(generator, torch.zeros(shape))
        return memory


def _check_batch(history: History, cost: Cost, worlds: Sequence[int] | None) -> Sequence[int]:
    """What is given to `plan_batch`, checked once; the worlds' numbers."""
    _check_history(history)
    if not len(history):
        raise InputError("history", "0 worlds", "give at least one")
    if not callable(cost):
        raise InputError("cost", cost, "give a function of a model, a rollout and its actions")
    worlds = range(len(history)) if worlds is None else worlds
    if len(worlds) != len(history):
        raise InputError("worlds", list(worlds), f"give the numbers of {len(history)} worlds")
    return worlds


def _check_history(history: object) -> None:
    if not isinstance(history, History):
        raise InputError("history", type(history).__name__, "give what the model's encode returns")


def _answer(search: Search, costs_S: torch.Tensor) -> torch.Tensor | None:
    """Sends a search its costs; the candidates that it asks about next, or None where it is done."""
    try:
        return search.send(costs_S)
    except StopIteration:
        return None
