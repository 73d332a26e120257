"""The scripted pushers: the expert succeeds, and the mix that makes the data moves cubes."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

import emu_embodied.envs  # noqa: F401  registers the env
from emu_embodied.envs.tabletop.env import STATE_NAMES
from emu_embodied.envs.tabletop.tasks import OBJECTS
from emu_embodied.policies.experts.tabletop import Collector, Expert
from emu_embodied.rollouts.collection.collect import moving_steps
from emu_embodied.rollouts.collection.data_policies import behaviour_of
from emu_embodied.rollouts.collection.episodes import collect_episode


@pytest.fixture(scope="module")
def env():
    env = gymnasium.make(
        "emu_embodied/TabletopPush-v0", image_size=16, terminate_on_success=False, max_episode_steps=-1
    )
    yield env
    env.close()


def expert_succeeds(env, seed: int, steps: int = 40) -> bool:
    env.reset(seed=seed)
    world, expert = env.unwrapped, Expert()
    cube = OBJECTS.index(world.task_spec.cube)
    for _ in range(steps):
        positions = world.positions().astype(np.float64)
        if world.task_spec.distance(positions) == 0:
            return True
        world.act(expert.act(positions[0], positions[cube], world.task_spec.target(positions)).astype(np.float64))
    return bool(world.task_spec.distance(world.positions()) == 0)


def test_the_expert_succeeds_within_40_steps(env):
    assert np.mean([expert_succeeds(env, seed) for seed in range(40)]) >= 0.85


def test_the_mix_moves_cubes_and_sometimes_succeeds(env):
    episodes = [collect_episode(env, seed, 40) for seed in range(25)]
    moving = sum(moving_steps(episode.states, STATE_NAMES) for episode in episodes)
    assert moving / (25 * 40) >= 0.4
    assert 0.3 < np.mean([episode.successes.any() for episode in episodes]) < 0.95


def test_an_episode_has_the_shapes_and_ranges_it_promises(env):
    episode = collect_episode(env, 7, 12)
    assert episode.pixels.shape == (13, 16, 16, 3) and episode.pixels.dtype == np.uint8
    assert episode.agent_pos.shape == (13, 2) and episode.states.shape == (13, len(STATE_NAMES))
    assert episode.actions.shape == (12, 2) and np.abs(episode.actions).max() <= 1
    assert {array.dtype for array in (episode.agent_pos, episode.states, episode.actions, episode.rewards)} == {
        np.dtype(np.float32)
    }
    assert episode.successes.shape == episode.rewards.shape == (12,) and episode.successes.dtype == bool
    assert np.array_equal(episode.agent_pos, episode.states[:, :2])


def test_the_same_seed_plays_the_same_episode(env):
    first, other, again = (collect_episode(env, seed, 10) for seed in (3, 4, 3))
    for name in ("pixels", "agent_pos", "states", "actions", "rewards", "successes"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.actions, other.actions)


def test_the_shares_are_shares_of_known_styles():
    shares = behaviour_of("emu_embodied/TabletopPush-v0").styles
    assert set(shares) == set(Collector.STYLES) and sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("style", Collector.STYLES)
def test_every_style_stays_in_the_action_space(style: str):
    rng = np.random.default_rng(0)
    policy = Collector(style, rng)
    for _ in range(200):
        positions = rng.uniform(-10, 10, (len(OBJECTS), 2))
        action = policy.act(positions, np.arange(len(OBJECTS)) < 3, 1, rng.uniform(-9, 9, 2))
        assert action.shape == (2,) and action.dtype == np.float32 and np.abs(action).max() <= 1


def test_the_expert_rests_at_its_target():
    assert not Expert().act(np.array([5.0, 0.0]), np.zeros(2), np.array([0.1, 0.1])).any()
