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

from emu_embodied.envs.imagined import ImaginedEnv  # noqa: E402
from emu_embodied.envs.imagined_vector import ImaginedVectorEnv  # noqa: E402
from emu_embodied.envs.stable_baselines import StableBaselinesVecEnv  # noqa: E402
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
