"""What an episode's plans were chosen among, as the planner reports it, for people to look at. Knows no planner and no page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import gymnasium
import numpy as np
import torch

from emu_embodied.envs.pusht.geometry import MarkedWorld
from emu_embodied.envs.tabletop.tasks import task_of
from emu_embodied.errors import InputError
from emu_embodied.protocols import Trained, WorldModel
from emu_embodied.rollouts.goals.task_costs import PoseGoal, TaskGoal
from emu_embodied.types import Plan, short_repr

KEPT = 16  # candidates of each plan, the best of its last round
TABLETOP_SCALE = (16.0, -16.0)  # cm at the frame's right and lower edge, for models that do not say


@dataclass(frozen=True)
class PlanRecord:
    """One plan: what it was chosen among, and how sure the model was of what it then did.

    Attributes:
        at: the frame from which it was planned.
        paths: (K, T, O, 2) float32 in world units, where candidates were imagined to bring the objects; the cheapest first.
        costs: (K,) float32.
        chosen: (T, O, 2), the same of the plan itself.
        entropy: (E,) float32 nats, of the executed steps.
        distances: (E,) float32, imagined cm left to go after each of them; empty where the task has no measure.
        present: (O,) bool, the objects that were imagined to be in view.
    """

    at: int
    paths: np.ndarray
    costs: np.ndarray
    chosen: np.ndarray
    entropy: np.ndarray
    distances: np.ndarray
    present: np.ndarray

    __repr__ = short_repr


@dataclass(frozen=True)
class PlanTrace:
    """The plans of an episode, and what their numbers mean.

    Attributes:
        objects: O names.
        colours: name -> RGB in 0..255, as far as the model knows them.
        scale: world units at the frame's right and lower edge.
        plans: one entry a plan.
    """

    objects: tuple[str, ...]
    colours: dict[str, tuple[int, int, int]]
    scale: tuple[float, float]
    plans: tuple[PlanRecord, ...] = field(default=())

    __repr__ = short_repr


Measure = Callable[[torch.Tensor], torch.Tensor]


def record_plan(plan: Plan, at: int, execute: int, left: Measure | None) -> PlanRecord:
    """What is kept of a plan that says what it was chosen among.

    Args:
        plan: with its future and candidates.
        at: the frame from which it was planned.
        execute: its steps that are carried out.
        left: what is left to go; see `left_to_go`.
    """
    future, candidates, costs = plan.future, plan.candidates, plan.candidate_costs
    assert future is not None and candidates is not None and costs is not None
    future, candidates = future.map(lambda x: x[0, 0].cpu()), candidates.map(lambda x: x[0].cpu())
    walked_EO2 = future.positions_BSTOD[:execute]
    order = costs.argsort(stable=True)[:KEPT]
    return PlanRecord(
        at,
        candidates.positions_BSTOD[order].float().numpy(),
        costs[order].float().numpy(),
        future.positions_BSTOD.float().numpy(),
        future.entropy_BST[:execute].float().numpy(),
        left(walked_EO2).float().numpy() if left else np.empty(0, np.float32),
        (candidates.presence_BSTO.flatten(0, 1).float().mean(0) > 0.5).numpy(),
    )


def scene_of(model: WorldModel) -> tuple[tuple[str, ...], dict[str, tuple[int, int, int]], tuple[float, float]]:
    """Names and colours of a model's objects, and the world units at the frame's right and lower edge."""
    if not isinstance(model, Trained):
        return tuple(model.objects), {}, TABLETOP_SCALE
    colours = {name: (int(red), int(green), int(blue)) for name, (red, green, blue) in model.world.objects.items()}
    right, lower = model.world.position_scale
    return tuple(model.objects), colours, (float(right), float(lower))


def left_to_go(env: gymnasium.Env, objects: tuple[str, ...]) -> Measure | None:
    """What is left of the env's task in cm (...), from positions (..., O, 2) of these objects; None: it has no such task."""
    world = env.unwrapped
    try:
        if isinstance(world, MarkedWorld):
            return PoseGoal(world.aims(), objects).distance
        task = task_of(world)
        return TaskGoal(task, objects).distance if task else None
    except InputError:  # about an object that the model does not know
        return None
