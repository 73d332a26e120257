"""The avoiding pusher: it does what is asked for and leaves the other cubes where they are, where a rough one would not."""

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import emu_embodied.envs  # noqa: F401  registers them
from emu_embodied.envs.tabletop.tasks import COLOURS, GRID_CM, OBJECTS, goal_tasks
from emu_embodied.policies.experts.tabletop_avoiding import AvoidingExpert, gaps
from emu_embodied.rollouts.goals.task_costs import expert_policy

place = st.tuples(st.floats(-10, 10), st.floats(-10, 10)).map(np.array)


def play(instruction: str, cubes: dict, pusher: tuple, avoiding: bool, steps: int = 40) -> tuple[bool, float]:
    """Whether the expert gets there, and how far the other cubes have strayed, in cm."""
    env = gymnasium.make("emu_embodied/TabletopPush-v0")
    scene = {"instruction": instruction, "cubes": cubes, "pusher": pusher}
    env.reset(seed=0, options=scene)
    world, act = env.unwrapped, expert_policy(env, avoiding)
    before, others = world.positions(), [OBJECTS.index(name) for name in cubes if name != world.task_spec.cube]
    for _ in range(steps):
        world.act(act())
        if world.judge()[1]:
            break
    return world.judge()[1], float(np.linalg.norm(world.positions() - before, axis=-1)[others].max())


@pytest.mark.parametrize(
    ("instruction", "cubes", "pusher"),
    [
        ("push the red cube to the left", {"red": (6, 0, 0), "blue": (-1, 0.5, 0.3)}, (10, 5)),  # stands in the way
        (
            "push the red cube to the left",
            {"red": (2, 0, 0), "blue": (4, 6, 0.3)},
            (-2, 8),
        ),  # stands in the robot's way
        ("push the green cube to the right", {"green": (0, 3, 0), "red": (7.5, 3, 0)}, (-9, -9)),  # where it would go
    ],
)
def test_it_goes_around_what_a_rough_pusher_takes_along(instruction, cubes, pusher):
    rough, avoiding = (play(instruction, cubes, pusher, avoiding) for avoiding in (False, True))
    assert rough[1] > 0.5
    assert avoiding[0] and avoiding[1] < 0.3


def test_alone_it_pushes_as_the_rough_one():
    scene = ("push the red cube to the left", {"red": (5, 2, 0.4)}, (-3, 3))
    env = gymnasium.make("emu_embodied/TabletopPush-v0")
    ways = []
    for avoiding in (False, True):
        env.reset(seed=0, options=dict(zip(("instruction", "cubes", "pusher"), scene, strict=True)))
        act = expert_policy(env, avoiding)
        for _ in range(8):
            env.unwrapped.act(act())
        ways.append(env.unwrapped.get_state())
    assert np.array_equal(*ways)


def test_where_nothing_is_free_it_pushes_straight():
    wall = np.array([[-2.0, y] for y in (-9, -4.5, 0, 4.5, 9)])
    expert = AvoidingExpert()
    action = expert.act(np.array([9.0, 0]), np.array([5.0, 0]), np.array([[-7.5, 0.0]]), wall)
    assert np.array_equal(expert.route[0], [-7.5, 0]) and action[0] < -0.9 and abs(action[1]) < 0.1


@given(place, place, place)
def test_gaps_are_distances_from_the_line(start, end, other):
    nearest = min(np.linalg.norm(start + share * (end - start) - other) for share in np.linspace(0, 1, 200))
    assert gaps(start, end[None], other[None])[0, 0] == pytest.approx(nearest, abs=0.1)


@given(st.sampled_from(goal_tasks(COLOURS)), st.lists(place, min_size=len(OBJECTS), max_size=len(OBJECTS)))
def test_targets_are_all_in_the_goal(task, positions):
    positions = np.stack(positions)
    targets = task.targets(positions)
    assert np.array_equal(targets[0], task.target(positions)) and {*map(tuple, targets[1:])} <= {*map(tuple, GRID_CM)}
    for target in targets[1:]:
        there = positions.copy()
        there[OBJECTS.index(task.cube)] = target
        assert task.distance(there) == 0
