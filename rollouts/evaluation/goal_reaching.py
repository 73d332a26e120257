"""Planning by protocol A: from a recorded scene to what its trajectory shows 25 control steps later. Knows no checkpoint.

The protocol is stable-worldmodel's: start states from rows of recorded episodes, the goal 25 control steps on, a budget of 50,
and plans of 5 blocks of 5 actions that are carried out whole before one replan. A model step is a block here, and success is
looked for after each block. A model sees the start's frame, the goal's frame and what comes of its actions, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from emu_embodied.envs.checks import as_box
from emu_embodied.envs.imagined.beliefs import believe
from emu_embodied.errors import ConfigError, InputError
from emu_embodied.policies.planners.base import PlannerConfig
from emu_embodied.policies.planners.registry import PLANNERS, make_planner, planner_config
from emu_embodied.protocols import GoalPolicy, Seedable, SimulatedWorld, Trained, WorldModel
from emu_embodied.rollouts.agents.mpc import MPCAgent, MPCConfig
from emu_embodied.rollouts.agents.random import random_actions
from emu_embodied.rollouts.collection.data_policies import behaviour_of
from emu_embodied.rollouts.goals.task_costs import scene_cost
from emu_embodied.rollouts.simulator_model import OracleWorldModel
from emu_embodied.types import AGENT_POS, PIXELS, Observation, Plan, short_repr

from .harness import evaluate, plan_costs, rate
from .scene_success import RULES

AHEAD = HORIZON = 5  # model steps from start to goal, and of a plan
LIMIT = 10  # model steps of an episode
RECORDED = 40  # model steps of a recorded episode
FIRST, POOL = 16_000_000, 10_000  # seeds of the recorded episodes; no training saw them
AGENTS = ("model", "oracle", "cloning", "random", "expert")
GOALS = {"expert": "expert", "random": "random", "background": "expert"}  # -> whose episodes are recorded
COSTS = ("positions", "tokens", "image", "features")
LEAST = 16  # candidates of a round


def budget_planner(name: str, frames: int) -> PlannerConfig:
    """A planner of the protocol's horizon, whose rounds fill a budget of predicted frames a plan as far as they can.

    Raises:
        ConfigError: an unknown planner, or one that is not made of rounds of samples.
        InputError: a budget that is not enough for one round.
    """
    if name not in PLANNERS or name == "gradient":
        raise ConfigError("planner", name, f"choose one of {tuple(known for known in PLANNERS if known != 'gradient')}")
    closing = HORIZON if name == "mppi" else 0  # its average is looked at too
    least = LEAST * HORIZON + closing
    if type(frames) is not int or frames < least:
        raise InputError("budget", frames, f"one round takes {least} frames: give at least those")
    rounds = 1 + sum(frames >= enough for enough in (512, 1024, 2048, 4096, 6144, 8192))
    candidates = (frames - closing) // (rounds * HORIZON)
    elites = {"elites": max(4, candidates // 10)} if name in ("cem", "icem", "categorical") else {}
    sizes = {"horizon": HORIZON, "execute": HORIZON, "candidates": candidates, "iterations": rounds, "frames": frames}
    return planner_config(name, **sizes | elites)


@dataclass(frozen=True)
class ProtocolSettings:
    """What determines the episodes and how they are played; recorded in a journal, so that no other settings continue it.

    Attributes:
        env: "tabletop" or "pusht".
        agent: "model", "oracle" (the same planner in the true simulator), "cloning" (a policy that sees the present frame and
            the goal's, and plans nothing), "random" (uniform actions) or "expert" (the recorded actions once more).
        goals: "expert" or "random", whose trajectories the rows are of, or "background", expert rows on a table of another
            colour.
        cost: what is compared with the goal: "positions", where the model sees things in the goal's frame; "tokens",
            "features" or "image", see `task_costs.scene_cost`.
        planner: the planner, by its config; see `budget_planner`.
        seed: of the draw of rows.
        model: names the world model or the cloned policy in the journal; empty for other agents.

    Raises:
        ConfigError: an unknown env, agent, cost or goals, or goals that the env has not.
    """

    env: str
    agent: str = "model"
    goals: str = "expert"
    cost: str = "positions"
    planner: PlannerConfig = field(default_factory=lambda: budget_planner("cem", 4096))
    seed: int = 42
    model: str = ""

    def __post_init__(self) -> None:
        choices = {"env": tuple(RULES), "agent": AGENTS, "goals": tuple(GOALS), "cost": COSTS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigError(name, getattr(self, name), f"choose one of {known}")
        if self.goals == "background" and self.env != "tabletop":
            raise ConfigError("goals", self.goals, "only the table-top has another background")
        if self.cost in ("tokens", "features") and self.agent == "oracle":
            raise ConfigError("cost", self.cost, "the simulator has no tokens: choose positions or image")


class Row(NamedTuple):
    """A row of the recorded episodes: where an episode of the protocol starts."""

    seed: int
    step: int


class Scene(NamedTuple):
    """A start and its goal.

    Attributes:
        start, goal: what is seen, without an instruction.
        wanted: the goal as the rule looks at it.
        places: (O, 4) float32, the goal's truth: x, y, yaw and presence of each of the env's objects.
        actions: (T, A) that the recorded episode took from start to goal.
    """

    start: Observation
    goal: Observation
    wanted: np.ndarray
    places: np.ndarray
    actions: np.ndarray

    __repr__ = short_repr


class Stage:
    """The env of the settings, in which rows are drawn, scenes are set and episodes are played.

    Args:
        settings: what to play.
        make_model: loads the world model or the cloned policy; called for these agents only, with the first episode.

    Raises:
        ConfigError: agent "model" or "cloning" without one.
    """

    def __init__(
        self, settings: ProtocolSettings, make_model: Callable[[], WorldModel | GoalPolicy] | None = None
    ) -> None:
        import emu_embodied.envs  # noqa: F401  registers them

        if settings.agent in ("model", "cloning") and make_model is None:
            raise ConfigError("agent", settings.agent, "give make_model too, which loads one")
        self.settings, self.rule, self._make_model = settings, RULES[settings.env], make_model
        self._loaded: WorldModel | GoalPolicy | None = None
        shift: dict[str, Any] = {"shift": "background"} if settings.goals == "background" else {}
        self.env = gymnasium.make(self.rule.env_id, max_episode_steps=-1, terminate_on_success=False, **shift)
        world = self.env.unwrapped
        assert isinstance(world, SimulatedWorld)
        self.world = world

    @property
    def model(self) -> WorldModel | GoalPolicy:
        """The world model or the cloned policy, loaded when it is first asked for."""
        if self._loaded is None:
            assert self._make_model is not None  # agents that need one have it
            self._loaded = self._make_model()
        return self._loaded

    def draw(self, count: int) -> list[Row]:
        """The first rows of the protocol, one of each recorded episode that has one; more of them begin with these."""
        rng, rows = np.random.default_rng(self.settings.seed), []
        for number in rng.permutation(POOL):
            seed = FIRST + int(number)
            looks = [self.rule.look(self.world) for _ in self._replay(seed, RECORDED)]
            pairs = zip(looks, looks[AHEAD:], strict=False)
            steps = [step for step, pair in enumerate(pairs) if self.rule.counts(*pair)]
            if steps:
                rows.append(Row(seed, int(rng.choice(steps))))
            if len(rows) == count:
                return rows
        raise ConfigError("episodes", count, f"the recorded episodes have {len(rows)} rows: ask for at most those")

    def set(self, row: Row) -> Scene:
        """Puts the env exactly into a recorded state, which its recorded episode is played again for."""
        states, actions = [], []
        for action in self._replay(row.seed, row.step + AHEAD):
            states.append(self.world.get_state())
            actions.append(action)
        self.world.set_state(states[row.step + AHEAD])
        goal, wanted = self._see(), self.rule.look(self.world)
        places = self.world.environment_state().reshape(-1, 4)
        self.world.set_state(states[row.step])
        return Scene(self._see(), goal, wanted, places, np.stack(actions[row.step + 1 :]))

    def play(self, row: Row) -> dict[str, Any]:
        """Plays the episode of one row; its journal entry, whose `closest` is the least miss, in tolerances."""
        scene, plans = self.set(row), list[Plan]()
        moved = self.rule.moved(self.rule.look(self.world), scene.wanted)
        act, seen, misses = self._actor(scene, row, plans), scene.start, []
        for _ in range(AHEAD if self.settings.agent == "expert" else LIMIT):
            shown = self.env.step(np.asarray(act(seen), np.float32))[0]
            seen = Observation(shown[PIXELS], shown[AGENT_POS])
            misses.append(self.rule.miss(self.rule.look(self.world), scene.wanted))
            if misses[-1] < 1:
                break
        return {
            "seed": row.seed,
            "step": row.step,
            "success": misses[-1] < 1,
            "steps": len(misses),
            "closest": min(misses),
            "moved_cm": round(moved, 3),
            "plan_seconds": [round(plan.seconds, 4) for plan in plans],
            "predicted_frames": sum(plan.predicted_frames for plan in plans),
        }

    def _actor(self, scene: Scene, row: Row, plans: list[Plan]) -> Callable[[Observation], np.ndarray]:
        """Who acts in a row's episode, from what is seen; its plans are added to the list."""
        agent = self.settings.agent
        if agent in ("expert", "random"):
            actions = iter(scene.actions) if agent == "expert" else random_actions(self.env.action_space, row.seed)
            return lambda seen: next(actions)
        if agent == "cloning":
            policy = self.model
            assert isinstance(policy, GoalPolicy)
            return lambda seen: policy.act(seen.pixels, scene.goal.pixels)
        return self._planner(scene, row, plans)

    def _planner(self, scene: Scene, row: Row, plans: list[Plan]) -> Callable[[Observation], np.ndarray]:
        """Plans, has the whole plan carried out, and plans once more from the frame that is then seen."""
        s = self.settings
        if s.agent == "oracle":
            model = OracleWorldModel(self.env, row.seed)
            known = [name.partition(".")[0] for name in self.world.state_names[::4]]
            places = scene.places[[known.index(name) for name in model.objects]][:, [0, 1, 3]]
        else:
            model = self.model
            assert isinstance(model, WorldModel)
            if isinstance(model, Seedable):
                model.seed(row.seed)
            places = seen_places(model, scene.goal)
        whole = MPCConfig(s.planner.horizon, warm=False)  # which leaves nothing to begin the next one with
        agent = MPCAgent(model, make_planner(s.planner, row.seed), whole, lambda plan, *_: plans.append(plan))
        agent.scale.check(self.env.action_space)
        if s.cost == "positions" and not any(p > 0.5 for *_, p in places[[name != "pusher" for name in model.objects]]):
            return lambda seen: agent.scale.to_robot(agent.scale.still)  # who sees nothing in the goal's frame stays
        agent.reset([scene.start], [scene_cost(s.cost, model, scene.goal, places)])
        return lambda seen: agent.act([seen])[0]

    def _replay(self, seed: int, steps: int) -> Iterator[np.ndarray]:
        """Plays a recorded episode from its reset: yields zeros at the reset, then after each step its action."""
        self.env.reset(seed=seed)
        rng, style = np.random.default_rng([seed, 77]), GOALS[self.settings.goals]
        act = behaviour_of(self.rule.env_id).begin(self.world, style, rng)
        yield np.zeros(as_box(self.env.action_space).shape, np.float32)
        for _ in range(steps):
            action = act(self.world.environment_state())
            self.world.act(action)
            yield action

    def _see(self) -> Observation:
        size = self.world.config.image_size
        return Observation(self.world.frame(size), self.world.environment_state()[:2])


def seen_places(model: WorldModel, seen: Observation) -> np.ndarray:
    """Where a model sees its objects in a frame: (O, 3) float32, x and y in world units and presence."""
    assert isinstance(model, Trained)
    beliefs = believe(model, model.encode([seen]))[0]
    scale = np.abs(np.asarray(model.world.position_scale, np.float32))
    return np.concatenate([beliefs[:, :2] * scale, beliefs[:, 2:]], -1)


def play_protocol(
    settings: ProtocolSettings,
    episodes: int = 50,
    make_model: Callable[[], WorldModel | GoalPolicy] | None = None,
    journal: Path | None = None,
    on_episode: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Plays the protocol's first episodes, in the order they were drawn in.

    Args:
        settings: what to play.
        episodes: how many.
        make_model: loads the world model or the cloned policy.
        journal: a JSON-lines file that gets each episode as it is finished; those that it holds are not played again.
        on_episode: called with each episode that was played.

    Raises:
        ConfigError: less than one episode, more than there are rows, or a journal of other settings.
        InputError: a goal frame in which the model sees nothing.
    """
    if type(episodes) is not int or episodes < 1:
        raise ConfigError("episodes", episodes, "give a whole number of at least 1")
    stage = Stage(settings, make_model)
    try:
        rows = {row.seed: row for row in stage.draw(episodes)}

        def play(seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
            return (stage.play(rows[seed]) for seed in seeds)

        return evaluate(settings, list(rows), play, journal=journal, on_episode=on_episode)
    finally:
        stage.env.close()


def summarise(rows: Sequence[dict[str, Any]], tolerance: float = 1.0) -> dict[str, Any]:
    """Success with Wilson's 95% interval, and what the planning cost.

    Args:
        rows: of `play_protocol`.
        tolerance: how many tolerances off still counts; above 1, an episode that came so close counts.
    """
    costs = plan_costs(rows)
    return {
        **rate(row["closest"] < tolerance for row in rows),  # an episode ends at success, so that it came closest there
        **{name: costs[name] for name in ("seconds_per_plan_median", "frames_per_plan")},
    }
