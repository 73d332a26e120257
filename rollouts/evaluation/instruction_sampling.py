"""Scenes of the table-top with something to say of each: instructions for evaluations, those held out of training apart."""

from __future__ import annotations

import gymnasium
import numpy as np

from emu_embodied.envs.tabletop.tasks import OBJECTS, Task, TaskWorld, goal_tasks
from emu_embodied.rollouts.goals.hindsight_tabletop import is_held_out
from emu_embodied.rollouts.goals.subgoal_proposers import TemporaryTask
from emu_embodied.rollouts.goals.task_costs import MAX_STEPS, expert_policy
from emu_embodied.rollouts.simulator_model import PreservedState


def sampled_starts(env: gymnasium.Env, count: int, held_out: bool, first: int = 0) -> dict[int, str]:
    """Seeds of the env's reset, from `first` on, each with an instruction that a scripted expert can carry out there.

    Each kind of goal is equally likely, at least 2 cm are left to go. A seed whose scene has no such instruction is skipped.

    Args:
        env: the table-top; it is reset.
        count: how many.
        held_out: whether the instructions are those that hindsight never tells, or the others.
        first: seed to begin with.

    Returns:
        seed -> instruction, in the order of the seeds.
    """
    found: dict[int, str] = {}
    seed = first
    while len(found) < count:
        env.reset(seed=seed)
        if task := _draw(env, held_out, np.random.default_rng([seed, 21])):
            found[seed] = task.text
        seed += 1
    return found


def _draw(env: gymnasium.Env, held_out: bool, rng: np.random.Generator) -> Task | None:
    """A task of the env's present scene that the expert can do, with one of its sentences."""
    world = env.unwrapped
    assert isinstance(world, TaskWorld)
    there = tuple(n for n, row in zip(OBJECTS, world.environment_state().reshape(-1, 4), strict=True) if row[3])[1:]
    goals = [task for task in goal_tasks(there) if task.distance(world.positions()) > 2.0]
    goals = [task for task in goals if is_held_out(task) == held_out]
    while goals:
        kinds = sorted({task.kind for task in goals})
        kind = kinds[rng.integers(len(kinds))]
        same = [task for task in goals if task.kind == kind]
        task = same[rng.integers(len(same))]
        if _can(env, task):
            phrases = task.phrases()
            return Task(task.kind, task.cube, task.where, task.other, phrases[rng.integers(len(phrases))])
        goals.remove(task)
    return None


def _can(env: gymnasium.Env, task: Task) -> bool:
    """Whether the scripted expert gets there; the env is put back."""
    world = env.unwrapped
    assert isinstance(world, TaskWorld)
    with PreservedState(world, np.random.default_rng(0)), TemporaryTask(world, task.text or task.phrases()[0]):
        act = expert_policy(env, avoiding=True)
        for _ in range(MAX_STEPS):
            world.act(act())
            if world.judge()[1]:
                return True
    return False
