"""Costs against their formulas, on futures made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emu_embodied.errors import InputError
from emu_embodied.framing import fitted
from emu_embodied.policies import costs
from emu_embodied.protocols import Cost
from emu_embodied.types import Rollout

SIZE = 64


class Canvas:
    """The least of a world model that costs use: codes are a square's column, which decode draws."""

    image_size = SIZE

    def decode(self, codes: torch.Tensor) -> np.ndarray:
        frames = np.full((*codes.shape[:-1], SIZE, SIZE, 3), 200, np.uint8)
        for place in np.ndindex(codes.shape[:-1]):
            x = int(codes[place][0])
            frames[place][28:36, x : x + 8] = (220, 30, 30)
        return frames


def rollout(batch: int = 1, candidates: int = 1, steps: int = 3, objects: int = 2, **given) -> Rollout:
    """A future of zeros, with the fields given by name."""
    lead = (batch, candidates, steps)
    fields = {
        "codes_BSTN": torch.zeros(*lead, 1, dtype=torch.int64),
        "rewards_BST": torch.zeros(lead),
        "success_BST": torch.zeros(lead),
        "positions_BSTOD": torch.zeros(*lead, objects, 2),
        "presence_BSTO": torch.ones(*lead, objects),
        "entropy_BST": torch.zeros(lead),
    }
    return Rollout(**fields | given)


def score(cost, future: Rollout, actions: torch.Tensor | None = None) -> torch.Tensor:
    actions = torch.zeros(*future.rewards_BST.shape, 2) if actions is None else actions
    assert isinstance(cost, Cost)
    result = cost(Canvas(), future, actions)
    assert result.shape == future.rewards_BST.shape[:2] and result.dtype == torch.float32
    return result


def x_of(object: int):
    """Distance: how far right of 0 an object is."""
    return lambda positions: positions[..., object, 0].clamp(min=0)


def test_object_positions_weighs_the_end_against_the_way():
    positions = torch.zeros(1, 2, 3, 2, 2)
    positions[0, 0, :, 1, 0] = torch.tensor([6.0, 4.0, 2.0])
    positions[0, 1, :, 1, 0] = torch.tensor([2.0, 4.0, 6.0])  # it was 2 once: that counts
    future = rollout(candidates=2, positions_BSTOD=positions)
    torch.testing.assert_close(score(costs.ObjectPositions(x_of(1)), future), torch.tensor([[3.0, 2.0]]))
    torch.testing.assert_close(score(costs.ObjectPositions(x_of(1), end=1.0), future), torch.tensor([[2.0, 2.0]]))


def behind(left: float = 1.0) -> costs.BehindObject:
    def distance(positions):
        return torch.full(positions.shape[:-2], left)

    def target(positions):
        return positions[..., 1, :] + torch.tensor([3.0, 0.0])  # push to the right: stand on the left

    return costs.BehindObject(distance, target, robot=0, object=1, radius=4.0)


@pytest.mark.parametrize(
    ("robot", "walk"),
    [
        ((-4, 0), 0.0),
        ((-7, 0), 3.0),
        ((4, 0), 4 * math.pi),  # in front of it: half around
        ((0, 4), 2 * math.pi),
        ((-4, 3), 3.0),
        ((5, 0), 3 + 4 * (math.pi - math.acos(0.8))),
        ((-1, 0), 3.0),  # too near: out first
    ],
)
def test_behind_object_is_the_walk_around_it(robot: tuple[float, float], walk: float):
    positions = torch.zeros(1, 1, 2, 2, 2)
    positions[0, 0, :, 1] = torch.tensor([2.0, 1.0])
    positions[0, 0, -1, 0] = positions[0, 0, -1, 1] + torch.tensor(robot, dtype=torch.float32)
    future = rollout(steps=2, positions_BSTOD=positions)
    torch.testing.assert_close(score(behind(), future), torch.tensor([[walk]]), atol=2e-3, rtol=0)
    assert score(behind(left=0.0), future) == 0  # nothing to do: stand anywhere


@given(
    st.floats(-12, 12), st.floats(-12, 12), st.floats(0, 2 * math.pi), st.floats(-0.01, 0.01), st.floats(-0.01, 0.01)
)
def test_the_walk_is_no_shorter_than_the_straight_line_and_has_no_jumps(x, y, angle, dx, dy):
    direction = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    start = torch.tensor([x, y], dtype=torch.float64)
    walk = float(costs.walk_around(start, direction, 4.0))
    assert walk >= float((start - 4 * direction).norm()) - 1e-5 or start.norm() < 4
    if start.norm() > 1:
        step = torch.tensor([dx, dy], dtype=torch.float64)
        assert abs(float(costs.walk_around(start + step, direction, 4.0)) - walk) <= 5 * float(step.norm()) + 1e-5


def test_object_lost_is_the_share_of_absence():
    presence = torch.tensor([[1.0, 1.0], [1.0, 0.5], [1.0, 0.0]])[None, None]
    assert score(costs.ObjectLost(1), rollout(presence_BSTO=presence)) == 0.5
    assert score(costs.ObjectLost(0), rollout(presence_BSTO=presence)) == 0


def test_reward_head_is_the_negative_discounted_mean():
    future = rollout(rewards_BST=torch.tensor([[[1.0, 2.0, 4.0]]]))
    torch.testing.assert_close(score(costs.RewardHead(0.5), future), torch.tensor([[-1.0]]))
    torch.testing.assert_close(score(costs.RewardHead(), future), torch.tensor([[-7 / 3]]))


def test_goal_image_sees_a_thing_come_nearer_before_it_overlaps():
    goal = Canvas().decode(torch.tensor([40]))
    codes = torch.zeros(1, 4, 2, 1, dtype=torch.int64)
    codes[0, :, -1, 0] = torch.tensor([40, 36, 24, 4])
    found = score(costs.GoalImage(goal), rollout(candidates=4, steps=2, codes_BSTN=codes))[0]
    assert found[0] == 0 and found[0] < found[1] < found[2] < found[3] < 1


@pytest.mark.parametrize(
    "goal", [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3), np.float32), torch.zeros(64, 64, 3), None]
)
def test_a_goal_that_is_no_image_is_refused(goal):
    with pytest.raises(InputError, match="goal image: .*give uint8 RGB of shape"):
        costs.GoalImage(goal)


def test_a_goal_image_of_another_size_is_letterboxed_as_frames_are():
    wide = np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)
    assert torch.equal(score(costs.GoalImage(wide), rollout()), score(costs.GoalImage(fitted(wide, 64)), rollout()))
    small = costs.GoalImage(np.zeros((96, 96, 3), np.uint8), coarseness=(80,))
    with pytest.raises(InputError, match="coarseness: 80"):
        score(small, rollout())
    with pytest.raises(InputError, match="coarseness: 97"):
        costs.GoalImage(np.zeros((96, 96, 3), np.uint8), coarseness=(97,))


def test_action_effort_is_the_mean_square():
    actions = torch.tensor([[[[1.0, 0.0], [0.0, 0.0], [0.0, -1.0]]]])
    torch.testing.assert_close(score(costs.ActionEffort(), rollout(), actions), torch.tensor([[1 / 3]]))


# Goals as features of codes: a 2 x 2 grid of codes that lie on a line, 0 1 2 3

LINE = torch.arange(4.0)[:, None]


def last(*codes: list[int]) -> Rollout:
    """A future for each list of codes, which it ends with."""
    ends = torch.tensor(codes)[None, :, None]
    return rollout(candidates=len(codes), steps=2, codes_BSTN=torch.cat([torch.zeros_like(ends), ends], 2))


def test_a_feature_goal_sees_how_far_codes_are_from_the_goals():
    goal = costs.FeatureGoal(torch.tensor([0, 0, 0, 3]), costs.code_features(LINE), coarseness=(1,), foreground=1.0)
    found = score(goal, last([0, 0, 0, 3], [0, 0, 0, 2], [0, 0, 0, 0], [0, 0, 1, 3]))[0]
    variance = 3 * 0.75**2 + 2.25**2  # of 0, 0, 0, 3, times 4
    torch.testing.assert_close(found, torch.tensor([0, 1, 9, 1]) / variance)


def test_a_feature_goal_sees_things_come_nearer_and_weighs_what_is_no_background():
    grid = torch.zeros(4, 4, dtype=torch.int64)
    grid[3, 3] = 3
    places = [grid.roll((-i, -i), (0, 1)).flatten().tolist() for i in range(3)]
    goal = costs.FeatureGoal(grid.flatten(), costs.code_features(LINE))
    found = score(goal, last(*places, [0] * 16))[0]
    assert found[0] == 0 and found[0] < found[1] < found[2]
    heavier = costs.FeatureGoal(grid.flatten(), costs.code_features(LINE), foreground=80.0)
    assert goal.background == 0 and heavier.weight_1gg.max() == 80
    assert score(heavier, last(places[1]))[0] != score(goal, last(places[1]))[0]


@pytest.mark.parametrize(
    "codes", [torch.zeros(3, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64), torch.zeros(4)]
)
def test_goal_codes_that_are_no_square_of_whole_numbers_are_refused(codes):
    with pytest.raises(InputError, match="goal codes: .*give int64 of shape"):
        costs.FeatureGoal(codes, costs.code_features(LINE))


def test_features_that_do_not_fit_are_refused():
    four = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(InputError, match=r"goal features: shape \(1, 4\); give finite numbers of shape \(M, D, 2, 2\)"):
        costs.FeatureGoal(four, lambda codes: codes.float(), coarseness=(1,))
    with pytest.raises(InputError, match="goal features: "):
        costs.FeatureGoal(four, costs.code_features(LINE * float("nan")), coarseness=(1,))
    with pytest.raises(InputError, match="codes: 4; give codes from 0 to 3"):
        costs.FeatureGoal(four + 4, costs.code_features(LINE), coarseness=(1,))
    with pytest.raises(InputError, match=r"table: torch.float32 \(4,\); give"):
        costs.code_features(LINE[:, 0])
    for coarseness, found in (((3,), "3"), ((), "none")):
        with pytest.raises(InputError, match=f"coarseness: {found}"):
            costs.FeatureGoal(four, costs.code_features(LINE), coarseness=coarseness)
    goal = costs.FeatureGoal(four, costs.code_features(LINE), coarseness=(1,))
    with pytest.raises(InputError, match=r"goal codes: shape \(4,\); give shape \(9,\)"):
        score(goal, last([0] * 9))


def test_uncertainty_is_the_mean_entropy():
    future = rollout(entropy_BST=torch.tensor([[[0.5, 1.0, 3.0]]]))
    torch.testing.assert_close(score(costs.Uncertainty(), future), torch.tensor([[1.5]]))


def test_each_world_has_its_own_cost():
    future = rollout(batch=2, candidates=3, rewards_BST=torch.ones(2, 3, 3), entropy_BST=torch.full((2, 3, 3), 0.5))
    found = score(costs.PerWorld([costs.RewardHead(), costs.Uncertainty()]), future)
    assert found.tolist() == [[-1.0] * 3, [0.5] * 3]
    with pytest.raises(InputError, match="costs: 1 of them; give one for each of 2 worlds"):
        score(costs.PerWorld([costs.RewardHead()]), future)


@given(st.floats(-12, 12), st.floats(-12, 12), st.floats(0, 2 * math.pi))
def test_the_walk_has_a_slope_everywhere_and_is_the_same_with_one(x, y, angle):
    direction = torch.tensor([math.cos(angle), math.sin(angle)])
    start = torch.tensor([x, y])
    with_slope = costs.walk_around(start.clone().requires_grad_(), direction, 4.0)
    torch.testing.assert_close(with_slope.detach(), costs.walk_around(start, direction, 4.0), atol=2e-2, rtol=0)
    at = start.clone().requires_grad_()
    costs.walk_around(at, direction, 4.0).backward()
    assert torch.isfinite(at.grad).all()


def test_a_weighted_sum_is_one():
    future = rollout(rewards_BST=torch.ones(1, 1, 3))
    actions = torch.ones(1, 1, 3, 2)
    both = costs.WeightedSum([(2.0, costs.RewardHead()), (0.5, costs.ActionEffort())])
    assert score(both, future, actions) == -1.5


@pytest.mark.parametrize("terms", [[], [(float("nan"), costs.RewardHead())], [("1", costs.RewardHead())]])
def test_a_sum_of_nothing_or_of_no_weights_is_refused(terms):
    with pytest.raises(InputError):
        costs.WeightedSum(terms)
