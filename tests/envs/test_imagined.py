"""The imagined envs' contract: Gymnasium's API, starts, determinism, autoreset, and N dreams that equal N single ones."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import warnings
from pathlib import Path

import cv2
import gymnasium
import imageio.v2 as imageio
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.passive_env_checker import check_obs, data_shares_objects
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordVideo, TimeLimit
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import WORLD, tiny_world_model

import emu_embodied
from emu_embodied.checkpoint import save_checkpoint
from emu_embodied.data.frame_cache import FrameCache
from emu_embodied.envs.imagined.beliefs import Beliefs
from emu_embodied.envs.imagined.env import ImaginedEnv
from emu_embodied.envs.imagined.vector_env import ImaginedVectorEnv
from emu_embodied.errors import CheckpointError, InputError
from emu_embodied.types import AGENT_POS, IS_SUCCESS, PIXELS, TASK, History, Observation

ID = "emu_embodied.envs:emu_embodied/Imagined-v0"
CHECKPOINT = Path(emu_embodied.__file__).parent / "checkpoints" / "nano-tabletop"
FUZZ = min(100, int(os.environ.get("EMU_EMBODIED_FUZZ", "40")))
MODES = list(AutoresetMode)


@pytest.fixture(scope="module")
def model():
    return tiny_world_model()


@pytest.fixture(scope="module")
def real():
    """The real env that all envs here share: they seed each of its resets, so they do not disturb each other."""
    env = gymnasium.make(WORLD.env_id)
    yield env
    env.close()


@pytest.fixture(scope="module")
def data(real) -> FrameCache:
    """Two recorded episodes, of 3 and 4 frames."""
    observations, instructions = [], []
    for seed, length in ((11, 3), (12, 4)):
        observation, info = real.reset(seed=seed)
        instructions.append(info[TASK])
        for _ in range(length):
            observations.append(observation)
            observation, *_ = real.step(np.array([1.0, -1.0], np.float32))
    none = np.zeros((7, 0), np.float32)
    pixels, agent_pos = (np.stack([o[name] for o in observations]) for name in (PIXELS, AGENT_POS))
    zeros, starts = np.zeros(7, np.float32), np.array([0, 3, 7])
    return FrameCache(pixels, agent_pos, none, none, zeros, zeros > 0, starts, tuple(instructions), {}, 4.0)


@pytest.fixture
def start(real) -> dict:
    """Reset options: a real observation and its instruction."""
    observation, info = real.reset(seed=5)
    return {"observation": observation, "instruction": info[TASK]}


def actions(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(9).uniform(-1, 1, (count, *shape, 2)).astype(np.float32)


def dream(env: gymnasium.Env, steps: int = 6, **reset) -> list:
    observation, info = env.reset(**reset)
    return [(observation, info), *(env.step(action) for action in actions(steps))]


def assert_same(found, wanted) -> None:
    """Two nested results are equal; floats to 1e-4 and pixels to 1, since a batch is summed in another order."""
    assert type(found) is type(wanted)
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_same(found[key], wanted[key])
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)
    elif isinstance(wanted, np.ndarray) and wanted.dtype == object:
        assert_same(list(found), list(wanted))
    elif isinstance(wanted, np.ndarray):
        assert found.dtype == wanted.dtype and found.shape == wanted.shape
        np.testing.assert_allclose(
            found.astype(float), wanted.astype(float), atol=1 if wanted.dtype == np.uint8 else 1e-4
        )
    else:
        assert found == (pytest.approx(wanted, abs=1e-4, nan_ok=True) if isinstance(wanted, float) else wanted)


# Gymnasium's interface


def test_gymnasiums_checker_finds_nothing(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(ID, world_model=model, render_mode="rgb_array")
        check_env(env.unwrapped)
        env.reset(seed=1)
        assert env.render().shape == (256, 256, 3)
        env.step(env.action_space.sample())
        assert env.spec.max_episode_steps == 40
        env.close()
        env.close()


def test_a_vector_env_keeps_gymnasiums_contract(model, real):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make_vec(ID, 3, world_model=model, real_env=real, render_mode="rgb_array")
        assert isinstance(env, ImaginedVectorEnv) and env.num_envs == 3 and env.max_episode_steps == 40
        assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
        first, _ = env.reset(seed=3)
        check_obs(first, env.observation_space, "reset")
        again, _ = env.reset(seed=[3, 4, 5])
        assert_same(again, first)
        observation, rewards, *ended, infos = env.step(env.action_space.sample())
        check_obs(observation, env.observation_space, "step")
        assert rewards.dtype == np.float64 and all(end.dtype == bool and end.shape == (3,) for end in ended)
        assert infos[TASK].tolist() == list(env.task) and infos["positions"]["red"].shape == (3,)
        results = [env.reset(seed=1), *(env.step(action) for action in actions(3, 3))]
        for one, other in itertools.combinations(results, 2):
            assert not data_shares_objects((one[0], one[-1]), (other[0], other[-1]))
        assert [frame.shape for frame in env.render()] == [(256, 256, 3)] * 3
        env.close()


def test_spaces_are_the_real_ones(model, real):
    for env in (ImaginedEnv(model), ImaginedEnv(model, real), ImaginedEnv(model, WORLD.env_id)):
        assert env.observation_space == real.observation_space and env.action_space == real.action_space
        assert env.metadata["render_fps"] == real.metadata["render_fps"]


@pytest.mark.parametrize("vector", [False, True])
def test_a_dream_needs_a_reset_first(model, real, vector):
    env = ImaginedVectorEnv(model, 2, real_env=real) if vector else ImaginedEnv(model, real, "rgb_array")
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(env.action_space.sample())
    if vector:
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.reset(options={"reset_mask": np.array([True, False])})
    else:
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.render()


def test_info_says_what_the_model_believes(model, real):
    env = ImaginedEnv(model, real)
    _, before = env.reset(seed=4)
    assert before[TASK] == env.task == env.task_description == real.reset(seed=4)[1][TASK] and not before[IS_SUCCESS]
    assert np.isnan([before["success_probability"], before["entropy"], *before["presence"].values()]).all()
    observation, reward, terminated, truncated, info = env.step(actions(1)[0])
    assert list(before) == list(info) and set(before["positions"]) == set(info["positions"])  # for recorders
    assert type(reward) is float and type(terminated) is bool and truncated is False
    assert info[IS_SUCCESS] == (info["success_probability"] > 0.5) == terminated
    assert set(info["positions"]) == set(info["presence"]) == set(model.objects)
    believed = np.clip(info["positions"][model.objects[0]], -16, 16)
    np.testing.assert_allclose(observation[AGENT_POS], believed, rtol=1e-6)
    assert 0 < info["entropy"] < np.log(16)


def test_success_need_not_end_a_dream(model, real):
    env = ImaginedEnv(model, real, terminate_on_success=False)
    steps = dream(env, 40, seed=7)[1:]
    assert any(info[IS_SUCCESS] for *_, info in steps) and not any(terminated for _, _, terminated, *_ in steps)
    vector = ImaginedVectorEnv(model, 2, real_env=real, terminate_on_success=False)
    vector.reset(seed=6)
    results = [vector.step(action) for action in actions(40, 2)]
    assert any(info[IS_SUCCESS].any() for *_, info in results) and not any(step[2].any() for step in results)


# Where dreams start


def test_a_dream_starts_where_the_real_env_does(model, real):
    observation, info = real.reset(seed=7)
    dreamt, dreamt_info = ImaginedEnv(model, real).reset(seed=7)
    history = model.encode([Observation(observation[PIXELS], observation[AGENT_POS], info[TASK])])
    np.testing.assert_array_equal(dreamt[PIXELS], model.decode(history.codes_BCN[0, -1]))
    np.testing.assert_array_equal(dreamt[AGENT_POS], observation[AGENT_POS])
    assert dreamt_info[TASK] == info[TASK]


def test_a_dream_from_an_observation_is_the_one_from_the_reset(model, real, start):
    env = ImaginedEnv(model, real)
    fresh = dream(env, seed=5)
    assert_same(dream(env, options=start), fresh)
    observation = Observation(start["observation"][PIXELS], start["observation"][AGENT_POS], start["instruction"])
    assert_same(dream(env, options={"observation": observation}), fresh)
    assert_same(dream(env, seed=5, options={"instruction": start["instruction"]})[0][1], fresh[0][1])  # the real env's


def test_a_dream_from_an_observation_needs_no_simulator(model, start):
    env = ImaginedEnv(model, "nobody/Nothing-v0")
    assert len(dream(env, options=start)) == 7
    with pytest.raises(InputError, match="real_env: nobody/Nothing-v0"):
        env.reset()


def test_a_dream_starts_in_a_dataset(model, real, data):
    env, recorded = ImaginedEnv(model, real), ImaginedEnv(model, real, starts=data)
    _, info = env.reset(options={"dataset": data, "episode": 1, "frame": 2})
    there = {PIXELS: data.pixels[5], AGENT_POS: data.agent_pos[5]}
    wanted = dream(env, options={"observation": there, "instruction": data.instructions[1]})
    assert info[TASK] == data.instructions[1]
    assert_same(dream(env, options={"dataset": data, "episode": 1, "frame": 2}), wanted)
    assert_same(dream(recorded, options={"episode": 1, "frame": 2}), wanted)
    env.reset(options={"dataset": data, "instruction": "push the red cube to the left"})
    assert env.task == "push the red cube to the left"
    tasks = {recorded.reset(seed=seed)[1][TASK] for seed in range(8)}
    assert tasks == set(data.instructions)


def test_each_dream_of_a_vector_may_start_elsewhere(model, real, data):
    env, single = ImaginedVectorEnv(model, 3, real_env=real), ImaginedEnv(model, real)
    rows = [6, 0, 3]
    tasks = [data.instructions[i] for i in (1, 0, 1)]
    batch = {PIXELS: data.pixels[rows], AGENT_POS: data.agent_pos[rows]}
    each = [{PIXELS: data.pixels[row], AGENT_POS: data.agent_pos[row]} for row in rows]
    wanted = [
        single.reset(options={"observation": one, "instruction": task}) for one, task in zip(each, tasks, strict=True)
    ]
    for options in (
        {"observation": batch, "instruction": tasks},
        {"observation": each, "instruction": tasks},
        {"dataset": data, "episode": [1, 0, 1], "frame": np.array([3, 0, 0])},
    ):
        found, infos = env.reset(options=options)
        for i, (observation, info) in enumerate(wanted):
            assert_same({name: array[i] for name, array in found.items()}, observation)
            assert infos[TASK][i] == info[TASK]
    found, _ = env.reset(options={"observation": each[1], "instruction": tasks[1]})
    for frame in found[PIXELS]:
        assert_same(frame, wanted[1][0][PIXELS])


# Dreams are deterministic, long and independent


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.0, "decoding": "autoregressive"}])
def test_the_same_seed_dreams_the_same_dream(real, options):
    model = tiny_world_model(**options)
    one, other = ImaginedEnv(model, real), ImaginedEnv(model, real)
    alone = dream(one, seed=3)
    between = [one.reset(seed=3)]
    other.reset(seed=8)
    for action in actions(6):
        other.step(-action)
        between.append(one.step(action))
    assert_same(between, alone)
    if options:
        noisy = [dream(one, seed=seed, options={"observation": between[0][0]})[3][0][PIXELS] for seed in (1, 1, 2)]
        assert np.array_equal(noisy[0], noisy[1]) and not np.array_equal(noisy[0], noisy[2])
    vector = ImaginedVectorEnv(model, 2, real_env=real, max_episode_steps=4)
    runs = [[vector.reset(seed=2), *map(vector.step, actions(9, 2))] for _ in range(2)]
    assert_same(runs[0], runs[1])


def test_a_dream_outlives_its_context(model, real):
    env = ImaginedEnv(model, real, terminate_on_success=False)
    env.reset(seed=0)
    for action in actions(300):
        observation, reward, *_ = env.step(action)
    assert np.isfinite(reward) and observation in env.observation_space


@pytest.mark.parametrize("mode", MODES)
def test_n_dreams_together_are_n_dreams_alone(model, real, mode):
    together = ImaginedVectorEnv(model, 3, 9, real, autoreset_mode=mode)
    alone = SyncVectorEnv([lambda: TimeLimit(ImaginedEnv(model, real), 9)] * 3, autoreset_mode=mode)
    assert together.metadata["autoreset_mode"] is mode
    assert together.observation_space == alone.observation_space and together.action_space == alone.action_space
    assert_same(together.reset(seed=20), alone.reset(seed=20))
    terminations, truncations = 0, 0
    for action in actions(30, 3):
        found, wanted = together.step(action), alone.step(action)
        assert_same(found, wanted)
        terminations, truncations = terminations + wanted[2].sum(), truncations + wanted[3].sum()
        ended = wanted[2] | wanted[3]
        if mode is AutoresetMode.SAME_STEP:
            assert ("final_obs" in found[4]) == ended.any()
        if mode is AutoresetMode.DISABLED and ended.any():
            with pytest.raises(gymnasium.error.ResetNeeded, match="have ended"):
                together.step(action)
            assert_same(
                together.reset(options={"reset_mask": ended.copy()}), alone.reset(options={"reset_mask": ended.copy()})
            )
    assert terminations and truncations


def test_all_dreams_take_one_model_call(model, real, monkeypatch):
    calls = []
    step = type(model).step
    monkeypatch.setattr(type(model), "step", lambda self, *given: (calls.append(len(given[0])), step(self, *given))[1])
    env = ImaginedVectorEnv(model, 5, 3, real, terminate_on_success=False)
    env.reset(seed=0)
    truncated = [env.step(action)[3].tolist() for action in actions(4, 5)]
    assert truncated == [[False] * 5] * 2 + [[True] * 5] + [[False] * 5]
    assert calls == [5] * 3  # the fourth step resets all five, and dreams nothing


def test_a_mask_resets_some_dreams_only(model, real):
    env = ImaginedVectorEnv(model, 3, real_env=real, terminate_on_success=False)
    env.reset(seed=0)
    before = env.step(actions(1, 3)[0])[0]
    options = {"reset_mask": np.array([False, True, False])}
    after, infos = env.reset(seed=40, options=options)
    assert list(options) == ["reset_mask"] and infos[f"_{TASK}"].tolist() == [False, True, False]
    assert_same(after[PIXELS][[0, 2]], before[PIXELS][[0, 2]])
    assert_same(after[PIXELS][1], ImaginedEnv(model, real).reset(seed=41)[0][PIXELS])


def test_single_dreams_are_truncated_by_gymnasium(model, real):
    env = gymnasium.make(ID, world_model=model, real_env=real, terminate_on_success=False)
    results = dream(env, 40, seed=0)[1:]
    assert [truncated for *_, truncated, _ in results] == [False] * 39 + [True]


# What is refused

numbers = st.floats(-1, 1, width=32)
bad_actions = st.one_of(
    st.tuples(st.sampled_from([np.nan, np.inf, -np.inf, 1.01, -7.0, 1e30]), numbers).map(np.array),
    st.tuples(numbers, st.sampled_from([np.nan, np.inf, -1.5])).map(np.float32),
    st.lists(numbers, max_size=6).filter(lambda values: len(values) != 2).map(np.float32),
    st.sampled_from([(1, 2), (2, 1), (2, 2), ()]).map(lambda shape: np.zeros(shape, np.float32)),
    st.sampled_from([str, object, complex, bool, "datetime64[s]"]).map(lambda dtype: np.zeros(2, dtype)),
    st.sampled_from([None, "left", {"dx": 1}, [[0], [0, 1]], [0.5, None], 0.5, object()]),
)


@pytest.fixture(scope="module")
def fuzzed(model, real):
    single, vector = ImaginedEnv(model, real), ImaginedVectorEnv(model, 3, real_env=real)
    single.reset(seed=1)
    vector.reset(seed=1)
    return single, vector


@settings(max_examples=FUZZ)
@given(action=bad_actions)
def test_a_bad_action_is_refused_and_changes_nothing(fuzzed, action):
    for env in fuzzed:
        history = env._dreams.history
        good = isinstance(action, np.ndarray) and action.dtype.kind == "f"
        given_action = np.stack([np.zeros_like(action), action, action]) if env is fuzzed[1] and good else action
        with pytest.raises(InputError, match="^action: "):
            env.step(given_action)
        assert env._dreams.history is history and not env._dreams.ages.any()


def changed(name: str, value) -> dict:
    return {"observation": {name: value}}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (changed(PIXELS, np.zeros((32, 32, 3), np.uint8)), "pixels"),
        (changed(PIXELS, np.zeros((64, 64, 3), np.float32)), "pixels"),
        (changed(PIXELS, "frame.png"), "pixels"),
        (changed(AGENT_POS, np.array([np.nan, 0], np.float32)), "agent_pos"),
        (changed(AGENT_POS, np.zeros(3, np.float32)), "agent_pos"),
        (changed(AGENT_POS, np.array([0.0, 17.0])), "agent_pos"),
        (changed(AGENT_POS, ["a", "b"]), "agent_pos"),
        ({"observation": np.zeros((64, 64, 3), np.uint8)}, "observation"),
        ({"observation": {"image": 0}}, "observation"),
        ({"instruction": 5}, "instruction"),
        ({"instruction": "push " * 40}, "instruction"),
        ({"episode": 0}, "option"),
        ({"colour": "red"}, "option"),
    ],
)
def test_a_bad_start_is_refused_by_name(model, real, start, change, field):
    part = change.get("observation")
    known = isinstance(part, dict) and set(part) <= {PIXELS, AGENT_POS}
    options = {**start, **change, **({"observation": {**start["observation"], **part}} if known else {})}
    env, vector = ImaginedEnv(model, real), ImaginedVectorEnv(model, 2, real_env=real)
    good = dream(env, 2, seed=1)[-1][0]
    with pytest.raises(InputError, match=field):
        env.reset(options=options)
    with pytest.raises(InputError, match=field):
        vector.reset(options=options)
    env.reset(seed=1)
    assert_same([env.step(action) for action in actions(2)][-1][0], good)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ("fast", "options"),
        ({"dataset": "some/path"}, "dataset: some/path; give a FrameCache"),
        ({"episode": 0}, "dataset"),
        ({"dataset": ..., "episode": 2}, "episode"),
        ({"dataset": ..., "episode": -1}, "episode"),
        ({"dataset": ..., "episode": 0.0}, "episode"),
        ({"dataset": ..., "episode": 0, "frame": 3}, "frame"),
        ({"dataset": ..., "cubes": {}}, "reset option"),
        ({"speed": 3}, "reset option"),  # by the real env
    ],
)
def test_bad_options_are_refused_by_name(model, real, data, options, field):
    given_options = {**options, "dataset": data} if isinstance(options, dict) and ... in options.values() else options
    with pytest.raises(InputError, match=field):
        ImaginedEnv(model, real).reset(options=given_options)


def test_bad_batches_are_refused_by_name(model, real, data):
    env = ImaginedVectorEnv(model, 2, real_env=real)
    batch = {PIXELS: data.pixels[:3], AGENT_POS: data.agent_pos[:3]}
    for options in ({"observation": batch}, {"dataset": data, "episode": [0, 1, 1]}):
        with pytest.raises(InputError, match="3 values"):
            env.reset(options=options)
    for mask in ([True, False], np.array([1, 0]), np.array([True]), np.array([False, False])):
        with pytest.raises(InputError, match="reset_mask"):
            env.reset(options={"reset_mask": mask})
    with pytest.raises(InputError, match="seed"):
        env.reset(seed=[1, 2, 3])


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"num_envs": 0}, "num_envs"),
        ({"max_episode_steps": 2.5}, "max_episode_steps"),
        ({"autoreset_mode": "Never"}, "autoreset_mode"),
        ({"render_mode": "ansi"}, "render_mode"),
        ({"observe": ["pixels", "smell"]}, "observe"),
        ({"observe": []}, "observe"),
        ({"real_env": 5}, "real_env"),
        ({"starts": "some/path"}, "dataset"),
        ({"world_model": "some/path"}, "world_model: some/path; .* checkpoint="),
        ({"passes": 2}, "option"),  # the model is there already
    ],
)
def test_bad_arguments_are_refused_by_name(model, options, field):
    with pytest.raises(InputError, match=field):
        gymnasium.make_vec(ID, **{"num_envs": 2, "world_model": model, **options})


def test_an_unfit_real_env_is_refused(model):
    large = gymnasium.make(WORLD.env_id, image_size=96)
    with pytest.raises(InputError, match="observation_space.*64, 64, 3"):
        ImaginedEnv(model, large)
    stranger = ImaginedEnv(model, "CartPole-v1")
    with pytest.raises(InputError, match="CartPole-v1's observation_space"):
        stranger.reset()


# What is observed, and seen


@pytest.mark.parametrize("make", [ImaginedEnv, lambda model, **options: ImaginedVectorEnv(model, 2, **options)])
def test_only_what_is_wanted_is_observed_and_it_is_in_its_space(model, start, make, monkeypatch):
    env = make(model, observe=["agent_pos", "beliefs", "instruction"], render_mode="rgb_array")
    decoded, decode = [], model.decode
    monkeypatch.setattr(model, "decode", lambda codes: decoded.append(1) or decode(codes))
    first, _ = env.reset(seed=1, options=start)
    later, *_, info = env.step(actions(1, *env.action_space.shape[:-1])[0])
    for observation in (first, later):
        assert list(observation) == ["agent_pos", "beliefs", "instruction"]
        check_obs(observation, env.observation_space, "step")
    assert not decoded, "frames that nobody looks at are not decoded"
    assert np.shape(env.render())[-3:] == (256, 256, 3) and decoded
    single = later["beliefs"].ndim == 2
    for name, row in zip(model.objects, later["beliefs"] if single else later["beliefs"][0], strict=True):
        place, presence = (info[key][name] if single else info[key][name][0] for key in ("positions", "presence"))
        wanted = np.clip(np.array(place, np.float32) / 16, -1, 1) if presence > 0.5 else (0, 0)
        assert row.tolist() == pytest.approx([*wanted, presence], abs=1e-5)


def test_real_observations_are_believed_in_as_dreams_are(model, real):
    seen = Beliefs(real, model)
    check_env(seen, skip_render_check=True)
    observation, info = seen.reset(seed=5)
    wanted = ["agent_pos", "beliefs", "instruction"]
    dreamt, _ = ImaginedEnv(model, observe=wanted).reset(
        options={"observation": {name: observation[name] for name in (PIXELS, AGENT_POS)}, "instruction": info[TASK]}
    )
    for name in wanted:
        np.testing.assert_array_equal(dreamt[name], observation[name])
    ids = model.text.encode(info[TASK])
    assert np.flatnonzero(observation["instruction"]).tolist() == sorted(set(ids))


def test_a_window_shows_every_frame(model, start, monkeypatch):
    shown = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "imshow", lambda title, frame: shown.append(frame.shape))
    monkeypatch.setattr(cv2, "waitKey", lambda milliseconds: -1)
    monkeypatch.setattr(cv2, "destroyWindow", lambda title: shown.append(title))
    env = ImaginedEnv(model, render_mode="human")
    env.reset(seed=1, options=start)
    env.step(env.action_space.sample())
    assert shown == [(256, 256, 3)] * 2 and env.render() is None
    env.close()
    assert isinstance(shown.pop(), str)
    vector = ImaginedVectorEnv(model, 5, render_mode="human")
    vector.reset(options=start)
    assert shown[2:] == [(768, 768, 3)], "five dreams are a square of nine"
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(InputError, match="no screen"):
        ImaginedEnv(model, render_mode="human")


def test_dreams_are_recorded_as_videos(model, start, tmp_path):
    env = RecordVideo(gymnasium.make(ID, world_model=model, render_mode="rgb_array"), str(tmp_path), lambda _: True)
    env.reset(seed=1, options=start)
    for action in actions(5):
        env.step(action)
    env.close()
    (file,) = tmp_path.glob("*.mp4")
    with imageio.get_reader(file) as video:
        frames = np.stack([frame for frame in video])
    assert frames.shape == (6, 256, 256, 3) and frames.std() > 1


def test_a_dream_goes_on_far_beyond_the_context(model, start):
    """With C = 2 frames of context, step 30 depends on the last frames and actions alone, not on how long the dream is."""
    env = ImaginedEnv(model)
    env.reset(seed=1, options=start)
    for action in actions(30):
        env.step(action)
    history = env.unwrapped._dreams.history
    assert history.codes_BCN.shape[1] == model.context_frames == 2
    young = History(history.codes_BCN.clone(), history.actions_BCA.clone(), history.text_BL.clone())
    action = actions(31)[-1]
    wanted = model.step(young, action[None])[1].codes_BSTN[0, 0, 0]
    env.step(action)
    np.testing.assert_array_equal(env._dreams.history.codes_BCN[0, -1], wanted)


# By name


def test_a_checkpoint_is_loaded_by_its_folder(model, real, tmp_path):
    save_checkpoint(tmp_path / "tiny", model.tokenizer, model.text, model.model, WORLD, {})
    by_name = {"checkpoint": str(tmp_path / "tiny"), "decoding": "dida", "device": "cpu", "real_env": real}
    assert_same(dream(gymnasium.make(ID, **by_name), seed=3), dream(ImaginedEnv(model, real), seed=3))
    vector = gymnasium.make_vec(ID, 2, passes=3, **by_name)
    assert vector.world_model.decoding.passes == 3
    with pytest.raises(CheckpointError, match="nobody"):
        gymnasium.make(ID, checkpoint="nobody")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copied_dream_goes_on_alike(model, start, copied):
    for env in (ImaginedEnv(model), ImaginedVectorEnv(model, 2)):
        env.reset(seed=1, options=start)
        shape = env.action_space.shape[:-1]
        env.step(actions(1, *shape)[0])
        other = copied(env)
        for action in actions(3, *shape):
            assert_same(other.step(action), env.step(action))


@pytest.mark.skipif(not (CHECKPOINT / "manifest.json").is_file(), reason="nano-tabletop is not trained yet")
def test_both_work_with_no_arguments():
    env, vector = gymnasium.make(ID), gymnasium.make_vec(ID, num_envs=3)
    real = gymnasium.make(WORLD.env_id)
    assert env.observation_space == vector.single_observation_space == real.observation_space
    first, _ = env.reset(seed=0)
    error = np.abs(first[PIXELS].astype(float) - real.reset(seed=0)[0][PIXELS]).mean()
    assert error < 10, "the dream starts as the world does"
    vector.reset(seed=0)
    for _ in range(3):
        env.step(env.action_space.sample())
        vector.step(vector.action_space.sample())
    for made in (env, vector, real):
        made.close()
