"""An episode that is acted in the real environment, and what is kept of it. Knows no planner, no checkpoint and no file."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import torch

from emu_embodied.envs.checks import as_box, check_action, picture_of
from emu_embodied.envs.tabletop.tasks import task_of
from emu_embodied.errors import InputError
from emu_embodied.policies.subgoal_manager import Pursued, SubgoalManager
from emu_embodied.protocols import WorldModel
from emu_embodied.rollouts.goals.task_costs import MAX_STEPS, expert_policy
from emu_embodied.types import AGENT_POS, IS_SUCCESS, PIXELS, Observation, Plan, short_repr
from emu_embodied.validation import whole_number

from .random import random_actions
from .trace import PlanRecord, PlanTrace, left_to_go, record_plan, scene_of


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
        imagined: (T + 1, H, W, 3) uint8, what each plan's steps were imagined to lead to, from the last observation before
            the plan; the first is the model's rendering of the first real frame. Where there was no plan, the last frame seen.
            Empty without a model, and without `pictures`.
        plan_seconds, plan_costs: one entry per plan.
        predicted_frames: of all plans together.
        trace: what the plans were chosen among; None where `imagined` is empty.
        subgoals: what was pursued in turn, and from which step on; empty without subgoals.
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
    trace: PlanTrace | None = None
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


class Recorder:
    """Acts in an env and keeps what happened.

    Args:
        env: reset here.
        seed, options: of the reset.
        max_steps: model steps after which the episode has failed.
        on_step: called after each step.

    Attributes:
        instruction: the task as text.
        observation: what is seen now.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        seed: int,
        max_steps: int,
        options: dict[str, Any] | None = None,
        on_step: Callable[[], None] | None = None,
    ) -> None:
        self.env, self.seed, self.on_step = env, seed, on_step
        self.max_steps = whole_number("max_steps", max_steps, 1, error=InputError)
        observation, info = env.reset(seed=seed, options=options)
        self.instruction = info.get("task", "")
        self.success = False
        self.model: WorldModel | None = None
        self._frames, self._actions, self._distances = [], [], []
        self._plans: list[Plan] = []
        self._records: list[PlanRecord] = []
        self._keep(observation, info)

    @property
    def over(self) -> bool:
        """Success, or the last step."""
        return self.success or len(self._actions) >= self.max_steps

    def act(self, action: np.ndarray) -> None:
        """Takes a step in the env.

        Raises:
            InputError: an action beyond the bounds; what rounding has left over them is clipped.
        """
        space = as_box(self.env.action_space)
        check_action(action, space)
        action = np.clip(action, space.low, space.high)
        observation, _, terminated, truncated, info = self.env.step(action)
        self._actions.append(np.asarray(action, np.float32))
        self._keep(observation, info)
        if truncated or terminated:
            self.max_steps = len(self._actions)
        if self.on_step:
            self.on_step()

    def listener(self, model: WorldModel, execute: int, pictures: bool) -> Callable[[Plan, int, int], None]:
        """Who keeps the plans in this model that an agent reports; see `MPCAgent.on_plan`."""
        self.model = model if pictures else None
        left = left_to_go(self.env, model.objects) if pictures else None

        def keep(plan: Plan, env: int, at: int) -> None:
            self._plans.append(replace(plan, future=None, candidates=None, candidate_costs=None))
            if pictures and plan.future is not None:
                self._records.append(record_plan(plan, at, execute, left))

        return keep

    def finish(self, foreseen: Sequence[torch.Tensor] = (), manager: SubgoalManager | None = None) -> EpisodeRun:
        """The episode.

        Args:
            foreseen: codes (N,) of what was imagined for each moment.
            manager: who followed subgoals.
        """
        frames, model = np.stack(self._frames), self.model
        imagined = np.empty((0, *frames.shape[1:]), np.uint8)
        if model:
            imagined = model.decode(torch.stack(list(foreseen[: len(frames)])))
        return EpisodeRun(
            self.seed,
            self.instruction,
            task.kind if (task := task_of(self.env.unwrapped)) else "",
            self.success,
            np.array(self._distances, np.float32),
            np.reshape(self._actions, (-1, *as_box(self.env.action_space).shape)).astype(np.float32),
            frames,
            imagined,
            tuple(plan.seconds for plan in self._plans),
            tuple(plan.cost for plan in self._plans),
            sum(plan.predicted_frames for plan in self._plans),
            PlanTrace(*scene_of(model), tuple(self._records)) if model else None,
            tuple(manager.pursued) if manager else (),
            manager.stopped_at if manager else None,
        )

    def _keep(self, observation: dict[str, np.ndarray], info: dict[str, Any]) -> None:
        left = info.get("distance")  # others may mean something else by it
        self._frames.append(picture_of(observation))
        self._distances.append(float(left) if isinstance(left, numbers.Real) else math.nan)
        self.success = self.success or bool(info.get(IS_SUCCESS, False))
        place = observation.get(AGENT_POS, np.zeros(0, np.float32))  # an env need not tell what its model does not know
        self.observation = Observation(observation[PIXELS], place, self.instruction)


def run_policy(
    env: gymnasium.Env,
    agent: str,
    seed: int,
    max_steps: int = MAX_STEPS,
    options: dict[str, Any] | None = None,
    on_step: Callable[[], None] | None = None,
) -> EpisodeRun:
    """Plays one episode of a control: "random" (uniform actions) or "expert" (the scripted one, on true positions)."""
    recorder = Recorder(env, seed, max_steps, options, on_step)
    act = expert_policy(env) if agent == "expert" else random_actions(env.action_space, seed).__next__
    while not recorder.over:
        recorder.act(act())
    return recorder.finish()
