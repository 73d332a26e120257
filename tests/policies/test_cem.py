"""The planner on linear dynamics with a known optimum: quality, budget, warm start, bounds, determinism, bad costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from linear_world import LinearWorld, ToPoint, best_action

from emu_embodied.errors import InputError
from emu_embodied.policies.planners.cem import CEM, CEMConfig
from emu_embodied.protocols import Planner, WorldModel


def test_the_parts_keep_the_protocols():
    assert isinstance(LinearWorld(), WorldModel) and isinstance(CEM(), Planner)


def test_finds_the_known_optimum():
    world, goal = LinearWorld(), ToPoint((2.0, -1.0))
    config = CEMConfig(horizon=6, candidates=256, iterations=12, elites=24, min_std=0.01)
    plan = CEM(config, seed=1).plan(world, world.at(0, 0), goal)
    best_TA = best_action(goal.goal, 6).expand(6, 2)
    optimum = float(goal(world, world.rollout(world.at(0, 0), best_TA[None, None]), best_TA[None, None]))
    assert optimum <= plan.cost <= 1.02 * optimum
    np.testing.assert_allclose(plan.actions, best_TA, atol=0.15)


def test_the_default_budget_comes_near_the_optimum_in_closed_loop():
    world, goal = LinearWorld(), ToPoint((1.5, 1.0))
    planner, x = CEM(seed=3), np.zeros(2)
    for _ in range(6):
        plan = planner.plan(world, world.at(*x.tolist()), goal)
        x = x + LinearWorld.gain * plan.actions[: planner.config.execute].sum(0)
    assert np.linalg.norm(x - goal.goal) < 0.35  # effort holds it a little back


def test_an_optimum_outside_the_bounds_is_approached_at_the_bound():
    world = LinearWorld()
    plan = CEM(CEMConfig(horizon=4, iterations=6)).plan(world, world.at(0, 0), ToPoint((50.0, -50.0)))
    assert np.abs(plan.actions).max() <= 1 and (plan.actions * [1, -1]).mean() > 0.95
    assert all(asked.abs().max() <= 1 for asked in world.asked)


@pytest.mark.parametrize(
    "config", [CEMConfig(), CEMConfig(horizon=5, candidates=20, iterations=4, elites=20, held=1.0)]
)
def test_the_budget_is_what_the_model_was_asked_for(config: CEMConfig):
    world = LinearWorld()
    plan = CEM(config).plan(world, world.at(0, 0), ToPoint((1.0, 0.0)))
    asked = sum(actions.shape[0] * actions.shape[1] * actions.shape[2] for actions in world.asked)
    assert plan.predicted_frames == config.predicted_frames == asked
    assert plan.actions.shape == (config.horizon, 2) and plan.actions.dtype == np.float32
    assert len(plan.costs_by_iteration) == config.iterations and plan.seconds > 0


def test_the_default_budget():
    assert CEMConfig().predicted_frames == 1536


def test_elites_are_kept_so_the_best_cost_never_rises():
    world = LinearWorld()
    plan = CEM(CEMConfig(iterations=8, candidates=16, elites=4)).plan(world, world.at(0, 0), ToPoint((1.0, 2.0)))
    assert list(plan.costs_by_iteration) == sorted(plan.costs_by_iteration, reverse=True)
    assert plan.cost == plan.costs_by_iteration[-1]


def test_a_new_plan_starts_where_the_last_one_is_now():
    world, planner, goal = LinearWorld(), CEM(CEMConfig(execute=3)), ToPoint((2.0, 2.0))
    first = planner.plan(world, world.at(0, 0), goal)
    assert world.asked[0][0, 0].abs().max() == 0  # standing still is always a candidate
    world.asked.clear()
    planner.plan(world, world.at(0, 0), goal)
    still, best, mean = world.asked[0][0, :3]
    assert still.abs().max() == 0
    assert best.equal(torch.from_numpy(np.concatenate([first.actions[3:], first.actions[[-1] * 3]])))
    drawn = world.asked[0][0, 3:]
    spread = (drawn.mean(0) - mean).abs().max() / CEMConfig().initial_std
    assert spread < 0.6 and drawn.std(0).mean() > 0.4  # around the shifted mean, spread anew


def test_same_seed_same_plans_and_reset_starts_over():
    world, goal = LinearWorld(), ToPoint((1.0, -2.0))

    def plans(planner: CEM) -> np.ndarray:
        return np.stack([planner.plan(world, world.at(0, 0), goal).actions for _ in range(3)])

    planner = CEM(seed=5)
    once = plans(planner)
    torch.manual_seed(9)  # the global generator has no say
    assert np.array_equal(once, plans(CEM(seed=5))) and not np.array_equal(once, plans(CEM(seed=6)))
    planner.reset()
    assert np.array_equal(once, plans(planner))


@pytest.mark.parametrize(("correlation", "held", "low", "high"), [(0.0, 0.0, -0.1, 0.1), (0.8, 0.0, 0.65, 0.9)])
def test_noise_is_as_correlated_as_asked(correlation, held, low, high):
    world = LinearWorld()
    config = CEMConfig(candidates=512, iterations=1, correlation=correlation, held=held, initial_std=0.2)
    CEM(config).plan(world, world.at(0, 0), ToPoint((0.0, 0.0)))
    noise_STA = world.asked[0][0, 1:]
    neighbours = torch.stack([noise_STA[:, :-1].flatten(), noise_STA[:, 1:].flatten()])
    assert low < torch.corrcoef(neighbours)[0, 1] < high


def test_held_candidates_repeat_each_action_once():
    world = LinearWorld()
    CEM(CEMConfig(horizon=7, held=0.25, iterations=1)).plan(world, world.at(0, 0), ToPoint((0.0, 0.0)))
    pairs = (world.asked[0][0, :, 0:6:2] == world.asked[0][0, :, 1:6:2]).all((-2, -1))
    assert pairs[-16:].all() and not pairs[1:-16].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_cost_that_is_no_number_is_named(bad: float):
    world = LinearWorld()

    def cost(model, rollout, actions):
        costs = rollout.rewards_BST.sum(-1).clone()
        costs[0, 7] = bad
        return costs

    with pytest.raises(InputError, match=r"cost: 1 of 64 candidates are NaN or inf; check the cost's goal") as caught:
        CEM().plan(world, world.at(0, 0), cost)
    assert caught.value.field == "cost" and caught.value.remedy


def test_a_cost_of_another_shape_is_named():
    world = LinearWorld()
    with pytest.raises(InputError, match=r"cost: shape \(1, 64, 8\); .*\(1, 64\)"):
        CEM().plan(world, world.at(0, 0), lambda model, rollout, actions: rollout.rewards_BST)


def test_several_worlds_at_once_are_refused():
    world = LinearWorld()
    two = replace(world.at(0, 0), codes_BCN=torch.zeros(2, 1, 2))
    with pytest.raises(InputError, match="history: 2 worlds"):
        CEM().plan(world, two, ToPoint((0.0, 0.0)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("horizon", 0),
        ("horizon", 2.5),
        ("candidates", 4),
        ("candidates", True),
        ("iterations", 0),
        ("elites", 0),
        ("execute", 9),
        ("execute", 0),
        ("initial_std", 0.01),
        ("initial_std", float("nan")),
        ("momentum", 1.0),
        ("correlation", -0.1),
        ("held", 1.1),
    ],
)
def test_a_budget_that_does_not_fit_names_field_value_and_remedy(field: str, value: object):
    with pytest.raises(InputError) as caught:
        CEMConfig(**{field: value})
    assert caught.value.field == field and str(caught.value.value) == str(value) and caught.value.remedy
