"""What a planner is after: instructions as costs over imagined futures. Knows no checkpoint and no episode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch

from emu_embodied.envs.pusht.geometry import MarkedWorld
from emu_embodied.envs.tabletop.tasks import (
    ABREAST_CM,
    BESIDE_CM,
    CORNER_CM,
    DIRECTIONS,
    EDGE_CM,
    NEXT_TO_CM,
    OBJECTS,
    Task,
    TaskWorld,
    corner_signs,
    task_of,
)
from emu_embodied.errors import ConfigError, InputError
from emu_embodied.framing import fitted
from emu_embodied.policies.costs import (
    ActionEffort,
    BehindObject,
    FeatureGoal,
    GoalImage,
    ObjectLost,
    ObjectPositions,
    RewardHead,
    Uncertainty,
    WeightedSum,
    code_features,
)
from emu_embodied.policies.experts.tabletop import Expert
from emu_embodied.policies.experts.tabletop_avoiding import AvoidingExpert
from emu_embodied.protocols import Cost, WorldModel
from emu_embodied.rollouts.collection.data_policies import behaviour_of, cube_and_others
from emu_embodied.types import Observation
from emu_embodied.validation import choice

GOALS = ("positions", "reward", "image", "tokens", "features")
FRAME_GOALS = {"image": 100.0, "tokens": 20.0, "features": 15.0}  # goals that are a frame -> weights, of like effect
MAX_STEPS = 40


class TaskGoal:
    """A table-top task over positions in a model's object order, as `policies.costs` wants it.

    Args:
        task: the instruction's meaning.
        objects: the model's object names.
        margin: weight of the way to `Task.target`, 1 to 1.5 cm inside the goal, beside the way to the goal's border: who
            aims at the border alone misses it by as much as the model errs.

    Raises:
        InputError: the task is about a cube that the model does not know.
    """

    def __init__(self, task: Task, objects: Sequence[str], margin: float = 0.3) -> None:
        self.task, self.margin = task, margin
        for name in ("pusher", task.cube, *([task.other] if task.other else [])):
            if name not in objects:
                raise InputError("instruction", task.text, f'the model knows no "{name}", only {tuple(objects)}')
        self.places = [(OBJECTS.index(name), i) for i, name in enumerate(objects) if name in OBJECTS]
        self.pusher, self.cube = objects.index("pusher"), objects.index(task.cube)
        self.other = objects.index(task.other) if task.other else -1

    def distance(self, positions: torch.Tensor) -> torch.Tensor:
        """`Task.distance` (...) in cm of positions (..., O, 2); 0 is success."""
        ordered = positions.new_zeros(*positions.shape[:-2], len(OBJECTS), 2)
        for there, here in self.places:
            ordered[..., there, :] = positions[..., here, :]
        return self.task.distance(ordered)

    def distance_inside(self, positions: torch.Tensor) -> torch.Tensor:
        """`distance` plus `margin` times the way to the target (...), in cm."""
        way = self.target(positions) - positions[..., self.cube, :]
        return self.distance(positions) + self.margin * way.norm(dim=-1)

    def target(self, positions: torch.Tensor) -> torch.Tensor:
        """`Task.target` of many scenes: (..., 2) cm from positions (..., O, 2)."""
        cube = positions[..., self.cube, :]
        if self.task.kind == "edge":
            direction = positions.new_tensor(DIRECTIONS[self.task.where])
            return cube + direction * (EDGE_CM + 1.5 - cube @ direction).clamp(min=0)[..., None]
        if self.task.kind == "corner":
            signs = positions.new_tensor(corner_signs(self.task.where))
            return signs * (cube * signs).clamp(min=CORNER_CM + 1.0)
        if self.task.kind == "beside":
            direction, other = positions.new_tensor(DIRECTIONS[self.task.where]), positions[..., self.other, :]
            aside, away = positions.new_tensor([direction[1], -direction[0]]), cube - other
            along = (away @ direction).clamp(BESIDE_CM[0] + 1.5, BESIDE_CM[1] - 1.5)[..., None] * direction
            return other + along + (away @ aside).clamp(1.5 - ABREAST_CM, ABREAST_CM - 1.5)[..., None] * aside
        next_to = self.task.kind == "next_to"
        goal = positions[..., self.other, :] if next_to else torch.zeros_like(cube)
        away = cube - goal
        length = away.norm(dim=-1, keepdim=True)
        return goal + away / length.clamp(min=1e-6) * length.clamp(max=NEXT_TO_CM - 1.0 if next_to else 0.0)


class PoseGoal:
    """PushT's T on its mark, over positions in a model's object order, as `policies.costs` wants it.

    Args:
        aims: (2, 2) cm, where the T's centroid and tip belong.
        objects: the model's object names.

    Raises:
        InputError: the model does not know pusher, T and tip.
    """

    def __init__(self, aims: np.ndarray, objects: Sequence[str]) -> None:
        if not {"pusher", "T", "tip"} <= set(objects):
            raise InputError("objects", tuple(objects), "planning PushT needs a model that knows pusher, T and tip")
        self.pusher, self.tee, self.tip = (objects.index(name) for name in ("pusher", "T", "tip"))
        self.aims = torch.from_numpy(aims).float()

    def distance(self, positions: torch.Tensor) -> torch.Tensor:
        """Mean way (...) in cm of centroid and tip to their places, from positions (..., O, 2)."""
        ways = positions[..., [self.tee, self.tip], :] - self.aims.to(positions)
        return ways.norm(dim=-1).mean(-1)

    def away(self, positions: torch.Tensor) -> torch.Tensor:
        """How far (...) in cm the pusher is from where it may touch the T."""
        return ((positions[..., self.pusher, :] - positions[..., self.tee, :]).norm(dim=-1) - 4.0).clamp(min=0)


class SceneGoal:
    """Things where another scene has them, over positions in a model's object order, as `policies.costs` wants it.

    Args:
        places: (O, 3), x and y in world units and presence of each of the model's objects in the wanted scene.
        objects: indices of those that count; of these, those that are not there do not.

    Raises:
        InputError: none of them is there.
    """

    def __init__(self, places: np.ndarray, objects: Sequence[int]) -> None:
        self.rows = [o for o in objects if places[o, 2] > 0.5]
        if not self.rows:
            raise InputError("goal", "a scene without a thing", "give a frame in which the model sees one")
        self.places = torch.from_numpy(np.asarray(places, np.float32)[self.rows, :2])

    def distance(self, positions: torch.Tensor) -> torch.Tensor:
        """Length (...) in world units of all ways that are left, as one vector, from positions (..., O, 2)."""
        return (positions[..., self.rows, :] - self.places.to(positions)).flatten(-2).norm(dim=-1)


def scene_cost(goal: str, model: WorldModel, wanted: Observation, places: np.ndarray, pusher: float = 0.15) -> Cost:
    """The cost of reaching the scene that another frame shows.

    Args:
        goal: "positions", or by the frame itself "image", "tokens" or "features"; see `build_cost`.
        model: who imagines.
        wanted: the frame.
        places: (O, 3), where its things are; see `SceneGoal`. PushT's pusher is one of them.
        pusher: weight of the table-top pusher's way to where the frame shows it, which is beside the cube that it pushed.

    Raises:
        ConfigError: another goal.
        InputError: a frame without things, or a model without the tokens or features that are asked for.
    """
    if goal in FRAME_GOALS:
        return WeightedSum([(FRAME_GOALS[goal], _frame_cost(goal, wanted.pixels, model))])
    if goal != "positions":
        raise ConfigError("goal", goal, f"choose positions or one of {tuple(FRAME_GOALS)}")
    things = list(range(len(model.objects)))
    if "T" in model.objects:
        return ObjectPositions(SceneGoal(places, things).distance)
    robot = [things.pop(model.objects.index("pusher"))]
    cubes = SceneGoal(places, things)
    walk = [(pusher, ObjectPositions(SceneGoal(places, robot).distance))] if places[robot[0], 2] > 0.5 else []
    lost = [(5.0, ObjectLost(cube)) for cube in cubes.rows]
    return WeightedSum([(1.0, ObjectPositions(cubes.distance)), *walk, *lost])


def can_plan(env: gymnasium.Env) -> bool:
    """Whether the env has something to plan for: the table-top's `task_spec`, or PushT's `aims`."""
    return isinstance(env.unwrapped, TaskWorld | MarkedWorld)


def build_cost(
    goal: str,
    env: gymnasium.Env,
    model: WorldModel,
    effort: float = 0.0,
    uncertainty: float = 0.0,
    picture: np.ndarray | None = None,
) -> Cost:
    """The cost of a goal mode for the scene in front of the robot.

    Args:
        goal: "positions" (the instruction's predicate on imagined positions), "reward" (the model's reward), or the frame at
            the end of a scripted expert's try at this very scene: "image" (in pixels), "tokens" (where its codes lie in the
            tokenizer's latent) or "features" (what the tokenizer's decoder has learnt to see in them). All add the walk behind
            the cube, in a unit of their own; without it a cube out of the horizon's reach does not attract the robot. PushT
            has positions and reward, any other env reward alone.
        env, model: the scene, and who imagines.
        effort, uncertainty: weights of `costs.ActionEffort` and `costs.Uncertainty` beside it.
        picture: (H, W, 3) uint8, what a goal by a frame is to reach instead, in any env and with nothing added.

    Raises:
        ConfigError: another goal, or a weight below 0.
        InputError: an env without a task, a task about an object that the model does not know, or a model without the tokens or
            features that are asked for.
    """
    if goal not in GOALS:
        raise ConfigError("goal", goal, f"choose one of {GOALS}")
    if picture is None:
        cost = _goal_cost(goal, env, model)
    else:
        frame = fitted(picture, model.image_size)
        cost = WeightedSum([(FRAME_GOALS[choice("goal", goal, FRAME_GOALS)], _frame_cost(goal, frame, model))])
    penalties = [(effort, ActionEffort()), (uncertainty, Uncertainty())]
    asked = [(weight, penalty) for weight, penalty in penalties if weight]
    return WeightedSum([(1.0, cost), *asked]) if asked else cost


def _goal_cost(goal: str, env: gymnasium.Env, model: WorldModel) -> Cost:
    world = env.unwrapped
    if isinstance(world, MarkedWorld):
        return pose_cost(goal, world.aims(), model.objects)
    task = task_of(world)
    if goal == "reward" and task is None:
        return WeightedSum([(10.0, RewardHead())])
    if task is None:
        rule = (
            "its instructions are not understood: give a cost_builder, as lambda env, model: GoalImage(frame), or on the "
            "command line goal=image and picture=FILE"
        )
        raise InputError("env", type(world).__name__, rule)
    if goal not in FRAME_GOALS:
        return task_cost(goal, task, model.objects)
    behind = _walk_behind(TaskGoal(task, model.objects))
    return WeightedSum([(FRAME_GOALS[goal], _frame_cost(goal, expert_goal(env), model)), (0.15, behind)])


def _frame_cost(goal: str, frame: np.ndarray, model: WorldModel) -> Cost:
    """How far a future ends from a frame (H, W, 3) uint8, in pixels or in what the model's tokenizer makes of it."""
    if goal == "image":
        return GoalImage(frame)
    tokenizer: Any = getattr(model, "tokenizer", None)  # a token model's own, of whatever kind
    if not hasattr(tokenizer, "places" if goal == "tokens" else "features"):
        raise InputError("goal", goal, f"{type(model).__name__} has none: choose another goal")
    codes_N = model.encode([Observation(frame, np.zeros(model.agent_dim, np.float32))]).codes_BCN[0, -1]
    return FeatureGoal(codes_N, code_features(tokenizer.places()) if goal == "tokens" else tokenizer.features)


def task_cost(goal: str, task: Task, objects: Sequence[str]) -> Cost:
    """The cost of a goal mode that needs no scene, "positions" or "reward": see `build_cost`.

    Raises:
        InputError: a task about a cube that the model does not know.
    """
    meant = TaskGoal(task, objects)
    behind = _walk_behind(meant)
    if goal == "reward":
        return WeightedSum([(10.0, RewardHead()), (0.15, behind)])
    return WeightedSum([(1.0, ObjectPositions(meant.distance_inside)), (0.15, behind), (5.0, ObjectLost(meant.cube))])


def _walk_behind(task: TaskGoal) -> BehindObject:
    return BehindObject(task.distance, task.target, task.pusher, task.cube)


def pose_cost(goal: str, aims: np.ndarray, objects: Sequence[str]) -> Cost:
    """The cost of PushT's only task, by goal mode, "positions" or "reward"; see `PoseGoal`.

    Raises:
        ConfigError: another goal.
        InputError: the model does not know pusher, T and tip.
    """
    if goal in FRAME_GOALS:
        raise ConfigError("goal", goal, "PushT has positions and reward")
    task = PoseGoal(aims, objects)
    wanted = (1.0, ObjectPositions(task.distance)) if goal == "positions" else (10.0, RewardHead())
    return WeightedSum([wanted, (0.1, ObjectPositions(task.away))])


def expert_goal(env: gymnasium.Env, steps: int = MAX_STEPS) -> np.ndarray:
    """The frame (H, W, 3) at the end of a scripted expert's try at the env's present scene, which is then put back."""
    world, task = env.unwrapped, task_of(env.unwrapped)
    assert isinstance(world, TaskWorld) and task is not None
    state, owner = world.get_state(), world.np_random
    world.np_random = np.random.default_rng(0)
    act = expert_policy(env)
    for _ in range(steps):
        world.act(act())
        if task.distance(world.positions()) <= 0:
            break
    frame = world.frame(world.config.image_size)
    world.np_random = owner
    world.set_state(state)
    return frame


def expert_policy(env: gymnasium.Env, avoiding: bool = False) -> Callable[[], np.ndarray]:
    """The scripted expert, which reads the simulator's truth: each call returns the next action (2,).

    Args:
        env: the table-top or PushT, after its reset.
        avoiding: on the table-top, leave the other cubes where they are.
    """
    world = env.unwrapped
    if isinstance(world, MarkedWorld):
        assert env.spec is not None
        pusht = behaviour_of(env.spec.id).begin(world, "expert", np.random.default_rng(0))
        return lambda: pusht(world.environment_state())

    assert isinstance(world, TaskWorld)
    expert, around = Expert(), AvoidingExpert()

    def act() -> np.ndarray:
        rows, task = world.environment_state().reshape(len(OBJECTS), 4).astype(np.float64), world.task_spec
        assert task is not None
        cube, others = cube_and_others(rows, task)
        if avoiding:
            return around.act(rows[0, :2], cube, task.targets(rows[:, :2]), others)
        return expert.act(rows[0, :2], cube, task.target(rows[:, :2]))

    return act
