"""Worlds of others through the one adapter: each has the house's interface, is the same for a seed, and can be recorded."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import emu_embodied.envs  # noqa: F401  registers the envs
from emu_embodied.commands import main
from emu_embodied.commands._config import compose_config
from emu_embodied.envs.external import specs
from emu_embodied.envs.registration import ADAPTED
from emu_embodied.errors import ConfigError, InputError, SimulationError
from emu_embodied.policies.experts.arms import Straying
from emu_embodied.rollouts.collection import collect as collecting
from emu_embodied.rollouts.collection.data_policies import behaviour_of
from emu_embodied.rollouts.collection.episodes import collect_episode
from emu_embodied.rollouts.collection.shards import split
from emu_embodied.types import AGENT_POS, IS_SUCCESS, PIXELS

NEEDS = {
    "fetch_reach": "gymnasium_robotics",
    "fetch_push": "gymnasium_robotics",
    "aloha": "gym_aloha",
    "metaworld": "metaworld",
}
WORLDS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None,
            reason=f"{NEEDS.get(name)} is not installed",
        ),
    )
    for name in ADAPTED
]
SLOW = ("aloha", "metaworld")  # to draw
every_world = pytest.mark.parametrize("name", WORLDS)
_made: dict[str, gymnasium.Env] = {}


def env_of(name: str) -> gymnasium.Env:
    """The world as its configuration has it, made once."""
    if name not in _made:
        config = compose_config("collect", [f"env={name}", "episodes=1"])
        options = {**config.env.options, "image_size": 32, "terminate_on_success": False}
        _made[name] = gymnasium.make(config.env.id, max_episode_steps=-1, **options)
    return _made[name]


@pytest.fixture(scope="module", autouse=True)
def closed():
    yield
    while _made:
        _made.popitem()[1].close()


def actions_of(env: gymnasium.Env, count: int) -> np.ndarray:
    return np.random.default_rng(5).uniform(-0.5, 0.5, (count, *env.action_space.shape)).astype(np.float32)


def seen(env: gymnasium.Env, seed: int, steps: int = 2) -> list[np.ndarray]:
    """All that an episode shows."""
    observation, info = env.reset(seed=seed)
    found = [*observation.values(), info["environment_state"]]
    for action in actions_of(env, steps):
        observation, reward, _, _, info = env.step(action)
        found += [*observation.values(), info["environment_state"], np.array(reward)]
    return found


@every_world
def test_gymnasium_accepts_it(name):
    check_env(env_of(name).unwrapped, skip_render_check=True)


@every_world
def test_it_speaks_the_house_language(name):
    env = env_of(name)
    world = env.unwrapped
    config = compose_config("collect", [f"env={name}", "episodes=1"]).env
    assert config.id == env.spec.id == ADAPTED[name][0]
    observation, info = env.reset(seed=1)
    for action in actions_of(env, 2):
        assert set(observation) == {PIXELS, AGENT_POS} and env.observation_space.contains(observation)
        assert observation[PIXELS].shape == (32, 32, 3) and observation[PIXELS].dtype == np.uint8
        assert observation[AGENT_POS].dtype == np.float32 and np.isfinite(env.observation_space[AGENT_POS].low).all()
        assert observation[PIXELS].std() > 5  # there is something to see
        assert type(info[IS_SUCCESS]) is bool and info["task"] == world.task == world.task_description != ""
        assert info["environment_state"].shape == (len(world.state_names),) == (len(set(world.state_names)),)
        assert info["environment_state"].dtype == np.float32
        observation, reward, terminated, truncated, info = env.step(action)
        assert type(reward) is float and not terminated and not truncated
    assert env.action_space == gymnasium.spaces.Box(-1.0, 1.0, (len(world.action_names),), np.float32)
    assert list(config.world.action_names) == list(world.action_names)
    assert len(world.agent_names) == len(observation[AGENT_POS]) and world.metadata["render_fps"] >= 1


@every_world
def test_a_seed_is_an_episode(name):
    env = env_of(name)
    first, other, again = seen(env, 3), seen(env, 4), seen(env, 3)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[2], other[2])


@every_world
def test_a_bad_action_is_refused_and_changes_nothing(name):
    env = env_of(name)
    env.reset(seed=0)
    before, good = env.unwrapped.get_state(), np.zeros(env.action_space.shape, np.float32)
    for bad in (good + np.nan, good + np.inf, good + 1.5, good[:-1], good.astype(str), None):
        with pytest.raises(InputError, match="action"):
            env.unwrapped.step(bad)
    assert np.array_equal(env.unwrapped.get_state(), before)


@every_world
def test_a_state_set_again_has_the_same_future(name):
    world = env_of(name).unwrapped
    world.reset(seed=2)
    actions = actions_of(world, 4)
    world.act(actions[0])
    state, futures = world.get_state(), []
    for _ in range(2):
        world.set_state(state)
        rewards = [world.act(action) for action in actions[1:]]
        futures.append((rewards, world.points()[0], world.get_state()))
    assert futures[0][0] == futures[1][0]
    assert np.array_equal(futures[0][1], futures[1][1]) and np.array_equal(futures[0][2], futures[1][2])
    assert not np.array_equal(futures[0][2], state)


@every_world
def test_physics_that_leave_the_numbers_name_the_episode(name):
    world = env_of(name).unwrapped
    world.reset(seed=77)
    world._data.qpos[0] = np.nan
    with pytest.raises(SimulationError, match="seed 77"):
        world.step(np.zeros(world.action_space.shape, np.float32))
    world.reset(seed=78)  # and the next one is well
    world.step(np.zeros(world.action_space.shape, np.float32))


@every_world
@pytest.mark.parametrize("style", Straying.STYLES)
def test_the_data_policy_stays_in_the_action_space(name, style):
    world = env_of(name).unwrapped
    world.reset(seed=6)
    act = behaviour_of(world.spec.id if world.spec else ADAPTED[name][0]).begin(world, style, np.random.default_rng(1))
    moved = []
    for _ in range(6):
        action = act(world.environment_state())
        assert action.dtype == np.float32 and world.action_space.contains(action)
        world.act(action)
        moved.append(world.get_state())
    assert not np.array_equal(moved[0], moved[-1])


@pytest.mark.parametrize(
    "name", [world for world in WORLDS if world.values[0] in ("reacher", "fetch_reach", "fetch_push", "metaworld")]
)
def test_the_expert_succeeds(name):
    """In most of these few episodes; Pusher's and ALOHA's are heuristics that make motion, and are not asked to."""
    world, successes = env_of(name).unwrapped, 0
    for seed in range(3):
        world.reset(seed=seed)
        act = behaviour_of(ADAPTED[name][0]).begin(world, "expert", np.random.default_rng(seed))
        for _ in range(40):
            world.act(act(world.environment_state()))
            if world.reading.success(world.inner, world.points()[0], world._last):
                successes += 1
                break
    assert successes >= 2


def record(env: gymnasium.Env, folder: Path, seed: int, episodes: int, steps: int):
    """What a worker of `collect` does, and its parent then, in this process: theirs take 20 s to start."""
    settings, shard = collecting.CollectSettings(env.spec.id, {}, episodes, steps, seed), split(episodes, 25)[0]
    heard: list[tuple] = []
    names = {
        "observation.state": env.unwrapped.agent_names,
        "observation.environment_state": env.unwrapped.state_names,
        "action": env.unwrapped.action_names,
    }
    collecting._record_shard(env, shard, settings, names, folder, heard.append)
    assert [value for kind, value in heard if kind == "episode"] == list(range(seed, seed + episodes))
    return collecting._join(settings, folder / "data", [shard], folder, complete=True)


@every_world
def test_collect_makes_a_dataset_that_lerobot_reads(name, tmp_path):
    episodes, steps = (1, 2) if name in SLOW else (2, 3)
    record(env_of(name), tmp_path, 0, episodes, steps)
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/worlds", root=tmp_path / "data")
    world = env_of(name).unwrapped
    assert dataset.num_episodes == episodes and len(dataset) == episodes * (steps + 1)
    row = dataset[1]
    assert row["observation.image"].shape == (3, 32, 32) and row["task"] == world.task
    assert dataset.features["observation.environment_state"]["names"] == list(world.state_names)
    assert dataset.features["action"]["names"] == list(world.action_names)
    assert dataset.features["observation.state"]["names"] == list(world.agent_names)


class Sick(gymnasium.Wrapper):
    """The world, but in one episode its physics leave the numbers."""

    def __init__(self, env: gymnasium.Env, seeds) -> None:
        super().__init__(env)
        self.seeds, self.sick = seeds, False

    def reset(self, *, seed=None, options=None):
        self.sick = seed in self.seeds
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        if self.sick:
            self.unwrapped._data.qvel[0] = np.nan
        return self.env.step(action)


def test_an_episode_that_leaves_the_numbers_leaves_the_others(tmp_path):
    summary = record(Sick(env_of("reacher"), (11,)), tmp_path, 10, 3, 4)
    assert (summary.episodes, summary.failed, summary.frames) == (2, 1, 10)
    ((seed, reason),) = json.loads((tmp_path / "data" / "meta" / "emu_embodied.json").read_text())["failures"]
    assert seed == 11 and "seed 11" in reason
    from emu_embodied.data.frame_cache import build_frame_cache

    cache = build_frame_cache(tmp_path / "data")
    assert cache.episodes == 2 and np.array_equal(cache.pixels[5], collect_episode(env_of("reacher"), 12, 4).pixels[0])
    with pytest.raises(SimulationError, match="3 of 3"):
        record(Sick(env_of("reacher"), (10, 11, 12)), tmp_path / "all", 10, 3, 4)


def test_it_trains_without_labelled_objects(tmp_path):
    words = ["recipe.collect.episodes=3", "recipe.collect.steps=8", "recipe.held_out=1", "workers=1", "threads=1"]
    assert main(["train", "preset=tiny", "env=reacher", *words, f"out={tmp_path / 'run'}"]) == 0
    assert (tmp_path / "run" / "checkpoint").is_dir()


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 8},
        {"control_steps": 0},
        {"task": "juggle-v3"},
        {"task": 3},
        {"wind": 1},
        {"render_mode": "depth_array"},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(InputError):
        gymnasium.make(ADAPTED["reacher"][0], **options)


@pytest.mark.skipif(importlib.util.find_spec("metaworld") is None, reason="metaworld is not installed")
def test_metaworld_takes_any_of_its_tasks():
    env = gymnasium.make(ADAPTED["metaworld"][0], task="drawer-open-v3", image_size=16)
    env.reset(seed=0)
    assert env.unwrapped.task == "drawer open"
    env.close()
    with pytest.raises(InputError, match="reach-v3"):
        gymnasium.make(ADAPTED["metaworld"][0], task="juggle-v3")


@pytest.mark.parametrize(
    ("name", "extra"), [("fetch_reach", "robotics"), ("aloha", "aloha"), ("metaworld", "metaworld")]
)
def test_a_missing_package_names_the_extra(monkeypatch, name, extra):
    for module in ("gymnasium_robotics", "gym_aloha", "gym_aloha.env", "metaworld", "metaworld.env_dict"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"emu-embodied\[{extra}\]"):
        specs.SPECS[name].make("reach-v3")
