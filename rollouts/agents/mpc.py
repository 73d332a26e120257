"""Plan, act, observe: the one loop of everything that plans, from an observation to an action. Knows no checkpoint, no file."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
import numpy as np
import torch

from emu_embodied.envs.letterboxed import as_seen
from emu_embodied.errors import InputError
from emu_embodied.policies.costs import PerWorld
from emu_embodied.policies.planners.cem import CEM
from emu_embodied.policies.subgoal_manager import SubgoalManager, see_places
from emu_embodied.protocols import Cost, Planner, WorldModel
from emu_embodied.rollouts.goals.task_costs import MAX_STEPS, build_cost
from emu_embodied.types import History, Observation, Plan, short_repr
from emu_embodied.units import ActionScale
from emu_embodied.validation import whole_fields

from .episode import EpisodeRun, Recorder
from .progress import EpisodeProgress

UNSEEN = Observation(np.empty((0, 0, 3), np.uint8), np.empty(0, np.float32))
"""What is shown in imagination to who follows subgoals that were drawn before."""

CostBuilder = Callable[[gymnasium.Env, WorldModel], Cost]
Guide = Callable[[gymnasium.Env, WorldModel], SubgoalManager]


@dataclass(frozen=True)
class MPCConfig:
    """Habits of an `MPCAgent`.

    Attributes:
        execute: steps of each plan that are carried out before the next one; the planner's warm start should shift by as many.
        warm: a plan begins with what the last one left; False has each begin anew.
    """

    execute: int = 2
    warm: bool = True

    def __post_init__(self) -> None:
        whole_fields(self, {"execute": (1, None)}, InputError)


@dataclass
class Pursuit:
    """What an agent remembers of one env's episode.

    Attributes:
        goal: what is minimised, or who says so before each plan.
        history: real observations only (B = 1).
        actions: planned and not yet taken, (A,) each in [-1, 1].
        last: the action taken last; None at the beginning.
        steps: actions taken.
        foreseen: codes (N,) of what was imagined for each moment up to the present plan's end; the first is what was seen.
        looked: places (O, 3) at each look of a goal that follows subgoals.
    """

    goal: Cost | SubgoalManager
    history: History
    actions: deque[np.ndarray] = field(default_factory=deque)
    last: np.ndarray | None = None
    steps: int = 0
    foreseen: list[torch.Tensor] = field(default_factory=list)
    looked: list[np.ndarray] = field(default_factory=list)

    __repr__ = short_repr

    def take(self) -> np.ndarray:
        """The next action of the plan."""
        self.last, self.steps = self.actions.popleft(), self.steps + 1
        return self.last


class MPCAgent:
    """Model predictive control of an env, or of several at once by one call of the model.

    It plans, gives out `execute` actions one by one, observes what they really led to, and plans again.

    Args:
        model: where plans are imagined.
        planner: chooses among futures.
        config: settings.
        on_plan: called with each plan, the number of its env, and the step at which it begins.

    Attributes:
        scale: of the model's robot: actions leave in its units.
        pursuits: an env's number -> its episode.

    Raises:
        ConfigError: a checkpoint of several robots, and none was chosen; see `ActionScale.of`.
    """

    def __init__(
        self,
        model: WorldModel,
        planner: Planner,
        config: MPCConfig | None = None,
        on_plan: Callable[[Plan, int, int], None] | None = None,
    ) -> None:
        if not isinstance(model, WorldModel):
            raise InputError("model", model, "give a loaded one: emu_embodied.load(...)")
        if not isinstance(planner, Planner):
            raise InputError("planner", planner, "give the planner itself, as CEM(CEMConfig(...))")
        self.model, self.planner, self.config, self.on_plan = model, planner, config or MPCConfig(), on_plan
        self.scale, self.pursuits = ActionScale.of(model), dict[int, Pursuit]()

    def reset(
        self,
        seen: Sequence[Observation | History],
        goals: Sequence[Cost | SubgoalManager],
        envs: Sequence[int] | None = None,
    ) -> None:
        """New episodes begin in some envs, by default in all, from what is seen there.

        Args:
            seen: for each of them the first observation, or a history of one world.
            goals: for each the cost to minimise, or who follows subgoals: it is asked before each plan for the cost;
                where it believes that all is done, the robot stays where it is. The model's instruction is empty then, for
                the episode's may have words that it does not know.
            envs: their numbers, by default 0, 1, ...

        Raises:
            InputError: an observation that does not fit the model, or a goal that is no cost.
        """
        envs = range(len(seen)) if envs is None else envs
        for goal in goals:
            if not callable(goal) and not isinstance(goal, SubgoalManager):
                raise InputError("cost", goal, "give a function of a model, a rollout and its actions")
        self.planner.reset(envs)
        begun = [now for now in seen if isinstance(now, History)]
        if not begun:
            pairs = [(now, goal) for now, goal in zip(seen, goals, strict=True) if isinstance(now, Observation)]
            begun = self.model.encode([_to_model_observation(now, goal) for now, goal in pairs]).split()
        for env, goal, history in zip(envs, goals, begun, strict=True):
            self.pursuits[env] = Pursuit(goal, history, foreseen=[history.codes_BCN[0, -1]])

    def act(self, seen: Sequence[Observation | History], envs: Sequence[int] | None = None) -> np.ndarray:
        """The next action of some envs, by default of all: (B, A) float32 in the robot's units.

        Those whose plans are carried out are planned for anew, all in one call of the planner.

        Args:
            seen: what is seen in each now, the action before having been carried out; or a history, in imagination.
            envs: their numbers, by default 0, 1, ...

        Raises:
            InputError: observations that do not fit the model, or costs that are not finite.
            SimulationError: the physics of a simulator that is planned in left the numbers.
        """
        envs = range(len(seen)) if envs is None else envs
        self._observe(seen, envs)
        due = {env: now for env, now in zip(envs, seen, strict=True) if not self.pursuits[env].actions}
        wanted = {env: self._cost(self.pursuits[env], now) for env, now in due.items()}
        costs = {env: cost for env, cost in wanted.items() if cost is not None}
        moving, plans = list(costs), dict[int, Plan]()
        if moving:
            if not self.config.warm:
                self.planner.reset(moving)
            history = History.cat([self.pursuits[env].history for env in moving])
            cost = costs[moving[0]] if len(moving) == 1 else PerWorld(list(costs.values()))
            plans = dict(zip(moving, self.planner.plan_batch(self.model, history, cost, moving), strict=True))
        for env in due:
            self._follow(env, plans.get(env))
        return self.scale.to_robot(np.stack([self.pursuits[env].take() for env in envs]))

    def foreseen(self, envs: Sequence[int]) -> torch.Tensor:
        """Codes (B, N) of what had been imagined for the moment that each env's last action was taken at."""
        return torch.stack([self.pursuits[env].foreseen[self.pursuits[env].steps - 1] for env in envs])

    def _follow(self, env: int, plan: Plan | None) -> None:
        """Takes over a plan's first steps; without one the robot stays."""
        pursuit, execute = self.pursuits[env], self.config.execute
        pursuit.actions.extend(plan.actions[:execute] if plan else np.tile(self.scale.still, (execute, 1)))
        if plan and plan.future is not None:
            pursuit.foreseen.extend(plan.future.codes_BSTN[0, 0, :execute])
        else:
            pursuit.foreseen.extend([pursuit.history.codes_BCN[0, -1]] * execute)
        if plan and self.on_plan:
            self.on_plan(plan, env, pursuit.steps)

    def _cost(self, pursuit: Pursuit, seen: Observation | History) -> Cost | None:
        """What an env's next plan minimises; None to stay."""
        if not isinstance(pursuit.goal, SubgoalManager):
            return pursuit.goal
        pursuit.looked.append(see_places(self.model, pursuit.history))
        shown = seen if isinstance(seen, Observation) else UNSEEN
        return pursuit.goal.look(shown, pursuit.looked[-1], pursuit.steps)

    def _observe(self, seen: Sequence[Observation | History], envs: Sequence[int]) -> None:
        """Adds what the last actions led to."""
        acted = [(self.pursuits[env], now) for env, now in zip(envs, seen, strict=True) if self.pursuits[env].steps]
        if not acted:
            return
        grown = [now for _, now in acted if isinstance(now, History)]
        if not grown:
            history = History.cat([pursuit.history for pursuit, _ in acted])
            actions = np.stack([pursuit.last for pursuit, _ in acted if pursuit.last is not None])
            shown = [now for _, now in acted if isinstance(now, Observation)]
            grown = self.model.observe(history, actions, shown).split()
        for (pursuit, _), history in zip(acted, grown, strict=True):
            pursuit.history = history


def _to_model_observation(seen: Observation, goal: Cost | SubgoalManager) -> Observation:
    """What is seen as the model takes it: without the instruction where subgoals are followed."""
    return replace(seen, instruction="") if isinstance(goal, SubgoalManager) else seen


def run_episode(
    env: gymnasium.Env,
    model: WorldModel,
    planner: Planner | None = None,
    cost_builder: CostBuilder | None = None,
    seed: int = 0,
    execute: int = 2,
    max_steps: int = MAX_STEPS,
    guide: Guide | None = None,
    options: dict[str, Any] | None = None,
    on_step: Callable[[], None] | None = None,
    progress: bool | str = False,
    pictures: bool = True,
) -> EpisodeRun:
    """Plays one episode in the real env, until success or the end.

    Args:
        env: the real environment; reset here. Pictures of another size than the model's are letterboxed as in training.
        model: where plans are imagined.
        planner: None is CEM as configured by default.
        cost_builder: (env, model) -> the episode's cost; called once, after the reset. None is `build_cost("positions", ...)`.
        seed: of the env's reset.
        execute: steps of each plan that are carried out.
        max_steps: model steps after which the episode has failed.
        guide: (env, model) -> who follows subgoals, in the place of `cost_builder`; called once, after the reset.
        options: of the env's reset.
        on_step: called after each step in the env, and after each round of a plan, for one may take longer than many steps.
        progress: show on stderr how far the episode and its plans are; a text is what the bar calls it.
        pictures: keep what was imagined, and what the plans were chosen among, for people to look at.

    Raises:
        ConfigError, InputError, SimulationError: see `MPCAgent`; an InputError too for an env whose action space is not that of
            the checkpoint's robot, or that shows no pictures, and for an argument of another type or range.
    """
    if not isinstance(env, gymnasium.Env):
        raise InputError("env", env, "give the env itself, as gymnasium.make(...) makes it")
    planner = CEM(seed=seed) if planner is None else planner
    agent = MPCAgent(model, planner, MPCConfig(execute))
    agent.scale.check(env.action_space)
    env = as_seen(env, model.image_size)
    recorder = Recorder(env, seed, max_steps, options, on_step)
    agent.on_plan = recorder.listener(model, execute, pictures)
    manager = guide(env, model) if guide else None
    build = cost_builder or functools.partial(build_cost, "positions")
    agent.reset([recorder.observation], [manager or build(env, model)])
    name = progress if isinstance(progress, str) else recorder.instruction or f"seed {seed}"
    with EpisodeProgress(planner, max_steps, name, bool(progress), on_step) as bar:
        while not recorder.over:
            recorder.act(agent.act([recorder.observation])[0])
            bar.step()
    return recorder.finish(agent.pursuits[0].foreseen, manager)
