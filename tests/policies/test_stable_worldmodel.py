"""stable-worldmodel's own solvers plan in our world models."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from linear_world import LinearWorld, ToPoint, best_action
from tiny import tiny_world_model

from emu_embodied.envs.tabletop.tasks import COLOURS, all_tasks
from emu_embodied.errors import InputError
from emu_embodied.policies.stable_worldmodel import CostableWorldModel
from emu_embodied.rollouts.goals.task_costs import task_cost
from emu_embodied.types import Observation

GOAL = ToPoint((2.0, -1.0))


@pytest.fixture(scope="module")
def swm():
    """The package's solvers and PlanConfig."""
    with warnings.catch_warnings(action="ignore"):
        solver = pytest.importorskip("stable_worldmodel.solver", reason="stable-worldmodel is not installed")
        from stable_worldmodel.policy import PlanConfig
    solver.PlanConfig = PlanConfig
    return solver


class Seen(LinearWorld):
    """A linear world that starts where its first pixel says."""

    def encode(self, observations):
        return self.at(*(float(x) for o in observations for x in o.pixels[0, 0, :2]))


def configured(swm, solver, worlds: int, horizon: int, block: int = 1):
    space = gymnasium.spaces.Box(-1, 1, (worlds, 2), np.float32)
    solver.configure(action_space=space, n_envs=worlds, config=swm.PlanConfig(horizon, 2, action_block=block))
    return solver


def test_its_cem_finds_our_known_optimum(swm):
    world = Seen()
    model = CostableWorldModel(world, GOAL)
    solver = configured(swm, swm.CEMSolver(model, num_samples=256, n_steps=12, topk=24, batch_size=2), 2, 6)
    pixels = np.zeros((2, 1, 8, 8, 3), np.uint8)
    found = solver.solve({"pixels": torch.from_numpy(pixels)})["actions"]
    assert found.shape == (2, 6, 2)
    for actions in found:
        torch.testing.assert_close(actions, best_action(GOAL.goal, 6).expand(6, 2), atol=0.15, rtol=0)


@pytest.mark.parametrize("name", ["ICEMSolver", "MPPISolver", "PredictiveSamplingSolver"])
def test_its_other_solvers_run_too(swm, name: str):
    world = Seen()
    solver = configured(swm, getattr(swm, name)(CostableWorldModel(world, GOAL), num_samples=128), 1, 3, block=2)
    found = solver.solve({"pixels": torch.zeros(1, 1, 8, 8, 3, dtype=torch.uint8)})["actions"]
    actions = found.clamp(-1, 1).reshape(1, 1, 6, 2)
    still = float(GOAL(world, world.rollout(world.at(0.0, 0.0), 0 * actions), 0 * actions))
    assert found.shape == (1, 3, 4) and float(GOAL(world, world.rollout(world.at(0.0, 0.0), actions), actions)) < still


def test_its_cem_and_its_gradient_plan_in_a_model_of_tokens(swm):
    model, task = tiny_world_model(), all_tasks(COLOURS)[0]
    adapted = CostableWorldModel(model, task_cost("positions", task, model.objects))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 1, 64, 64, 3), np.uint8)
    info = {"pixels": torch.from_numpy(pixels), "instruction": np.array([task.text] * 3)}
    for solver in (
        swm.CEMSolver(adapted, num_samples=6, n_steps=2, topk=3, batch_size=2),
        swm.GradientSolver(adapted, num_samples=2, n_steps=2),
    ):
        found = configured(swm, solver, 3, 3).solve(info)["actions"]
        assert found.shape == (3, 3, 2) and torch.isfinite(found).all()


# What it says, without the package


def info_of(pixels: np.ndarray, candidates: int, **more) -> dict:
    return {"pixels": np.repeat(pixels[:, None], candidates, 1)} | more


def test_costs_are_those_of_the_model():
    model, task = tiny_world_model(), all_tasks(COLOURS)[0]
    cost = task_cost("positions", task, model.objects)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    actions = torch.rand(2, 3, 2, 4) * 4 - 2  # two at a step, some out of bounds
    costs = CostableWorldModel(model, cost).get_cost(info_of(pixels, 3, instruction=[task.text] * 2), actions)
    history = model.encode([Observation(p, np.zeros(2, np.float32), task.text) for p in pixels])
    inside = actions.clamp(-1, 1).reshape(2, 3, 4, 2)
    torch.testing.assert_close(costs, cost(model, model.rollout(history, inside), inside))
    older = info_of(np.stack([0 * pixels, pixels], 1), 3, instruction=[task.text] * 2)  # a history of two frames
    assert costs.equal(CostableWorldModel(model, cost).get_cost(older, actions))


@pytest.mark.parametrize(
    ("info", "actions", "message"),
    [
        ({"state": np.zeros((1, 1))}, torch.zeros(1, 1, 2, 2), r'info_dict: .*give "pixels"'),
        ({"pixels": np.zeros((1, 8, 8, 3), np.uint8)}, torch.zeros(1, 1, 2, 2), r"pixels: shape \(1, 8, 8, 3\)"),
        ({"pixels": np.zeros((1, 1, 8, 8, 3), np.uint8)}, torch.zeros(1, 1, 2, 3), r"action_candidates: .*block \* 2"),
        (
            {"pixels": np.zeros((1, 1, 8, 8, 3), np.uint8), "instruction": ["a", "b"]},
            torch.zeros(1, 1, 2, 2),
            "instruction: 2 of them; give one for each of 1 worlds",
        ),
    ],
)
def test_what_does_not_fit_is_named(info, actions, message):
    with pytest.raises(InputError, match=message):
        CostableWorldModel(Seen(), GOAL).get_cost(info, actions)
