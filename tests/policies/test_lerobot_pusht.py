"""LeRobot's PushT for a model of ours: physics, frames and units through the plugin's dialect, and `lerobot-eval`."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import WORLD, tiny_world_model

pytest.importorskip("gym_pusht")

from lerobot.envs import make_env, make_env_config, preprocess_observation
from lerobot.policies import make_policy
from lerobot.policies.factory import make_policy_config
from lerobot.scripts.lerobot_eval import eval_main

import emu_embodied
from emu_embodied.checkpoint import save_checkpoint
from emu_embodied.envs.pusht.env import PushTEnv
from emu_embodied.envs.pusht.geometry import AIMS_CM, REACH_CM, to_cm
from emu_embodied.errors import ConfigError, InputError
from emu_embodied.policies import lerobot_plugin  # noqa: F401  registers the policy
from emu_embodied.policies.lerobot_plugin.dialects import PUSHT_ID, GymPushT, choose
from emu_embodied.policies.lerobot_plugin.instructions import cost_of
from emu_embodied.rollouts.goals.task_costs import build_cost, expert_policy
from emu_embodied.types import AGENT_POS, PIXELS, Observation

BUDGET = {"candidates": 6, "elites": 2, "iterations": 1, "horizon": 3, "execute": 2}
DIALECT = GymPushT(64, "observation.image")


@pytest.fixture(scope="module")
def ours():
    env = gymnasium.make(PUSHT_ID, terminate_on_success=False, max_episode_steps=-1)
    yield env
    env.close()


@pytest.fixture(scope="module")
def theirs():
    """LeRobot's env, as lerobot-eval makes it, and a view on its simulator with our poses and states."""
    (env,) = make_env(make_env_config("pusht"), n_envs=1)["pusht"].values()
    view = PushTEnv()
    view._game = env.envs[0].unwrapped
    yield env, view
    env.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    model, path = tiny_world_model(), tmp_path_factory.mktemp("pusht") / "tiny"
    world = dataclasses.replace(WORLD, env_id=PUSHT_ID)
    save_checkpoint(path, model.tokenizer, model.text, model.model, world, facts={})
    return str(path)


def policy_of(checkpoint: str, env: str = "pusht", **more):
    told = {"instruction": "push the red cube to the left"}  # words that the tiny model can read
    config = make_policy_config("emu_mpc", checkpoint=checkpoint, device="cpu", **{**BUDGET, **told, **more})
    return make_policy(config, env_cfg=make_env_config(env))


def seen_by(env_observation: dict) -> Observation:
    """The one env's observation, as the policy makes it from LeRobot's batch."""
    return Observation(env_observation[PIXELS][0], env_observation[AGENT_POS][0].astype(np.float32))


@pytest.mark.parametrize("seed", [0, 3, 11])
def test_held_targets_make_the_trajectories_of_our_env(ours, theirs, seed):
    env, view = theirs
    ours.reset(seed=seed)
    theirs_seen, _ = env.reset(seed=[seed])
    view.set_state(ours.unwrapped.get_state())
    act, moved = expert_policy(ours), ours.unwrapped.poses()
    theirs_seen[AGENT_POS] = np.array([view._game.agent.position])
    for _ in range(12):
        action = act()
        ours.step(action)
        target = DIALECT.to_env_action(action[None], DIALECT.to_model_observation(seen_by(theirs_seen)).agent_pos)
        assert target.dtype == np.float32 and env.action_space.contains(target)
        for _ in range(DIALECT.hold):
            theirs_seen, *_ = env.step(target)
        np.testing.assert_allclose(view.poses(), ours.unwrapped.poses(), atol=2e-3)
    assert np.abs(ours.unwrapped.poses() - moved)[1:, :2].max() > 1  # the T was pushed, so that contacts are in it


def test_the_same_seed_is_the_same_scene(ours, theirs):
    env, view = theirs
    for seed in (0, 1, 2):  # where ours is not drawn again
        env.reset(seed=[seed])
        ours.reset(seed=seed)
        np.testing.assert_allclose(view.poses(), ours.unwrapped.poses(), atol=0.05)


def test_pictures_and_positions_are_those_the_model_learnt_from(ours, theirs):
    env, view = theirs
    tokenizer = emu_embodied.load("nano-pusht", device="cpu").tokenizer
    heard, known = [], []
    for seed in range(8):
        ours.reset(seed=seed)
        env.reset(seed=[seed])
        view.set_state(ours.unwrapped.get_state())
        seen, *_ = env.step(np.array([[100.0, 400.0]], np.float32))
        assert np.array_equal(
            seen[PIXELS][0], view._game._get_img(view._game._draw(), 96, 96)
        )  # no cross of the action
        heard.append(DIALECT.to_model_observation(seen_by(seen)))
        known.append(view.frame(64))
        np.testing.assert_allclose(heard[-1].agent_pos, view.poses()[0, :2], atol=1e-5)
    frames, known = np.stack([observation.pixels for observation in heard]), np.stack(known)
    assert np.abs(frames.astype(int) - known).mean() < 0.6  # 1.7 without new walls
    same = tokenizer.encode(torch.from_numpy(frames)) == tokenizer.encode(torch.from_numpy(known))
    assert same.float().mean() > 0.9  # 0.6 without


@given(
    st.tuples(*[st.floats(0, 512, width=32)] * 2),
    st.lists(st.tuples(*[st.floats(-1, 1, width=32)] * 2), min_size=1, max_size=4),
)
@settings(max_examples=50)
def test_actions_are_successive_displacements_within_reach(position, actions):
    seen = Observation(np.full((96, 96, 3), 255, np.uint8), np.array(position, np.float32))
    agent = DIALECT.to_model_observation(seen).agent_pos
    targets = to_cm(DIALECT.to_env_action(np.array(actions, np.float32), agent))
    for action, target in zip(actions, targets, strict=True):
        agent = np.clip(agent + 3.0 * np.array(action), -REACH_CM, REACH_CM)
        np.testing.assert_allclose(target, agent, atol=1e-4)


def test_the_mark_is_where_the_env_says(ours):
    np.testing.assert_allclose(AIMS_CM, ours.unwrapped.aims(), atol=1e-9)


@pytest.mark.parametrize("goal", ["positions", "reward"])
def test_the_cost_is_that_of_a_planned_episode(ours, goal):
    model = emu_embodied.load("nano-pusht", device="cpu")
    seen, info = ours.reset(seed=4)
    history = model.encode([Observation(seen[PIXELS], seen[AGENT_POS], info["task"])])
    actions = torch.rand(1, 3, 2, 2) * 2 - 1
    job = (model, model.rollout(history, actions), actions)
    assert torch.equal(cost_of(DIALECT.instruction, goal, model)(*job), build_cost(goal, ours, model)(*job))


def test_it_plans_every_fifth_step_from_what_it_then_sees(tiny: str, theirs):
    policy, own = policy_of(tiny), policy_of(tiny, world="own", letterbox=True)
    assert isinstance(policy.dialect, GymPushT)
    rng = np.random.default_rng(0)
    for moment in range(3):
        at = rng.uniform(100, 400, (1, 2)).astype(np.float32)
        batch = preprocess_observation({PIXELS: rng.integers(0, 200, (1, 96, 96, 3), np.uint8), AGENT_POS: at})
        first = policy.select_action(batch)
        other = preprocess_observation({PIXELS: np.zeros((1, 96, 96, 3), np.uint8), AGENT_POS: at + 1})
        for _ in range(4):
            assert torch.equal(policy.select_action(other), first)
            assert policy.last_predicted_latents.shape == (1, 1, 1, 16)
        displacement = own.select_action(batch).numpy()
        expected = (np.clip(to_cm(at) + 3 * displacement, -REACH_CM, REACH_CM) + 16) * 16
        np.testing.assert_allclose(first, expected, atol=1e-3, err_msg=str(moment))


def test_a_chunk_is_held_targets(tiny: str):
    policy = policy_of(tiny)
    seen = preprocess_observation({PIXELS: np.zeros((1, 96, 96, 3), np.uint8), AGENT_POS: np.full((1, 2), 200.0)})
    chunk = policy.predict_action_chunk(seen)
    assert chunk.shape == (1, 10, 2) and torch.equal(chunk[:, :5], chunk[:, :1].expand(1, 5, 2))
    assert torch.equal(policy.select_action(seen), chunk[:, 0])


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("auto", PUSHT_ID, 64, 384), "pusht"),
        (("auto", PUSHT_ID, 64, 64), "own"),
        (("auto", PUSHT_ID, 64, None), "own"),
        (("auto", "", 64, 384), "own"),
        (("own", PUSHT_ID, 64, 384), "own"),
        (("pusht", PUSHT_ID, 64, 64), "pusht"),
    ],
)
def test_which_dialect(asked, expected):
    assert choose(*asked) == expected


def test_what_does_not_fit_is_refused(tiny: str):
    with pytest.raises(ConfigError, match="world: pusht; the checkpoint's world is"):
        policy_of("nano-tabletop", world="pusht")
    with pytest.raises(ConfigError, match="world: mars"):
        policy_of(tiny, world="mars")
    picture = np.zeros((96, 96, 3), np.uint8)
    for pixels, agent in ((picture[:64], np.zeros(2)), (picture, np.zeros(0)), (picture, np.array([-3.0, 9.0]))):
        with pytest.raises(InputError):
            DIALECT.to_model_observation(Observation(pixels, agent.astype(np.float32)))


def test_lerobot_eval_plans_pusht_with_the_shipped_model(monkeypatch, tmp_path: Path):
    words = [f"--policy.{name}={value}" for name, value in BUDGET.items()]
    words += ["--policy.type=emu_mpc", "--policy.device=cpu", "--policy.checkpoint=nano-pusht", "--env.type=pusht"]
    words += ["--env.episode_length=12", "--eval.n_episodes=2", "--eval.batch_size=2", "--eval.use_async_envs=false"]
    words += [f"--output_dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["lerobot-eval", *words])
    eval_main()
    overall = json.loads((tmp_path / "eval_info.json").read_text())["overall"]
    assert overall["n_episodes"] == 2 and np.isfinite(overall["avg_sum_reward"])
    for path in overall["video_paths"] + overall["predicted_video_paths"]:
        assert Path(path).stat().st_size > 0
    assert len(overall["video_paths"]) == 2 and len(overall["predicted_video_paths"]) == 1  # the two side by side
