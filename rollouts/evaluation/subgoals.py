"""What proposed subgoals are worth on the table-top: do they show what was asked for, can they be reached, does a robot that
follows them succeed? Journals and intervals; knows no checkpoint, and no templates of instructions but those it is given."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from emu_embodied.envs.tabletop.tasks import OBJECTS, Task, task_of
from emu_embodied.errors import ConfigError
from emu_embodied.policies.planners.cem import CEM, CEMConfig
from emu_embodied.protocols import Seedable, SubgoalProposer, WorldModel
from emu_embodied.rollouts.agents.episode import EpisodeRun, run_policy
from emu_embodied.rollouts.agents.mpc import run_episode
from emu_embodied.rollouts.goals.subgoal_filter import Sight, carry_out, closest
from emu_embodied.rollouts.goals.subgoal_setup import Follower, Following
from emu_embodied.rollouts.goals.task_costs import MAX_STEPS, build_cost
from emu_embodied.rollouts.simulator_model import OracleWorldModel
from emu_embodied.types import AGENT_POS, PIXELS, Observation

from .harness import evaluate

ENV_ID = "emu_embodied/TabletopPush-v0"
FIRST = 12_000_000  # seeds from here on; no training saw them, and no tuning
BUDGET = CEMConfig(candidates=32, iterations=2, elites=6, horizon=8, execute=4)  # 512 frames a plan
ORACLE = CEMConfig(candidates=32, iterations=2, elites=6, horizon=8, execute=2)  # that tries out what can be reached
PATIENCE = 20  # model steps that it stays on one subgoal
AGENTS = ("follow", "reward", "random")
SLACK_CM = 0.5  # what a detector or a head may err, 1 px, before a subgoal counts as missing what was asked for
STRAY_CM, REACH_CM = 1.0, 2.0  # other cubes in a subgoal; the cube's end from its place in a subgoal
CRITERIA = (
    "fulfilled_by_places",
    "fulfilled_by_eye",
    "fulfilled",
    "cubes_kept",
    "others_still",
    "identity_kept",
    "reachable",
)

Instructions = Callable[[int], str | None]
"""An episode's seed -> its instruction, about cubes that the seed puts on the table; None is the env's own draw."""


def own_draw(seed: int) -> None:
    """The env's own instructions."""


@dataclass(frozen=True)
class LoopSettings:
    """What determines episodes in closed loop; recorded in a journal, so that no other settings continue it.

    Attributes:
        agent: "follow" (subgoals), "reward" (the same planner, by the model's own reward) or "random" (uniform actions).
        following: who proposes, and how that is followed; of agent "follow".
        instructions: names where they come from.
        planner: of each plan.
        max_steps: model steps of an episode.
        model: names the world model.

    Raises:
        ConfigError: an unknown agent, or one that takes no subgoals.
    """

    agent: str = "follow"
    following: Following | None = None
    instructions: str = "own"
    planner: CEMConfig = BUDGET
    max_steps: int = MAX_STEPS
    model: str = ""

    def __post_init__(self) -> None:
        if self.agent not in AGENTS:
            raise ConfigError("agent", self.agent, f"choose one of {AGENTS}")
        if (self.agent == "follow") != (self.following is not None):
            raise ConfigError("following", self.following, "agent=follow follows someone, and no other agent does")


@dataclass(frozen=True)
class ImageSettings:
    """What determines how proposed subgoals are judged by themselves; recorded in a journal.

    Attributes:
        following: who proposes.
        instructions: names where they come from.
        planner: of the oracle, which tries to bring the true simulator there; None does not try.
        model: names the world model that a filter's trial is imagined in; empty without.
    """

    following: Following
    instructions: str = "own"
    planner: CEMConfig | None = ORACLE
    model: str = ""


@dataclass
class Bench:
    """The table-top, the world model, and what loads the learnt proposer, for all that is evaluated in turn.

    Attributes:
        make_model: loads the world model; called when first needed.
        make_proposer: loads the learnt proposer; None where there is none.
        make_reward_model: loads the world model whose own reward agent "reward" goes by, and which knows the instructions'
            words; None is the one above.
        env: the table-top.
    """

    make_model: Callable[[], WorldModel]
    make_proposer: Callable[[], SubgoalProposer] | None = None
    make_reward_model: Callable[[], WorldModel] | None = None
    env: gymnasium.Env = field(default_factory=lambda: gymnasium.make(ENV_ID, max_episode_steps=-1))
    _loaded: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.env.reset(seed=0)  # a simulator has a state after its first reset

    @property
    def model(self) -> WorldModel:
        """The world model."""
        return self._load("model", self.make_model)

    @property
    def reward_model(self) -> WorldModel:
        """The world model that rewards."""
        return self._load("reward_model", self.make_reward_model) if self.make_reward_model else self.model

    def follower(self, following: Following) -> Follower:
        """Who makes the one that follows, for each episode; the learnt proposer is loaded once."""
        make = self.make_proposer and functools.partial(self._load, "proposer", self.make_proposer)
        return self._load(repr(following), lambda: Follower(following, self.env, make))

    def _load(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._loaded:
            self._loaded[name] = make()
        return self._loaded[name]


def play_loop(
    bench: Bench,
    settings: LoopSettings,
    seeds: Sequence[int],
    instructions: Instructions = own_draw,
    journal: Path | None = None,
    on_episode: Callable[[EpisodeRun], None] | None = None,
) -> list[dict[str, Any]]:
    """Plays one episode per seed; the simulator's predicate decides success. The same seeds are the same scenes for all.

    Args:
        bench: what is played with.
        settings: who plays.
        seeds: of the episodes.
        instructions: seed -> instruction.
        journal: a JSON-lines file that gets each episode as it is finished; those that it holds are not played again.
        on_episode: called with each episode that was played.

    Raises:
        ConfigError: a journal of other settings.
    """

    def play(seed: int) -> EpisodeRun:
        text = instructions(seed)
        return _episode(bench, settings, seed, {"instruction": text} if text is not None else None)

    return evaluate(settings, seeds, functools.partial(map, play), EpisodeRun.row, journal, on_episode=on_episode)


def _episode(bench: Bench, s: LoopSettings, seed: int, options: dict[str, Any] | None) -> EpisodeRun:
    if s.agent == "random":
        return run_policy(bench.env, "random", seed, s.max_steps, options)
    model, planner = bench.reward_model if s.agent == "reward" else bench.model, CEM(s.planner, seed)
    if isinstance(model, Seedable):
        model.seed(seed)
    follower = bench.follower(s.following) if s.following else None
    guide = (lambda env, model: follower.begin(env, model, seed)) if follower else None
    cost = (lambda env, model: build_cost("reward", env, model)) if s.agent == "reward" else None
    return run_episode(
        bench.env, model, planner, cost, seed, s.planner.execute, s.max_steps, guide, options, pictures=False
    )


def judge_images(
    bench: Bench,
    settings: ImageSettings,
    seeds: Sequence[int],
    instructions: Instructions = own_draw,
    journal: Path | None = None,
    reach: int | None = None,
) -> list[dict[str, Any]]:
    """Has subgoals proposed for the first frame of each seed's episode, and judges the final one by `CRITERIA`.

    fulfilled: the instruction holds but for `SLACK_CM`, by the subgoal's places and by the detector on its pixels.
    identity_kept: by the detector, the cubes of the start and no others (cubes_kept), those not to be moved within `STRAY_CM`
    (others_still). reachable: a planner in the true simulator follows the chain and at some look has the cube within `REACH_CM`
    of where the final subgoal has it; of the first `reach` seeds, the costly part. A proposer that proposes nothing fails all.
    """
    sight, looked = Sight.of_tabletop(), set(list(seeds)[:reach])

    def judge(seed: int) -> dict[str, Any]:
        text = instructions(seed)
        seen, info = bench.env.reset(seed=seed, options={"instruction": text} if text is not None else None)
        start = Observation(seen[PIXELS], seen[AGENT_POS], info["task"])
        model = bench.model if settings.following.imagine else None
        proposer, began = bench.follower(settings.following).proposer(seed, model), time.perf_counter()
        chain = proposer.propose(start, settings.following.habits.count, 1000 * seed)
        row = {"seed": seed, "instruction": start.instruction, "subgoals": len(chain)}
        row |= {"seconds": round(time.perf_counter() - began, 3), "captions": [subgoal.caption for subgoal in chain]}
        if not chain:
            return row | dict.fromkeys(CRITERIA if seed in looked else CRITERIA[:-1], False)
        row |= _judged(bench.env.unwrapped, start, chain[-1], proposer.objects, sight)
        if settings.planner is not None and seed in looked:
            row |= _reachable(bench, settings, start, chain, proposer.objects, seed)
        return row

    return evaluate(settings, seeds, functools.partial(map, judge), journal=journal)


def _judged(world: Any, start: Observation, final: Any, objects: Sequence[str], sight: Sight) -> dict[str, Any]:
    task: Task = world.task_spec
    proposed = dict(zip(objects, final.places, strict=True))
    before = dict(zip(sight.names, sight.see(start.pixels), strict=True))
    after = dict(zip(sight.names, sight.see(final.frame), strict=True))
    left = [_left(task, places) for places in (proposed, after)]
    by_places, by_eye = (cm is not None and cm <= SLACK_CM for cm in left)
    cubes = sight.names[1:]
    kept = all((before[name][2] > 0.5) == (after[name][2] > 0.5) for name in cubes)
    both = [name for name in cubes if name != task.cube and before[name][2] > 0.5 and after[name][2] > 0.5]
    still = all(np.linalg.norm(after[name][:2] - before[name][:2]) <= STRAY_CM for name in both)
    return {
        "left_cm": [None if cm is None else round(cm, 3) for cm in left],
        "fulfilled_by_places": by_places,
        "fulfilled_by_eye": by_eye,
        "fulfilled": by_places and by_eye,
        "cubes_kept": kept,
        "others_still": still,
        "identity_kept": kept and still,
    }


def _left(task: Task, places: Mapping[str, np.ndarray]) -> float | None:
    """What a scene leaves to do in cm; None where a cube that the task is about is not in it."""
    if any(name and (name not in places or places[name][2] <= 0.5) for name in (task.cube, task.other)):
        return None
    ordered = np.stack([places[name][:2] if name in places else np.zeros(2) for name in OBJECTS])
    return float(task.distance(ordered.astype(np.float64)))


def _reachable(
    bench: Bench, s: ImageSettings, start: Observation, chain: Sequence[Any], objects: Sequence[str], seed: int
) -> dict[str, Any]:
    """How near a planner in the true simulator gets, which is left as it was."""
    oracle, task = OracleWorldModel(bench.env, seed), task_of(bench.env.unwrapped)
    assert task is not None
    cube = task.cube
    wanted = chain[-1].places[list(objects).index(cube)] if cube in objects else np.zeros(3)
    if wanted[2] <= 0.5:
        return {"miss_cm": None, "reachable": False}
    habits = replace(s.following.habits, patience=PATIENCE)
    path = carry_out(oracle, oracle.encode([start]), chain, objects, CEM(s.planner, seed), habits, MAX_STEPS)
    miss = closest(path, oracle.objects, {cube: wanted})
    return {"miss_cm": round(miss, 3), "reachable": miss <= REACH_CM}
