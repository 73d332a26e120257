"""PushT: Gymnasium's API, determinism, typed errors, pixels against state, its eye, its data policy, and training on it."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

pytest.importorskip("gym_pusht")

import emu_embodied
import emu_embodied.envs  # noqa: F401  registers the env
from emu_embodied.checkpoint import World
from emu_embodied.commands import main
from emu_embodied.commands._config import compose_config
from emu_embodied.envs.pusht.geometry import ARENA_CM, BOXES_CM, PUSHER_CM, TIP_CM, outside, turn
from emu_embodied.errors import ConfigError, DatasetError, InputError, SimulationError
from emu_embodied.loading import checkpoint_path
from emu_embodied.policies.experts.pusht import TeeCollector, TeeConfig
from emu_embodied.rollouts.collection.collect import moving_steps
from emu_embodied.rollouts.collection.data_policies import behaviour_of
from emu_embodied.rollouts.collection.episodes import collect_episode, record_frames
from emu_embodied.rollouts.evaluation import prediction
from emu_embodied.types import AGENT_POS, IS_SUCCESS, PIXELS

ID = "emu_embodied/PushT-v0"
PLAY = """
import hashlib, gymnasium, numpy as np, emu_embodied.envs
env = gymnasium.make("emu_embodied/PushT-v0")
digest, rng = hashlib.sha256(), np.random.default_rng(5)
for seed in range(3):
    digest.update(env.reset(seed=seed)[0]["pixels"].tobytes())
    for _ in range(15):
        observation, reward, _, _, info = env.step(rng.uniform(-1, 1, 2).astype(np.float32))
        digest.update(observation["pixels"].tobytes() + info["environment_state"].tobytes() + str(reward).encode())
print(digest.hexdigest())
"""


@pytest.fixture(scope="module")
def env():
    env = gymnasium.make(ID, terminate_on_success=False, max_episode_steps=-1)
    yield env
    env.close()


@pytest.fixture(scope="module")
def world() -> World:
    described = compose_config("train", ["env=pusht"]).env.world
    objects = {name: tuple(rgb) for name, rgb in described.objects.items()}
    return World(objects, tuple(described.position_scale), ID, (), described.eye, dict(described.landmarks))


def actions_of(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 2)).astype(np.float32)


def scene(env, pusher, tee) -> dict:
    return env.reset(seed=0, options={"pusher": pusher, "T": tee})[1]


def test_gymnasium_accepts_it():
    check_env(gymnasium.make(ID, render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("size", [64, 96])
def test_an_observation_is_what_lerobot_expects(size):
    env = gymnasium.make(ID, image_size=size)
    observation, info = env.reset(seed=1)
    assert observation[PIXELS].shape == (size, size, 3) and observation[PIXELS].dtype == np.uint8
    assert observation[AGENT_POS].dtype == np.float32 and observation in env.observation_space
    assert env.action_space.dtype == np.float32 and env.unwrapped.task == info["task"] != ""
    assert info[IS_SUCCESS] is False and env.unwrapped.metadata["render_fps"] == 2
    assert len(info["environment_state"]) == len(env.unwrapped.state_names)
    env.close()


def test_two_processes_see_the_same():
    runs = [subprocess.Popen([sys.executable, "-c", PLAY], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    hashes = [run.communicate(timeout=300)[0].strip() for run in runs]
    assert len(hashes[0]) == 64 and hashes[0] == hashes[1]


def test_a_copy_goes_on_the_same(env):
    """What vector envs need: the maker can be sent to another process."""
    spec = pickle.loads(pickle.dumps(env.spec))
    other = gymnasium.make(spec)
    assert np.array_equal(other.reset(seed=3)[0][PIXELS], env.reset(seed=3)[0][PIXELS])
    other.close()


@pytest.mark.parametrize(
    "action",
    [
        np.array([np.nan, 0], np.float32),
        np.array([0, np.inf], np.float32),
        np.array([1.5, 0], np.float32),
        np.array([256.0, 256.0]),  # gym_pusht's own
        np.zeros(3, np.float32),
        "left",
        None,
    ],
)
def test_a_bad_action_is_refused_and_changes_nothing(env, action):
    env.reset(seed=0)
    before = env.unwrapped.get_state()
    with pytest.raises(InputError, match="action"):
        env.unwrapped.step(action)
    assert np.array_equal(before, env.unwrapped.get_state())


@pytest.mark.parametrize(
    "options",
    [{"t": (0, 0, 0)}, {"T": (0, 0)}, {"T": (0, np.nan, 0)}, {"pusher": (15, 0)}, {"pusher": "here"}],
)
def test_a_bad_scene_is_refused(env, options):
    with pytest.raises(InputError):
        env.reset(options=options)


@pytest.mark.parametrize("options", [{"image_size": 8}, {"control_steps": 0}, {"cubes": 1}])
def test_bad_options_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        gymnasium.make(ID, **options)


def test_physics_that_leave_the_numbers_are_an_error(env):
    env.reset(seed=0)
    env.unwrapped._game.agent.velocity = (float("inf"), 0.0)
    with pytest.raises(SimulationError):
        env.step(np.zeros(2, np.float32))


def test_a_free_pusher_goes_where_it_is_told_and_stays_in_reach(env):
    scene(env, (-10, -10), (5, 5, 0.3))
    for _ in range(3):
        observation, *_ = env.step(np.array([1.0, 0.5], np.float32))
    assert observation[AGENT_POS] == pytest.approx([-1, -5.5], abs=0.4)  # three times 3 and 1.5 cm, less 4%
    for _ in range(9):
        observation, *_ = env.step(np.array([0.0, -1.0], np.float32))
    assert observation[AGENT_POS][1] == pytest.approx(-14.5, abs=0.15)


def test_a_scene_set_by_hand_is_the_scene(env):
    info = scene(env, (-10, 9), (3, -4, 2.0))
    poses = {name: np.array(pose) for name, pose in info["object_states"].items()}
    assert poses["pusher"][:2] == pytest.approx([-10, 9]) and poses["T"] == pytest.approx([3, -4, 2.0])
    assert poses["tip"][:2] == pytest.approx(np.array([3, -4]) + turn(2.0) @ TIP_CM)
    info = scene(env, (-10, 9), env.unwrapped.goal())
    assert info[IS_SUCCESS] and info["coverage"] > 0.99 and info["distance"] == pytest.approx(0, abs=1e-6)
    assert env.step(np.zeros(2, np.float32))[1] == 1.0


def test_a_reset_never_puts_the_pusher_into_the_tee(env):
    for seed in range(60):
        env.reset(seed=seed)
        pusher, (x, y, yaw) = env.unwrapped.poses()[:2]
        assert outside(turn(yaw).T @ (pusher[:2] - (x, y))) > PUSHER_CM


def test_a_state_set_again_has_the_same_future(env):
    world = env.unwrapped
    env.reset(seed=4)
    collect = behaviour_of(ID).begin(world, "noisy", np.random.default_rng(0))
    for _ in range(10):
        env.step(collect(world.environment_state()))
    state, actions, futures = world.get_state(), actions_of(1, 8), []
    lived = np.stack([env.step(action)[4]["environment_state"] for action in actions])
    for _ in range(2):
        world.set_state(state)
        assert np.array_equal(world.get_state(), state)
        futures.append(np.stack([env.step(action)[4]["environment_state"] for action in actions]))
    assert np.array_equal(*futures)
    assert futures[0] == pytest.approx(lived, abs=0.2)  # the solver's memory is not in the state


def test_the_eye_finds_pusher_tee_and_angle(world):
    cache = record_frames(ID, {}, range(8), 30)
    truth = prediction.Truth(cache, world)
    seen, found = truth.see(truth.pixels)
    errors = prediction.position_errors(seen, found, truth.positions)
    assert found.all() and np.percentile(errors[..., :2], 95) < 0.35 and np.median(errors[..., 1]) < 0.15
    angles = truth.angle_errors(seen, found, truth.positions)
    assert np.median(angles) < 0.5 and np.percentile(angles, 95) < 1.5
    assert truth.bodies.tolist() == [False, True, False] and truth.words[1:] == ("T", "moves")


def test_the_eye_finds_nothing_where_nothing_is(world):
    cache = record_frames(ID, {}, range(1), 2)
    truth = prediction.Truth(cache, world)
    blank = np.full((2, 64, 64, 3), 255, np.uint8)
    seen, found = truth.see(blank)
    assert not found.any() and np.isnan(seen).all()
    assert (truth.angle_errors(seen, found, truth.positions[0, :2]) == 180).all()


@pytest.mark.parametrize("style", TeeCollector.STYLES)
def test_the_data_policy_stays_in_the_action_space(env, style):
    act = behaviour_of(ID).begin(env.unwrapped, style, np.random.default_rng(0))
    _, info = env.reset(seed=2)
    for _ in range(40):
        action = act(info["environment_state"])
        assert action in env.action_space
        info = env.step(action)[4]


def test_the_mix_turns_and_moves_the_tee_and_keeps_it_inside(env):
    episodes = [collect_episode(env, seed, 40) for seed in range(25)]
    names = env.unwrapped.state_names
    assert sum(moving_steps(episode.states, names) for episode in episodes) / (25 * 40) > 0.35
    tees = np.stack(
        [episode.states[:, [names.index(f"T.{part}") for part in ("x", "y", "yaw")]] for episode in episodes]
    )
    assert np.abs(tees[..., :2]).max() < ARENA_CM / 2
    turned = np.abs(np.unwrap(tees[..., 2], axis=1) - tees[:, :1, 2]).max(1)
    assert np.median(turned) > np.pi / 4
    assert np.array_equal(episodes[3].pixels, collect_episode(env, 3, 40).pixels)


def test_the_expert_brings_the_tee_nearer():
    env = gymnasium.make(ID, terminate_on_success=False, max_episode_steps=-1)
    left = []
    for seed in range(8):
        _, info = env.reset(seed=seed)
        act, least = behaviour_of(ID).begin(env.unwrapped, "expert", np.random.default_rng(seed)), info["distance"]
        for _ in range(60):
            info = env.step(act(info["environment_state"]))[4]
            least = min(least, info["distance"])
        left.append(least)
    env.close()
    assert np.median(left) < 1.5  # cm; episodes begin about 8 cm away


def test_no_contact_is_looked_for_inside_the_tee():
    policy = TeeCollector("expert", TeeConfig(tuple(map(tuple, BOXES_CM))), np.random.default_rng(0)).expert
    assert len(policy.contacts) > 50
    assert (outside(policy.contacts - (PUSHER_CM + 0.1) * policy.inwards) > PUSHER_CM - 0.1).all()


def test_a_world_that_nobody_plays_is_refused():
    with pytest.raises(DatasetError, match="PushT"):
        behaviour_of("emu_embodied/Other-v0")


def test_it_trains_and_is_evaluated_from_the_command_line(tmp_path, capsys):
    words = ["recipe.collect.episodes=6", "recipe.held_out=2", "workers=1", "threads=1", f"out={tmp_path / 'run'}"]
    assert main(["train", "preset=tiny", "env=pusht", *words]) == 0
    checkpoint = f"checkpoint={tmp_path / 'run' / 'checkpoint'}"
    small = ["episodes=2", "steps=24", "worst=1", f"out={tmp_path / 'table'}"]
    assert main(["evaluate", checkpoint, *small]) == 0  # the env is the checkpoint's own
    result = json.loads((tmp_path / "table" / "result.json").read_text())
    assert result["settings"]["env"]["id"] == ID and result["settings"]["horizon"] == 5
    assert any("angle error by eye" in figure["name"] for figure in result["figures"])
    assert (tmp_path / "table" / "worst-01.png").is_file()
    assert main(["evaluate", checkpoint, "env.options.stochastic=true", *small]) == 2
    assert "PushT" in capsys.readouterr().err


def test_a_wrong_env_is_named():
    from emu_embodied.commands.evaluate import _environment

    assert _environment(compose_config("evaluate", []), ID).id == ID
    with pytest.raises(ConfigError, match="Other"):
        _environment(compose_config("evaluate", []), "emu_embodied/Other-v0")


def test_a_planner_wants_the_tee_on_its_mark(env):
    from types import SimpleNamespace

    import torch

    from emu_embodied.rollouts.goals.task_costs import build_cost

    env.reset(seed=0)
    model = SimpleNamespace(objects=("pusher", "T", "tip"))
    cost, aims = build_cost("positions", env, model), env.unwrapped.aims()
    there = np.concatenate([aims[:1] + 3.0, aims])
    shifted, far = there.copy(), there.copy()
    shifted[1:] += (2.0, 0.0)
    far[0] = aims[0] + 12.0
    positions = torch.tensor(np.stack([there, shifted, far]), dtype=torch.float32)[None, :, None]
    costs = cost(model, SimpleNamespace(positions_BSTOD=positions), None)[0].numpy()
    assert costs[0] < 0.1 and costs[1] == pytest.approx(2.0, abs=0.1) and costs[2] > costs[0]
    with pytest.raises(ConfigError, match="image"):
        build_cost("image", env, model)
    with pytest.raises(InputError, match="tip"):
        build_cost("positions", env, SimpleNamespace(objects=("pusher", "T")))


def test_plan_plays_it_from_the_command_line(tmp_path):
    assert main(["plan", "env=pusht", "agent=expert", "steps=6", "videos=0", f"out={tmp_path}"]) == 0
    (run,) = tmp_path.iterdir()
    row = json.loads((run / "result.json").read_text())["episodes"][0]
    assert row["instruction"].startswith("Push the T") and row["steps"] == 6


# What is shipped


@pytest.fixture(scope="module")
def shipped():
    return emu_embodied.load("nano-pusht")


def test_the_shipped_model_is_small_and_says_how_it_was_made(shipped):
    folder = checkpoint_path("nano-pusht")
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 20e6
    assert shipped.world.env_id == ID and shipped.world.landmarks == {"tip": "T"}
    assert (folder / "README.md").is_file() and json.loads((folder / "metrics.json").read_text())["figures"]


def test_the_shipped_model_is_better_than_copying_the_last_frame(shipped):
    truth = prediction.Truth(record_frames(ID, {}, range(5_000_000, 5_000_016), 24), shipped.world)
    figures = prediction.quick_quality(shipped, truth, steps=5)
    assert figures["moved_ratio_1"] < 0.6
    assert figures["head_median_px_5"] < 0.5 * figures["copy_median_px_5"]
    assert figures["angle_median_deg_5"] < figures["copy_angle_median_deg_5"]


def test_the_shipped_model_dreams_in_the_real_envs_spaces(shipped):
    dream = gymnasium.make("emu_embodied/Imagined-v0", world_model=shipped)
    first, info = dream.reset(seed=7)
    assert info["task"].startswith("Push the T") and dream.unwrapped.metadata["render_fps"] in (2, 4)
    observation, *_ = dream.step(np.array([0.5, 0.0], np.float32))
    assert observation[PIXELS].shape == first[PIXELS].shape and np.isfinite(observation[AGENT_POS]).all()
    dream.close()


def test_the_true_simulator_plans_it_from_the_command_line(tmp_path, capsys):
    words = ["candidates=4", "iterations=1", "elites=2", "horizon=2", "steps=2", "episodes=1", f"out={tmp_path}"]
    assert main(["plan", "env=pusht", "agent=oracle", *words]) == 0
    assert "success" in capsys.readouterr().out
