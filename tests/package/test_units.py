"""Whatever leaves the package is in the robot's units; whatever does not fit the robot is refused before it moves."""

from __future__ import annotations

import warnings
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from arm import HIGH, LOW, SCALE, Arm, Blind, arm_model, frames, planner
from tiny import WORLD, tiny_world_model

from emu_embodied.checkpoint import load_checkpoint, save_checkpoint
from emu_embodied.data.frame_cache import build_frame_cache
from emu_embodied.data.resampling import action_scale, denormalise, normalise
from emu_embodied.envs.imagined.env import ImaginedEnv
from emu_embodied.envs.imagined.vector_env import ImaginedVectorEnv
from emu_embodied.errors import ConfigError, InputError
from emu_embodied.loading import load
from emu_embodied.policies.costs import ActionEffort, GoalImage
from emu_embodied.rollouts.agents.lerobot import LeRobotAgent
from emu_embodied.rollouts.agents.mpc import run_episode
from emu_embodied.rollouts.collection.imagined import ImagineSettings, imagine
from emu_embodied.rollouts.viewer.session import Play
from emu_embodied.units import ActionScale

GOAL = np.zeros((64, 64, 3), np.uint8)




def to_goal(env, model):
    return GoalImage(GOAL)




def test_there_and_back():
    scale, inside = ActionScale(*SCALE), np.random.default_rng(0).uniform(-1, 1, (5, 7)).astype(np.float32)
    outside = scale.to_robot(inside)
    assert (outside >= LOW - 1e-6).all() and (outside <= HIGH + 1e-6).all() and outside.dtype == np.float32
    assert np.allclose(scale.from_robot(outside), inside, atol=1e-6)
    assert (scale.from_robot(10 * HIGH) <= 1).all()  # as its training clipped
    own = ActionScale.of(tiny_world_model())
    assert own.is_identity and own.to_robot(inside) is inside and own.from_robot(inside) is inside


def test_planned_actions_reach_the_env_in_its_units():
    env = Arm()
    run = run_episode(env, arm_model(), planner(), to_goal, max_steps=6)
    sent = np.stack(env.sent)
    assert np.array_equal(run.actions, sent) and (np.abs(sent).max(0) <= HIGH).all()
    assert (np.abs(sent - SCALE[0]) / SCALE[1]).max() > 0.3  # and they do use them


def test_the_history_holds_what_the_model_planned():
    model, seen = arm_model(), []
    real = model.observe
    model.observe = lambda history, actions, observations: (
        seen.append(actions[0]),
        real(history, actions, observations),
    )[1]
    run = run_episode(Arm(), model, planner(), to_goal, max_steps=4)
    assert np.allclose(ActionScale(*SCALE).to_robot(np.stack(seen)), run.actions[:-1], atol=1e-6)


@pytest.mark.parametrize(
    "bounds", [(-0.02 * np.ones(7), 0.02 * np.ones(7)), (LOW[:6], HIGH[:6]), (LOW + 0.5, HIGH + 0.5)]
)
def test_an_env_that_the_scale_does_not_fit_is_refused_before_anything_moves(bounds):
    env = Arm(*bounds)
    with pytest.raises(InputError, match=r"action_space.*(reach from \[-0.05|needs 7 numbers)"):
        run_episode(env, arm_model(), planner(), to_goal, max_steps=4)
    assert not env.sent


def test_an_env_that_scales_by_itself_is_warned_of():
    with pytest.warns(UserWarning, match="in the robot's units"):
        run_episode(Arm(-np.ones(7), np.ones(7)), arm_model(), planner(), to_goal, max_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for wide in (3 * HIGH, np.full(7, np.inf)):
            run_episode(Arm(-wide, wide), arm_model(), planner(), to_goal, max_steps=1)


def test_a_model_without_a_scale_does_not_drive_a_robot_of_small_bounds():
    model = tiny_world_model(world=replace(arm_model().world, action_scale=()))
    with pytest.raises(InputError, match=r"reach from \[-1"):
        run_episode(Arm(), model, planner(), to_goal, max_steps=4)


def test_unlike_scales_are_refused_until_somebody_says_whose_robot_it_is(tmp_path):
    half = (SCALE[0] / 2, SCALE[1] / 2)
    mixed = arm_model(SCALE, half)
    with pytest.raises(ConfigError, match="dataset="):
        run_episode(Arm(), mixed, planner(), to_goal, max_steps=2)
    path = tmp_path / "mixed"
    save_checkpoint(path, mixed.tokenizer, mixed.text, mixed.model, mixed.world, {})
    run = run_episode(Arm(), load(path, device="cpu", dataset=1), planner(), to_goal, max_steps=4)
    assert (np.abs(run.actions) <= HIGH / 2 + 1e-6).all()
    for wrong in (2, -1, "a", True):
        with pytest.raises(InputError, match="dataset"):
            load(path, device="cpu", dataset=wrong)
    alike = arm_model(SCALE, SCALE)
    assert ActionScale.of(alike).to_robot(np.ones(7, np.float32)) == pytest.approx(HIGH)


def test_dreams_have_the_robots_bounds_and_units():
    model = arm_model()
    env = ImaginedEnv(model, starts=frames())
    assert np.allclose(env.action_space.low, LOW) and np.allclose(env.action_space.high, HIGH)
    env.reset(seed=1)
    with pytest.raises(InputError, match=r"action: .*; stay within \[-.*, .*\] to \["):  # each number has bounds of its own
        env.step(np.full(7, 0.5, np.float32))
    moved = env.step(HIGH)[0]["pixels"]
    history = env._dreams.history  # of what the model itself is told
    assert history.actions_BCA[0, -1].tolist() == pytest.approx([1] * 7)
    vector = ImaginedVectorEnv(model, 2, starts=frames())
    vector.reset(seed=1)
    assert np.array_equal(vector.step(np.stack([HIGH, LOW]))[0]["pixels"][0], moved)
    over = ImaginedEnv(model, Arm())  # whose agent_pos the model does not know, and does not tell
    assert over.action_space == Arm().action_space and Arm().observation_space["agent_pos"].shape != (0,)
    assert over.reset(seed=1)[0]["agent_pos"].shape == (0,)
    seen = Arm().reset(seed=1)[0]
    assert over.reset(options={"observation": seen, "instruction": ""})[0]["agent_pos"].shape == (0,)
    over.step(over.action_space.sample())
    with pytest.raises(InputError, match="action_space"):
        ImaginedEnv(model, Blind(Arm(LOW / 2, HIGH / 2)))
    with pytest.raises(InputError, match="real_env"):
        ImaginedEnv(model).reset(seed=0)


def test_dreams_are_recorded_in_the_robots_units_and_read_back_as_they_were(tmp_path):
    model = arm_model()
    imagine(model, ImagineSettings("arm", "0", 2, steps=5), tmp_path / "dreams", frames(), report=lambda line: None)
    import pyarrow.parquet as parquet

    table = parquet.read_table(next((tmp_path / "dreams" / "data").glob("*/*.parquet")))
    actions = np.array(table["action"].to_pylist())[:-1]
    assert (np.abs(actions) <= HIGH + 1e-6).all() and np.abs(actions[:, :3]).max() > 0.01
    assert "next.reward" not in table.column_names and "next.success" not in table.column_names
    cache = build_frame_cache(tmp_path / "dreams")
    assert np.allclose(cache.action_scale[0], SCALE) and not cache.known.any()
    back = denormalise(cache.actions, cache.action_scale[0])
    inner = np.setdiff1d(np.arange(len(cache)), cache.episode_starts[1:] - 1)
    assert np.allclose(back[inner], np.array(table["action"].to_pylist())[inner], atol=1e-6)


def test_the_page_drives_the_real_robot_in_its_units():
    env = Blind(Arm())
    env.unwrapped.get_state = lambda: np.zeros(1)
    env.unwrapped.set_state = lambda state: None
    env.unwrapped.observation_space = env.observation_space
    seen = env.unwrapped._seen
    env.unwrapped._seen = lambda: env.observation(seen())
    play = Play(arm_model(), env, real=True)
    try:
        shown = play.reset(3)
        play.step(shown["scene"]["number"], 0, [1.0] * 7)
        assert np.allclose(env.unwrapped.sent[-1], HIGH)
    finally:
        play._thread.shutdown()


def test_a_planning_policy_is_refused_in_a_world_of_other_units():
    class Worlds:
        shapes, action_space = {}, Arm(LOW / 2, HIGH / 2).action_space

    class Policy:
        scale = ActionScale(*SCALE)

    with pytest.raises(InputError, match="action_space"):
        LeRobotAgent(Policy(), (None, None), {}, (7,)).check(Worlds())


def test_a_value_that_never_changed_stays_what_it_was():
    recorded = np.stack([np.linspace(-0.05, 0.05, 9), np.full(9, 0.7)], 1).astype(np.float32)
    scale = action_scale(recorded, None, [0, 1], "minmax")
    inside = normalise(recorded, scale)
    assert np.allclose(inside[:, 1], 0) and inside[:, 0].tolist() == pytest.approx(np.linspace(-1, 1, 9).tolist())
    assert np.allclose(denormalise(np.array([1.0, 1.0]), scale), [0.05, 0.7])  # whatever a planner tries there


def test_a_scale_survives_the_disk(tmp_path):
    model = arm_model(known=("reward",))
    save_checkpoint(tmp_path / "c", model.tokenizer, model.text, model.model, model.world, {})
    world = load_checkpoint(tmp_path / "c")[3]
    assert np.allclose(ActionScale.of(arm_model(*world.action_scale)).half, SCALE[1]) and world.known == ("reward",)


def test_the_table_top_is_driven_as_before():
    env = gymnasium.make(WORLD.env_id)
    run = run_episode(env, tiny_world_model(), planner(), lambda env, model: ActionEffort(), max_steps=3)
    assert np.abs(run.actions).max() <= 1
    env.close()


def test_recordings_tell_which_of_several_robots_is_meant():
    half = (SCALE[0] / 2, SCALE[1] / 2)
    mixed, starts = arm_model(SCALE, half), frames()
    with pytest.raises(ConfigError, match="dataset="):
        ImaginedEnv(mixed, starts=starts)
    env = ImaginedEnv(mixed, starts=replace(starts, action_scale=np.float32(half)[None]))
    assert np.allclose(env.action_space.high, HIGH / 2)
    env.reset(seed=0)
    env.step(env.action_space.high)
    assert env._dreams.history.actions_BCA[0, -1].tolist() == pytest.approx([1] * 7)
