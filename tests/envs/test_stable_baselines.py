"""Stable-Baselines3 as an outside client: its own checker, its own interface, and PPO in imagination."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from tiny import WORLD, tiny_world_model

stable_baselines3 = pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO  # noqa: E402
from stable_baselines3.common.env_checker import check_env  # noqa: E402
from stable_baselines3.common.evaluation import evaluate_policy  # noqa: E402
from stable_baselines3.common.vec_env import VecMonitor  # noqa: E402

from emu_embodied.envs.imagined.beliefs import Beliefs  # noqa: E402
from emu_embodied.envs.imagined.env import ImaginedEnv  # noqa: E402
from emu_embodied.envs.imagined.stable_baselines import StableBaselinesVecEnv  # noqa: E402
from emu_embodied.envs.imagined.vector_env import ImaginedVectorEnv  # noqa: E402
from emu_embodied.errors import InputError  # noqa: E402

SEES = ("agent_pos", "beliefs", "instruction")


@pytest.fixture(scope="module")
def model():
    return tiny_world_model()


@pytest.fixture(scope="module")
def real():
    env = gymnasium.make(WORLD.env_id, cubes=1)
    yield env
    env.close()


def make(model, real, count: int = 3, steps: int = 4, **options) -> StableBaselinesVecEnv:
    options = {"autoreset_mode": "SameStep", "observe": SEES, **options}
    return StableBaselinesVecEnv(ImaginedVectorEnv(model, count, steps, real, **options))


@pytest.mark.parametrize("observe", [("pixels", "agent_pos"), SEES])
@pytest.mark.filterwarnings("error", "ignore:Your observation beliefs has an unconventional shape")
def test_its_own_checker_finds_nothing(model, real, observe):
    check_env(ImaginedEnv(model, real, observe=observe), skip_render_check=False)


def test_an_end_is_told_as_it_wants_it(model, real):
    env = make(model, real, terminate_on_success=False)
    env.seed(5)
    first = env.reset()
    assert [info["task"] for info in env.reset_infos] and first["beliefs"].shape == (3, 7 - 1, 3)
    before = [info["task"] for info in env.reset_infos]
    zero = np.zeros((3, 2), np.float32)
    for step in range(4):
        observations, rewards, dones, infos = env.step(zero)
        assert rewards.dtype == np.float32 and dones.all() == (step == 3)
    for i, info in enumerate(infos):
        assert info["TimeLimit.truncated"] is True and info["task"] == before[i]
        assert set(info["terminal_observation"]) == set(SEES)
        assert not np.array_equal(info["terminal_observation"]["beliefs"], observations["beliefs"][i])
    assert [info["task"] for info in env.reset_infos] != before
    env.seed(5)
    np.testing.assert_array_equal(env.reset()["beliefs"], first["beliefs"])


def test_success_is_an_end_and_no_truncation(model, real, monkeypatch):
    env = make(model, real, steps=9)
    env.reset()
    dreams, step = env.env.unwrapped._dreams, type(env.env.unwrapped._dreams).step

    def succeed(actions):
        done = step(dreams, actions)
        return type(done)(done.rewards, np.array([False, True, False]), done.infos)

    monkeypatch.setattr(dreams, "step", succeed)
    _, _, dones, infos = env.step(np.zeros((3, 2), np.float32))
    assert dones.tolist() == [False, True, False] and infos[1]["TimeLimit.truncated"] is False
    assert "terminal_observation" not in infos[0]


def test_options_reach_the_dreams(model, real):
    env = make(model, real)
    env.set_options({"instruction": "push the red cube to the left", "cubes": {"red": (0.0, 0.0, 0.0)}})
    env.reset()
    assert {info["task"] for info in env.reset_infos} == {"push the red cube to the left"}
    assert env.get_attr("num_envs") == [3] * 3 and env.env_is_wrapped(VecMonitor) == [False] * 3
    env.close()


def test_an_env_that_resets_at_another_time_is_refused(model, real):
    with pytest.raises(InputError, match="SameStep"):
        make(model, real, autoreset_mode="NextStep")


def test_ppo_learns_in_imagination_and_acts(model, real):
    torch.manual_seed(0)
    env = VecMonitor(make(model, real, count=4, steps=8))
    policy = PPO("MultiInputPolicy", env, n_steps=8, batch_size=16, n_epochs=2, seed=0, device="cpu")
    before = [parameter.detach().clone() for parameter in policy.policy.parameters()]
    policy.learn(64)
    moved = [not torch.equal(one, other) for one, other in zip(before, policy.policy.parameters(), strict=True)]
    assert any(moved) and len(policy.ep_info_buffer) >= 4
    returns, lengths = evaluate_policy(policy, env, n_eval_episodes=4, return_episode_rewards=True)
    assert len(returns) == 4 and np.isfinite(returns).all() and max(lengths) <= 8


def test_each_dream_has_its_own_options(model, real):
    env = make(model, real, 2, observe=("pixels", "agent_pos"))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    at = {"observation": {"pixels": pixels, "agent_pos": np.zeros(2, np.float32)}}
    left, right = ({**at, "instruction": f"push the red cube to the {side}"} for side in ("left", "right"))
    for options, wanted in (
        ([left, right], [left, right]),
        ([right, left], [right, left]),
        (left, [left, left]),
        ([{}, right], [None, right]),
        ([right, {}], [right, None]),
    ):
        env.seed(3)
        env.set_options(options)
        seen = env.reset()
        for i, own in enumerate(wanted):
            if own is None:
                assert env.get_attr("task", i) == [real.reset(seed=3 + i)[1]["task"]]
            else:
                assert env.get_attr("task", [i]) == [own["instruction"]]
                assert env.reset_infos[i]["task"] == own["instruction"]
                assert (seen["agent_pos"][i] == 0).all()
    env.seed(7)
    env.reset()  # options are for one reset
    assert env.get_attr("task") == [real.reset(seed=7 + i)[1]["task"] for i in range(2)]


def test_attributes_and_methods_are_each_dreams(model, real):
    env = make(model, real, 3, render_mode="rgb_array")
    env.seed(1)
    env.reset()
    tasks = [real.reset(seed=1 + i)[1]["task"] for i in range(3)]
    assert env.get_attr("task") == tasks and env.get_attr("task", indices=[2, 0]) == [tasks[2], tasks[0]]
    assert env.get_attr("task_description", 1) == [tasks[1]] and env.get_attr("render_mode") == ["rgb_array"] * 3
    assert env.env_method("get_wrapper_attr", "task", indices=[1]) == [tasks[1]]
    frames = env.env_method("render", indices=[0, 2])
    assert len(frames) == 2 and np.array_equal(frames[1], env.get_images()[2])
    env.set_attr("terminate_on_success", False)
    assert env.get_attr("terminate_on_success") == [False] * 3
    with pytest.raises(InputError, match="share"):
        env.set_attr("terminate_on_success", True, indices=[1])
    with pytest.raises(InputError, match="instruction"):
        env.set_attr("task", "push the red cube to the left")
    with pytest.raises(AttributeError):
        env.get_attr("zork")


def test_a_vector_of_real_envs_has_options_and_attributes_too():
    def made():
        return gymnasium.make(WORLD.env_id, cubes=1)

    vector = gymnasium.vector.SyncVectorEnv([made] * 2, autoreset_mode="SameStep")
    env = StableBaselinesVecEnv(vector)
    places = [{"cubes": {"red": (x, 0.0, 0.0)}, "instruction": "push the red cube to the left"} for x in (3.0, 5.0)]
    env.seed(0)
    env.set_options(places)
    env.reset()
    assert [info["object_states"]["red"][0] for info in env.reset_infos] == pytest.approx([3.0, 5.0], abs=0.1)
    assert env.get_attr("task") == ["push the red cube to the left"] * 2
    env.set_options([{}, places[1]])
    env.reset()
    assert env.reset_infos[1]["object_states"]["red"][0] == pytest.approx(5.0, abs=0.1)
    assert len(env.env_method("get_wrapper_attr", "task", indices=1)) == 1
    env.close()


def test_a_policy_that_learnt_in_dreams_acts_in_reality(model, real):
    policy = PPO("MultiInputPolicy", make(model, real), n_steps=4, batch_size=12, n_epochs=1, device="cpu").learn(12)
    acted = Beliefs(real, model, observe=SEES)
    assert tuple(acted.observation_space) == SEES
    observation, _ = acted.reset(seed=0)
    for _ in range(2):
        action, _ = policy.predict(observation)
        observation, *_ = acted.step(action)
    assert evaluate_policy(policy, acted, 1, warn=False)[0] < 0
    with pytest.raises(InputError, match="observe"):
        Beliefs(real, model, observe=["zork"])
