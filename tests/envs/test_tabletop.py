"""The table-top's contract: Gymnasium's API, determinism, pixels against state, tasks, shifts and typed errors."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import emu_embodied.envs  # noqa: F401  registers the env
from emu_embodied.envs.checks import check_action
from emu_embodied.envs.tabletop.env import RGB, STATE_NAMES, TABLE_CM
from emu_embodied.envs.tabletop.tasks import COLOURS, DIRECTIONS, OBJECTS, UNSEEN_COLOUR, all_tasks, parse_task
from emu_embodied.errors import InputError, SimulationError
from emu_embodied.types import AGENT_POS, IS_SUCCESS, PIXELS

ID = "emu_embodied/TabletopPush-v0"
BOX = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
FUZZ = int(os.environ.get("EMU_EMBODIED_FUZZ", "300"))
PLAY = """
import hashlib, gymnasium, numpy as np, emu_embodied.envs
env = gymnasium.make("emu_embodied/TabletopPush-v0", terminate_on_success=False, stochastic=True)
digest, rng = hashlib.sha256(), np.random.default_rng(5)
for seed in range(3):
    digest.update(env.reset(seed=seed)[0]["pixels"].tobytes())
    for _ in range(15):
        observation, reward, _, _, info = env.step(rng.uniform(-1, 1, 2).astype(np.float32))
        digest.update(observation["pixels"].tobytes() + info["environment_state"].tobytes() + str(reward).encode())
print(digest.hexdigest())
"""


@pytest.fixture
def make():
    """Makes bare envs and closes them afterwards."""
    made = []

    def make_env(**options):
        made.append(gymnasium.make(ID, **options).unwrapped)
        return made[-1]

    yield make_env
    for env in made:
        env.close()


@pytest.fixture(scope="module")
def shared():
    """One env that tests may reset as they like."""
    env = gymnasium.make(ID, terminate_on_success=False).unwrapped
    yield env
    env.close()


def play(env, actions) -> np.ndarray:
    return np.stack([env.step(action)[4]["environment_state"] for action in actions])


def actions_of(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 2)).astype(np.float32)


def centroid_px(pixels: np.ndarray, colour: str) -> np.ndarray:
    """The centre (x right, y down) of a colour's pixels."""
    mask = np.abs(pixels.astype(int) - np.array(RGB[colour]) * 255).max(-1) < 30
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean(), rows.mean()]) + 0.5


def true_px(info: dict, name: str, size: int) -> np.ndarray:
    x, y, _ = info["object_states"][name]
    return np.array([TABLE_CM / 2 + x, TABLE_CM / 2 - y]) / TABLE_CM * size


def test_gymnasium_finds_nothing_to_warn_of(make):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(render_mode="rgb_array"))


def test_an_episode_is_truncated_after_40_steps():
    env = gymnasium.make(ID, image_size=16, terminate_on_success=False)
    env.reset(seed=0)
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(40)]
    env.close()
    assert ends == [(False, False)] * 39 + [(False, True)]


def test_two_processes_see_the_same():
    runs = [subprocess.Popen([sys.executable, "-c", PLAY], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    hashes = [run.communicate(timeout=300)[0].strip() for run in runs]
    assert len(hashes[0]) == 64 and hashes[0] == hashes[1]


@pytest.mark.parametrize("size", [64, 96, 128])
def test_cubes_are_drawn_where_the_state_says(make, size: int):
    env = make(image_size=size, cubes=(3, 3), terminate_on_success=False)
    for seed in range(6):
        observation, info = env.reset(seed=seed)
        for action in (None, *actions_of(seed, 4)):
            if action is not None:
                observation, _, _, _, info = env.step(action)
            for name in set(info["object_states"]) - {"pusher"}:
                assert np.abs(centroid_px(observation[PIXELS], name) - true_px(info, name, size)).max() < 0.5


def test_the_state_vector_is_named_and_agrees_with_the_rest(shared):
    observation, info = shared.reset(seed=4)
    state = dict(zip(STATE_NAMES, info["environment_state"], strict=True))
    for name in OBJECTS:
        assert state[f"{name}.present"] == (name in info["object_states"])
        expected = info["object_states"].get(name, (0, 0, 0))
        assert [state[f"{name}.{part}"] for part in ("x", "y", "yaw")] == pytest.approx(expected)
    assert observation[AGENT_POS] == pytest.approx([state["pusher.x"], state["pusher.y"]])


@pytest.mark.parametrize("action", [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1)])
def test_a_full_action_moves_the_free_pusher_a_quarter_decimetre(shared, action):
    shared.reset(seed=0, options={"cubes": {"red": (8, 8, 0)}, "pusher": (-5, -5)})
    before = shared.positions()[0]
    shared.step(np.float32(action))
    moved = shared.positions()[0] - before
    assert (np.abs(moved[np.nonzero(action)]) > 2.3).all() and (np.abs(moved) < 2.6).all()
    assert (np.sign(np.round(moved, 1)) == action).all()


@pytest.mark.parametrize("direction", [(1, 0), (0, 1), (-1, 0), (0, -1)])
def test_a_full_action_pushes_a_cube_2_to_5_px(shared, direction):
    start = tuple(-3.9 * np.array(direction))
    shared.reset(seed=0, options={"cubes": {"blue": (0, 0, 0)}, "pusher": start})
    _, _, _, _, info = shared.step(np.float32(direction))
    along = np.dot(info["object_states"]["blue"][:2], direction) / TABLE_CM * 64
    assert 2 < along < 5


def holds(task, states: dict) -> bool:
    """The task's predicate, written down once more."""
    x, y, _ = states[task.cube]
    if task.kind == "edge":
        return {"left": x <= -6, "right": x >= 6, "top": y >= 6, "bottom": y <= -6}[task.where]
    if task.kind == "middle":
        return np.hypot(x, y) <= 3
    return np.hypot(x - states[task.other][0], y - states[task.other][1]) <= 6.5


@pytest.mark.parametrize("kind", ["edge", "middle", "next_to"])
def test_success_is_the_predicate_on_the_true_state(make, kind: str):
    env, rng, outcomes = make(image_size=16, terminate_on_success=False), np.random.default_rng(1), []
    tasks = [task for task in all_tasks(("red", "green")) if task.kind == kind]
    spread = 5 if kind == "middle" else 9
    for task in tasks[::2]:
        for _ in range(12):
            red, green = rng.uniform(-spread, spread, 2), rng.uniform(-9, 9, 2)
            if np.hypot(*(red - green)) < 6.4:
                continue
            cubes = {"red": (*red, 0.3), "green": (*green, 0.0)}
            _, info = env.reset(seed=0, options={"cubes": cubes, "instruction": task.text})
            results = [info[IS_SUCCESS]]
            assert info["task"] == env.task == task.text and info[IS_SUCCESS] == holds(task, info["object_states"])
            _, reward, terminated, _, info = env.step(np.zeros(2, np.float32))
            results.append(info[IS_SUCCESS])
            assert info[IS_SUCCESS] == holds(task, info["object_states"]) and not terminated
            assert info["distance"] == pytest.approx(task.distance(env.positions().astype(float)))
            assert reward == pytest.approx(info[IS_SUCCESS] - 0.1 * info["distance"])
            outcomes += results
    if kind == "next_to":  # 6.4 cm apart at least is nearly always outside: put them together
        _, info = env.reset(options={"cubes": {"red": (0, 0, 0), "green": (5, 0, 0)}, "instruction": tasks[0].text})
        outcomes.append(info[IS_SUCCESS])
    assert {True, False} == set(outcomes)


def test_success_ends_the_episode_unless_told_otherwise(make):
    options = {"cubes": {"red": (-5.9, 0, 0)}, "pusher": (-1.9, 0), "instruction": "push the red cube to the left"}
    for ends in (True, False):
        env = make(image_size=16, terminate_on_success=ends)
        env.reset(seed=0, options=options)
        _, _, terminated, _, info = env.step(np.float32([-1, 0]))
        assert info[IS_SUCCESS] and terminated == ends


def test_drawn_tasks_are_open_and_reachable(shared):
    kinds = set()
    for seed in range(60):
        _, info = shared.reset(seed=seed)
        kinds.add(shared.task_spec.kind)
        assert info["distance"] > 2 and parse_task(info["task"]) == shared.task_spec
        assert set(info["object_states"]) <= {"pusher", *COLOURS}
    assert kinds == {"edge", "middle", "next_to"}


def test_only_the_stochastic_variant_hides_something(make):
    scene = {"cubes": {"red": (0, 0, 0.2), "blue": (6, 6, 0)}, "pusher": (-4.5, 0)}
    actions = np.concatenate([np.tile(np.float32([1, 0]), (3, 1)), actions_of(0, 8)])
    for stochastic in (False, True):
        env = make(image_size=16, stochastic=stochastic, terminate_on_success=False)
        futures = []
        for seed in (1, 2, 1):
            env.reset(seed=seed, options={**scene, "instruction": "push the red cube to the right"})
            futures.append(play(env, actions))
        assert np.array_equal(futures[0], futures[2])
        assert np.array_equal(futures[0], futures[1]) != stochastic


def test_shifts_change_what_they_say_and_nothing_else(make):
    plain, background, camera = make(), make(shift="background"), make(shift="camera")
    views = [env.reset(seed=11) for env in (plain, background, camera)]
    states = [info["environment_state"] for _, info in views]
    assert np.array_equal(states[0], states[1]) and np.array_equal(states[0], states[2])
    cube = next(name for name in views[0][1]["object_states"] if name != "pusher")
    table = [np.median(observation[PIXELS].reshape(-1, 3), axis=0) for observation, _ in views]
    assert np.abs(table[0] - table[1]).max() > 20 and np.abs(table[0] - table[2]).max() < 3
    places = [centroid_px(observation[PIXELS], cube) for observation, _ in views]
    assert np.abs(places[0] - places[1]).max() < 0.3
    assert places[2] - places[0] == pytest.approx([-2.4, -1.6], abs=0.4)  # 1.2 cm to the left, 0.8 cm up
    colour = make(shift="colour", image_size=16)
    assert all(UNSEEN_COLOUR in colour.reset(seed=seed)[1]["object_states"] for seed in range(8))


numbers = st.floats(-1, 1, width=32)
bad_actions = st.one_of(
    st.tuples(st.sampled_from([np.nan, np.inf, -np.inf, 1.01, -7.0, 1e30]), numbers, st.booleans()).map(
        lambda drawn: np.array(drawn[:2] if drawn[2] else drawn[1::-1])
    ),
    st.lists(numbers, max_size=6).filter(lambda values: len(values) != 2).map(np.float32),
    st.sampled_from([(1, 2), (2, 1), (2, 2), ()]).map(lambda shape: np.zeros(shape, np.float32)),
    st.sampled_from([str, object, complex, bool, "datetime64[s]", "S3", np.void]).map(lambda dtype: np.zeros(2, dtype)),
    st.sampled_from([None, "left", {"dx": 1}, [[0], [0, 1]], [0.5, None], [0, "1"], 0.5, b"ab", object()]),
)


@settings(max_examples=FUZZ)
@given(bad_actions)
def test_a_bad_action_is_refused_by_name(action):
    with pytest.raises(InputError) as caught:
        check_action(action, BOX)
    message = str(caught.value)
    assert message.startswith("action: ") and ("; give " in message or "; stay within [-1, 1]" in message)


@settings(max_examples=100)
@given(st.tuples(numbers, numbers), st.sampled_from([np.float16, np.float32, np.float64]))
def test_a_good_action_passes(action, dtype):
    assert check_action(np.array(action, dtype), BOX) == pytest.approx(np.array(action, dtype).astype(float))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bad_actions)
def test_a_refused_action_leaves_the_world_as_it_was(shared, action):
    shared.reset(seed=2)
    before = shared.get_state()
    with pytest.raises(InputError):
        shared.step(action)
    assert np.array_equal(before, shared.get_state())


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("image_size", {"image_size": 8}),
        ("image_size", {"image_size": 64.5}),
        ("cubes", {"cubes": 4}),
        ("cubes", {"cubes": (2, 1)}),
        ("cubes", {"cubes": ("a", "b")}),
        ("control_steps", {"control_steps": 0}),
        ("shift", {"shift": "weather"}),
        ("option", {"colour": "red"}),
        ("render_mode", {"render_mode": "human"}),
    ],
)
def test_bad_options_are_refused_by_name(field: str, options: dict):
    from emu_embodied.envs.tabletop.env import TabletopPushEnv

    with pytest.raises(InputError) as caught:
        TabletopPushEnv(**options)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("reset option", {"cube": {}}),
        ("cubes", {"cubes": {}}),
        ("cubes", {"cubes": {"pink": (0, 0, 0)}}),
        ("cubes", {"cubes": {"red": (0, 0, 0), "blue": (1, 0, 0)}}),
        ("cubes['red']", {"cubes": {"red": (0, 0)}}),
        ("cubes['red']", {"cubes": {"red": (0, 0, np.nan)}}),
        ("cubes['red']", {"cubes": {"red": (17, 0, 0)}}),
        ("pusher", {"pusher": (np.nan, 0)}),
        ("pusher", {"pusher": (12, 0)}),
        ("pusher", {"pusher": "left"}),
        ("instruction", {"instruction": "make tea"}),
        ("instruction", {"cubes": {"red": (0, 0, 0)}, "instruction": "push the blue cube into the middle"}),
    ],
)
def test_a_bad_scene_is_refused_by_name(shared, field: str, options: dict):
    with pytest.raises(InputError) as caught:
        shared.reset(seed=0, options=options)
    assert caught.value.field == field


@pytest.mark.parametrize("where", ["qpos", "qvel"])
def test_a_simulator_that_left_the_numbers_says_so(make, where: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves a log
    env = make(image_size=16)
    env.reset(seed=0)
    getattr(env.data, where)[0] = np.nan
    with pytest.raises(SimulationError):
        env.step(np.zeros(2, np.float32))
    env.reset(seed=0)
    env.step(np.zeros(2, np.float32))


@pytest.mark.parametrize("through", [copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state))])
def test_a_restored_state_has_the_same_future(make, through):
    env = make(image_size=16, cubes=(3, 3), terminate_on_success=False)
    for seed in range(4):
        env.reset(seed=seed)
        play(env, actions_of(seed, 8))
        state, actions = through(env.get_state()), actions_of(seed + 100, 12)
        first = play(env, actions)
        env.set_state(state)
        assert np.array_equal(env.get_state(), state)
        assert np.array_equal(play(env, actions), first)


@pytest.mark.parametrize("ending", ["", "env.close(); env.close()", "del env", "env = [env, env.render]"])
def test_leaving_makes_no_noise(ending: str):
    code = (
        "import gymnasium, emu_embodied.envs\n"
        "env = gymnasium.make('emu_embodied/TabletopPush-v0', render_mode='rgb_array')\n"
        f"env.reset(seed=0); env.render(); other = env\n{ending}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_directions_are_those_of_the_picture(shared):
    for where, (dx, dy) in DIRECTIONS.items():
        observation, info = shared.reset(
            seed=0, options={"cubes": {"red": (8 * dx, 8 * dy, 0)}, "instruction": f"push the red cube to the {where}"}
        )
        x, y = centroid_px(observation[PIXELS], "red") - 32
        assert info[IS_SUCCESS] and (np.sign(np.round([x, -y])) == (dx, dy)).all()
