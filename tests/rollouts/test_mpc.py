"""The loop that plans, acts and observes: several envs at once as one by one, goals that change, nothing imagined in vain."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from linear_world import LinearWorld, ToPoint
from tiny import tiny_world_model

import emu_embodied.envs  # noqa: F401
from emu_embodied.policies.costs import RewardHead
from emu_embodied.policies.planners.cem import CEM, CEMConfig
from emu_embodied.rollouts.agents.mpc import MPCAgent, MPCConfig, run_episode
from emu_embodied.types import Observation

SMALL = CEMConfig(horizon=3, candidates=6, iterations=2, elites=2)
TEXTS = ("push the red cube to the left", "push the blue cube to the right", "push the green cube to the left")


def seen(rng: np.random.Generator, text: str) -> Observation:
    return Observation(rng.integers(0, 256, (64, 64, 3), np.uint8), np.zeros(2, np.float32), text)


def counted(model) -> list[int]:
    """Worlds x candidates of each call that imagines."""
    asked, real = [], model.rollout

    def rollout(history, actions, seeds=None):
        asked.append(len(history) * actions.shape[1])
        return real(history, actions, seeds)

    model.rollout = rollout
    return asked


def test_several_envs_are_driven_as_one_by_one_in_one_call_of_the_model():
    rng, model = np.random.default_rng(0), tiny_world_model()
    moments = [[seen(rng, text) for text in TEXTS] for _ in range(5)]
    alone = [MPCAgent(model, CEM(SMALL, seed=4 + b)) for b in range(3)]
    for agent, first in zip(alone, moments[0], strict=True):
        agent.reset([first], [RewardHead()])
    one_by_one = [[agent.act([now])[0] for agent, now in zip(alone, row, strict=True)] for row in moments]
    together, asked = MPCAgent(model, CEM(SMALL, seed=4)), counted(model)
    together.reset(moments[0], [RewardHead()] * 3)
    np.testing.assert_array_equal([together.act(row) for row in moments], one_by_one)
    assert asked == [3 * 6] * 6  # of three plans, two rounds each, for all envs


def test_an_env_that_begins_anew_does_not_disturb_its_neighbour():
    """Then the two plan at different steps, each with its own warm start."""
    rng, model = np.random.default_rng(1), tiny_world_model()
    moments, anew = [[seen(rng, text) for text in TEXTS[:2]] for _ in range(6)], 3
    alone = [MPCAgent(model, CEM(SMALL, seed=b)) for b in range(2)]
    together = MPCAgent(model, CEM(SMALL))
    together.reset(moments[0], [RewardHead()] * 2)
    for agent, first in zip(alone, moments[0], strict=True):
        agent.reset([first], [RewardHead()])
    for t, row in enumerate(moments):
        if t == anew:
            together.reset([row[1]], [RewardHead()], [1])
            alone[1].reset([row[1]], [RewardHead()])
        expected = [agent.act([now])[0] for agent, now in zip(alone, row, strict=True)]
        np.testing.assert_array_equal(together.act(row), expected)
        assert together.foreseen([0, 1]).equal(torch.cat([agent.foreseen([0]) for agent in alone]))


def test_what_is_foreseen_is_what_the_plan_was_imagined_to_lead_to():
    world, plans = LinearWorld(), []
    agent = MPCAgent(world, CEM(SMALL), MPCConfig(3), lambda plan, env, at: plans.append((plan, env, at)))
    place = world.at(0.0, 0.0)
    agent.reset([place], [ToPoint((2.0, -1.0))])
    for t in range(6):
        (action,) = agent.act([place])
        torch.testing.assert_close(agent.foreseen([0]), place.codes_BCN[:, -1])
        place, _ = world.step(place, action[None])
        plan = plans[-1][0]
        np.testing.assert_array_equal(action, plan.actions[t % 3])
        assert plan.candidate_costs.min() >= plan.cost and plan.candidates.rewards_BST.shape == (1, 6, 3)
    assert [(env, at) for _, env, at in plans] == [(0, 0), (0, 3)]


def test_a_plan_that_is_to_begin_anew_forgets_the_last():
    world = LinearWorld()
    agent = MPCAgent(world, CEM(SMALL), MPCConfig(1, warm=False))
    agent.reset([world.at(0.0, 0.0)], [ToPoint((2.0, -1.0))])
    first, second = (agent.act([world.at(0.0, 0.0)]) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("pictures", [True, False])
def test_an_episode_imagines_its_plans_and_no_more(pictures: bool):
    model = tiny_world_model()
    asked, rendered, real = counted(model), [], model.decode
    model.decode = lambda codes: rendered.append(len(codes)) or real(codes)
    env = gymnasium.make("emu_embodied/TabletopPush-v0")
    run = run_episode(env, model, CEM(SMALL), seed=2, max_steps=5, pictures=pictures)
    assert asked == [6] * 6 and rendered == [6] * pictures
    assert len(run.imagined) == 6 * pictures and (run.trace is not None) == pictures and len(run.plan_costs) == 3
