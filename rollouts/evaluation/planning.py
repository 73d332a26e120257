"""Planning evaluated: many episodes by seed, a journal that keeps each, rates with intervals. Knows no checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from emu_embodied.data.images import load_picture
from emu_embodied.envs.checks import as_box
from emu_embodied.envs.letterboxed import as_seen
from emu_embodied.envs.opening import open_env
from emu_embodied.envs.tabletop.tasks import task_of
from emu_embodied.errors import ConfigError, InputError
from emu_embodied.labels import need
from emu_embodied.policies.planners.base import PlannerConfig
from emu_embodied.policies.planners.cem import CEMConfig
from emu_embodied.policies.planners.registry import make_planner
from emu_embodied.protocols import Seedable, SubgoalProposer, WorldModel
from emu_embodied.rollouts.agents.episode import EpisodeRun, run_policy
from emu_embodied.rollouts.agents.mpc import run_episode
from emu_embodied.rollouts.goals.subgoal_setup import Follower, Following
from emu_embodied.rollouts.goals.task_costs import FRAME_GOALS, GOALS, MAX_STEPS, build_cost, can_plan
from emu_embodied.rollouts.simulator_model import OracleWorldModel
from emu_embodied.types import AGENT_POS, PIXELS
from emu_embodied.units import ActionScale

from .harness import evaluate, plan_costs, players, rate

AGENTS = ("model", "oracle", "random", "expert")
LANGUAGE = "language"
COUNTED = {"success": bool, "kind": str, "steps": int, "plan_seconds": list, "predicted_frames": int}  # of a row


@dataclass(frozen=True)
class PlanningSettings:
    """What determines an evaluation; recorded in its journal, so that no other settings continue it.

    Attributes:
        env_id, env_options: keywords of `gymnasium.make`.
        agent: "model", "oracle" (the same planner in the true simulator), "random" or "expert".
        goal: one of `task_costs.GOALS`, or "language": subgoals that someone proposes.
        planner: the planner, by its config, which has its budget and settings.
        max_steps: model steps of an episode.
        model: names the world model in the journal; empty for other agents.
        effort, uncertainty: weights of the actions' and of the tokens' uncertainty in the cost; see `task_costs.build_cost`.
        following: who proposes the subgoals of goal "language", and how they are followed; None for other goals.
        picture, picture_digest: a file that shows what a goal by a frame is to reach, and the SHA-256 of what is in it.

    Raises:
        ConfigError: an unknown agent or goal, subgoals or a picture without their goal or with an agent that does not plan, a
            goal without the gradient that the planner needs, max_steps below 1, or a weight that is not a number of at least 0.
    """

    env_id: str
    env_options: dict[str, Any] = field(default_factory=dict)
    agent: str = "model"
    goal: str = "positions"
    planner: PlannerConfig = field(default_factory=CEMConfig)
    max_steps: int = MAX_STEPS
    model: str = ""
    effort: float = 0.0
    uncertainty: float = 0.0
    following: Following | None = None
    picture: str | None = None
    picture_digest: str | None = None

    def __post_init__(self) -> None:
        if self.agent not in AGENTS:
            raise ConfigError("agent", self.agent, f"choose one of {AGENTS}")
        if self.goal not in (*GOALS, LANGUAGE):
            raise ConfigError("goal", self.goal, f"choose one of {(*GOALS, LANGUAGE)}")
        if (self.goal == LANGUAGE) != (self.following is not None):
            given = self.following and self.following.proposer
            raise ConfigError(
                "subgoals", given, "goal=language follows subgoals, and no other goal does: give both or none"
            )
        if self.goal == LANGUAGE and self.agent not in ("model", "oracle"):
            raise ConfigError("agent", self.agent, "it does not plan: goal=language needs agent=model or agent=oracle")
        if self.picture is not None and (self.goal not in FRAME_GOALS or self.agent not in ("model", "oracle")):
            rule = f"who plans with one of goal={', '.join(FRAME_GOALS)} aims at it: give goal=image and agent=model too"
            raise ConfigError("picture", self.picture, rule)
        if self.planner.name == "gradient" and self.agent == "oracle":
            raise ConfigError(
                "planner", "gradient", "the simulator has no gradient: use agent=model, or another planner"
            )
        if self.planner.name == "gradient" and self.goal in (*FRAME_GOALS, LANGUAGE):
            raise ConfigError("goal", self.goal, "it has no gradient: choose positions or reward, or another planner")
        if type(self.max_steps) is not int or self.max_steps < 1:
            raise ConfigError("max_steps", self.max_steps, "give a whole number of at least 1")
        for name in ("effort", "uncertainty"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(name, getattr(self, name), "give a weight of at least 0")


class Player:
    """Plays episodes by seed, each the same whichever process plays it.

    Args:
        settings: what to play.
        make_model: loads the world model; called for agent "model" only.
        make_proposer: loads the learnt proposer of subgoals; called for goal "language" only, and not for its controls.
        pictured: seeds whose episodes keep what was imagined.

    Raises:
        ConfigError: an unknown env, or agent "model" without a model, or subgoals without their proposer.
        InputError: env options out of range, an env without a task, a picture that cannot be read, or a model that sees frames
            of another size than an env shows that could show it, drives another robot, or does not know the reward that is the
            goal. Frames of any other env are letterboxed; see `run_episode`.
    """

    def __init__(
        self,
        settings: PlanningSettings,
        make_model: Callable[[], WorldModel] | None,
        make_proposer: Callable[[], SubgoalProposer] | None = None,
        pictured: Collection[int] = (),
    ) -> None:
        self.settings, self.pictured = settings, pictured
        self.env = open_env(settings.env_id, "env_id", max_episode_steps=settings.max_steps, **settings.env_options)
        shape = self._check_env()
        self.model: WorldModel | None = None
        if settings.agent == "model":
            if make_model is None:
                raise ConfigError("agent", "model", "give make_model too, which loads one")
            self.model = make_model()
            self._check_model(self.model, shape)
        self.picture = None if settings.picture is None else load_picture(settings.picture, "picture")
        self.follower = Follower(settings.following, self.env, make_proposer) if settings.following else None

    def _check_env(self) -> tuple[int, ...]:
        """Whether the env can be planned in; the shape of its frames."""
        s, space = self.settings, self.env.observation_space
        if not isinstance(space, gymnasium.spaces.Dict) or not {PIXELS, AGENT_POS} <= set(space):
            rule = f"show a Dict of {PIXELS!r}, (H, W, 3) uint8, and {AGENT_POS!r}, a vector"
            raise InputError("env_id", s.env_id, f"planning looks at it: {rule}")
        anywhere = s.goal == "reward" or s.picture is not None
        if s.agent != "random" and not (s.agent == "model" and anywhere) and not can_plan(self.env):
            rule = (
                "its goals are those of the table-top and of PushT: choose goal=reward, or goal=image with picture=FILE, with "
                "agent=model, or agent=random"
            )
            raise InputError("env_id", s.env_id, rule)
        return as_box(space[PIXELS]).shape

    def _check_model(self, model: WorldModel, shape: tuple[int, ...]) -> None:
        """What a plan or an action would find wrong later; see `run_episode`."""
        side = model.image_size
        if shape != (side, side, 3) and "image_size" in self.settings.env_options:  # better drawn so than resized
            raise InputError("image_size", shape[0], f"the model sees frames of {side} px: let the env show {side} x {side}")
        self.env = as_seen(self.env, side)
        ActionScale.of(model).check(self.env.action_space)
        if self.settings.goal == "reward" and task_of(self.env.unwrapped) is None:
            need(model, "reward", "goal=reward")

    def play(self, seed: int, on_step: Callable[[], None] | None = None, progress: bool | str = False) -> EpisodeRun:
        """Plays the episode of one seed; `on_step` and `progress` are those of `run_episode`."""
        s = self.settings
        if s.agent in ("random", "expert"):
            return run_policy(self.env, s.agent, seed, s.max_steps, on_step=on_step)
        model = OracleWorldModel(self.env, seed) if s.agent == "oracle" else self.model
        assert model is not None  # agent "model" has one
        if isinstance(model, Seedable):
            model.seed(seed)
        cost = functools.partial(build_cost, s.goal, effort=s.effort, uncertainty=s.uncertainty, picture=self.picture)
        planner = make_planner(s.planner, seed)
        guide = functools.partial(self.follower.begin, seed=seed) if self.follower else None
        return run_episode(
            self.env,
            model,
            planner,
            cost,
            seed,
            s.planner.execute,
            s.max_steps,
            guide,
            on_step=on_step,
            progress=progress,
            pictures=seed in self.pictured,
        )


def evaluate_planning(
    settings: PlanningSettings,
    seeds: Sequence[int],
    make_model: Callable[[], WorldModel] | None = None,
    workers: int = 1,
    journal: Path | None = None,
    on_episode: Callable[[EpisodeRun], None] | None = None,
    player: Player | None = None,
    make_proposer: Callable[[], SubgoalProposer] | None = None,
    progress: bool = False,
    pictured: Collection[int] = (),
) -> list[dict[str, Any]]:
    """Plays one episode per seed.

    Args:
        settings: what to play.
        seeds: of the episodes.
        make_model: loads the world model in each process; picklable where workers > 1.
        workers: processes; 1 plays in this one.
        journal: a JSON-lines file that gets each episode's row as it is finished; rows that it holds are not played again.
        on_episode: called in this process with each episode that was played, in the order they finish.
        player: one of the same settings that is there already; it plays where one process is enough.
        make_proposer: loads the learnt proposer of subgoals in each process; picklable where workers > 1.
        progress: show on stderr how far the present episode is, or, with several workers, how many are done.
        pictured: seeds whose episodes keep what was imagined, for `on_episode`; of the player too.

    Returns:
        The episodes' rows (`EpisodeRun.row`), in the order of the seeds.

    Raises:
        ConfigError, EmuEmbodiedError: see `harness.evaluate` and `harness.players`.
    """
    make = functools.partial(Player, settings, make_model, make_proposer, frozenset(pictured))
    play = players(make, workers, progress, player)
    return evaluate(settings, seeds, play, EpisodeRun.row, journal, COUNTED, on_episode)


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Success rate with Wilson's 95% interval, by kind of task too, and what the planning cost.

    Returns:
        n, successes, rate, wilson_95, by_kind, steps_median (of the successes), seconds_per_plan_median,
        predicted_frames_per_second and frames_per_plan (None without plans).
    """
    kinds = sorted({row["kind"] for row in rows})
    steps = [row["steps"] for row in rows if row["success"]]
    return {
        **rate(row["success"] for row in rows),
        "by_kind": {kind: rate(row["success"] for row in rows if row["kind"] == kind) for kind in kinds},
        "steps_median": float(np.median(steps)) if steps else None,
        **plan_costs(rows),
    }
