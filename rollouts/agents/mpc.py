"""One episode: plans in a world model, acts in the real environment, keeps what happened. Knows no checkpoint and no file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np

from emu_embodied.envs.checks import check_action
from emu_embodied.policies.planners.cem import CEM
from emu_embodied.policies.subgoal_manager import Pursued, SubgoalManager, see_places
from emu_embodied.protocols import Cost, Planner, WorldModel
from emu_embodied.rollouts.goals.task_costs import MAX_STEPS, build_cost, expert_policy
from emu_embodied.rollouts.viewer.episode_record import PlanTrace, RecordingCost
from emu_embodied.types import AGENT_POS, IS_SUCCESS, PIXELS, Observation, short_repr
from emu_embodied.units import ActionScale

from .progress import EpisodeProgress

CostBuilder = Callable[[gymnasium.Env, WorldModel], Cost]
Guide = Callable[[gymnasium.Env, WorldModel], SubgoalManager]


@dataclass(frozen=True)
class EpisodeRun:
    """One episode acted in the real environment, T steps long.

    Attributes:
        seed: of the env's reset, and of the planner.
        instruction, kind: the task as text, and its kind ("edge", "middle", "next_to").
        success: the simulator's predicate held at some step.
        distances: (T + 1,) float32, cm left to go by the simulator; NaN where the env does not say it.
        actions: (T, A) float32, in the env's units.
        frames: (T + 1, H, W, 3) uint8, real.
        imagined: (T + 1, H, W, 3) uint8, what each plan's steps were imagined to lead to, from the last observation
            before the plan; the first is the model's rendering of the first real frame. Empty without a model.
        plan_seconds, plan_costs: one entry per plan.
        predicted_frames: of all plans together.
        thoughts: what the plans were chosen among; None without a model.
        subgoals: what was pursued in turn, and from which step on; empty where nobody proposes subgoals.
        stopped_at: the step at which the proposer of subgoals believed that all is done; None where it never did.
    """

    seed: int
    instruction: str
    kind: str
    success: bool
    distances: np.ndarray
    actions: np.ndarray
    frames: np.ndarray
    imagined: np.ndarray
    plan_seconds: tuple[float, ...] = ()
    plan_costs: tuple[float, ...] = ()
    predicted_frames: int = 0
    thoughts: PlanTrace | None = None
    subgoals: tuple[Pursued, ...] = ()
    stopped_at: int | None = None

    __repr__ = short_repr

    def row(self) -> dict[str, Any]:
        """The episode without its arrays, as JSON."""
        pursued = [
            {"at": at, "caption": s.caption, "log_prob": round(s.log_prob, 4), "last": s.last}
            for s, at in self.subgoals
        ]
        guided = {"subgoals": pursued, "stopped_at": self.stopped_at}
        return {
            "seed": self.seed,
            "instruction": self.instruction,
            "kind": self.kind,
            "success": self.success,
            "steps": len(self.actions),
            "start_cm": _rounded(self.distances[0]),
            "end_cm": _rounded(self.distances[-1]),
            "plan_seconds": [round(s, 4) for s in self.plan_seconds],
            "predicted_frames": self.predicted_frames,
            **(guided if pursued or self.stopped_at is not None else {}),
        }


def _rounded(distance: float) -> float | None:
    """For JSON, which has no NaN: worlds that are not ours need not measure what is left to go."""
    return round(float(distance), 3) if math.isfinite(distance) else None


class _Recorder:
    """Acts in the env and keeps what happened."""

    def __init__(
        self,
        env: gymnasium.Env,
        seed: int,
        max_steps: int,
        options: dict[str, Any] | None = None,
        on_step: Callable[[], None] | None = None,
    ) -> None:
        self.env, self.seed, self.max_steps, self.on_step = env, seed, max_steps, on_step
        observation, info = env.reset(seed=seed, options=options)
        self.instruction = info.get("task", "")
        self.frames, self.actions, self.distances = [], [], []
        self.success = False
        self._keep(observation, info)

    @property
    def over(self) -> bool:
        return self.success or len(self.actions) >= self.max_steps

    def act(self, action: np.ndarray) -> None:
        space = self.env.action_space
        check_action(action, space)  # nothing beyond its bounds is ever sent; what rounding has left over them is clipped
        action = np.clip(action, space.low, space.high)
        observation, _, terminated, truncated, info = self.env.step(action)
        self.actions.append(np.asarray(action, np.float32))
        self._keep(observation, info)
        if truncated or terminated:
            self.max_steps = len(self.actions)
        if self.on_step:
            self.on_step()

    def finish(self, imagined: Sequence[np.ndarray] = (), **more: Any) -> EpisodeRun:
        spec, frames = getattr(self.env.unwrapped, "task_spec", None), np.stack(self.frames)
        dreamt = np.stack(imagined) if len(imagined) else np.empty((0, *frames.shape[1:]), np.uint8)
        return EpisodeRun(
            self.seed,
            self.instruction,
            getattr(spec, "kind", ""),
            self.success,
            np.array(self.distances, np.float32),
            np.reshape(self.actions, (-1, *self.env.action_space.shape)).astype(np.float32),
            frames,
            dreamt[: len(frames)],
            **more,
        )

    def _keep(self, observation: dict[str, np.ndarray], info: dict[str, Any]) -> None:
        self.frames.append(observation[PIXELS])
        self.distances.append(info.get("distance", float("nan")))
        self.success = self.success or bool(info.get(IS_SUCCESS, False))
        self.observation = Observation(observation[PIXELS], observation[AGENT_POS], self.instruction)


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
) -> EpisodeRun:
    """Plans, carries out `execute` steps, observes what really happened, and plans again, until success or the end.

    Args:
        env: the real environment; reset here.
        model: where plans are imagined; its histories hold real observations only. Its actions reach the env in the robot's
            units, by the checkpoint's own scale.
        planner: `reset` here; its warm start should shift by `execute`. None is CEM as configured by default.
        cost_builder: (env, model) -> the episode's cost; called once, after the reset. None is `build_cost("positions", ...)`.
        seed: of the env's reset.
        execute: steps of each plan that are carried out.
        max_steps: model steps after which the episode has failed.
        guide: (env, model) -> who follows subgoals; called once, after the reset. It looks before each plan and says what to
            minimise, in the place of `cost_builder`; where it believes that all is done, the robot stays where it is. The model
            itself is then told no instruction, which may be of words that it does not know.
        options: of the env's reset.
        on_step: called after each step in the env, and after each round of a plan, for one may take longer than many steps.
        progress: show on stderr how far the episode and its plans are; a text is what the bar calls it.

    Raises:
        ConfigError: a checkpoint of several robots, and nobody said which is meant; see `ActionScale.of`.
        InputError: an env whose action space is not that of the checkpoint's robot, observations that do not fit the model, or
            costs that are not finite.
        SimulationError: the physics left the numbers.
    """
    scale = ActionScale.of(model)
    scale.check(env.action_space)
    recorder = _Recorder(env, seed, max_steps, options, on_step)
    planner = planner or CEM(seed=seed)
    planner.reset()
    manager = guide(env, model) if guide else None
    cost = None if manager else cost_builder(env, model) if cost_builder else build_cost("positions", env, model)
    cost = RecordingCost(cost, env, model)
    told = recorder.instruction if manager is None else ""  # who follows subgoals needs no words for the way
    history = model.encode([replace(recorder.observation, instruction=told)])
    imagined, plans = [*model.decode(history.codes_BCN[0, -1:])], []
    name = progress if isinstance(progress, str) else recorder.instruction or f"seed {seed}"
    with EpisodeProgress(planner, max_steps, name, bool(progress), on_step) as bar:
        while not recorder.over:
            if manager:
                places = see_places(model, history)
                cost.cost = manager.look(recorder.observation, places, len(recorder.actions))
            plan = planner.plan(model, history, cost) if cost.cost else None
            actions_TA = plan.actions[:execute] if plan else np.tile(scale.still, (execute, 1))
            dream = model.rollout(history, actions_TA[None, None])
            imagined += [*model.decode(dream.codes_BSTN[0, 0])]
            if plan:
                plans.append(plan)
                cost.look(plan, dream, at=len(recorder.actions))
            for action in actions_TA:
                recorder.act(scale.to_robot(action))
                bar.step()
                history = model.observe(history, action[None], [recorder.observation])
                if recorder.over:
                    break
    return recorder.finish(
        imagined,
        plan_seconds=tuple(plan.seconds for plan in plans),
        plan_costs=tuple(plan.cost for plan in plans),
        predicted_frames=sum(plan.predicted_frames for plan in plans),
        thoughts=cost.thoughts,
        subgoals=tuple(manager.pursued) if manager else (),
        stopped_at=manager.stopped_at if manager else None,
    )


def run_policy(
    env: gymnasium.Env,
    agent: str,
    seed: int,
    max_steps: int = MAX_STEPS,
    options: dict[str, Any] | None = None,
    on_step: Callable[[], None] | None = None,
) -> EpisodeRun:
    """Plays one episode of a control: "random" (uniform actions) or "expert" (the scripted one, on true positions)."""
    recorder = _Recorder(env, seed, max_steps, options, on_step)
    rng, space = np.random.default_rng([seed, 5]), env.action_space
    act = expert_policy(env) if agent == "expert" else lambda: rng.uniform(space.low, space.high).astype(np.float32)
    while not recorder.over:
        recorder.act(act())
    return recorder.finish()
