"""The LeRobot plugin, through LeRobot's own factories and `lerobot-eval`, with a tiny world model."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.envs import make_env, make_env_config, preprocess_observation
from lerobot.policies import make_policy, make_pre_post_processors
from lerobot.policies.factory import make_policy_config
from lerobot.scripts.lerobot_eval import eval_main
from lerobot.utils.import_utils import register_third_party_plugins
from tiny import WORLD, tiny_world_model

import emu_embodied
from emu_embodied.checkpoint import save_checkpoint
from emu_embodied.errors import CheckpointError, ConfigError, EmuEmbodiedError, InputError
from emu_embodied.policies import lerobot_plugin
from emu_embodied.policies.planners.cem import CEM
from emu_embodied.rollouts.agents.mpc import run_episode

ROOT = Path(__file__).resolve().parents[2]
BUDGET = {"candidates": 6, "elites": 2, "iterations": 2, "horizon": 3, "execute": 2}
ONE_EPISODE = ("--eval.n_episodes=1", "--eval.batch_size=1")
PUSH = "push the red cube to the left"


def saved(path: Path, **world) -> Path:
    model = tiny_world_model()
    parts = (model.tokenizer, model.text, model.model, dataclasses.replace(WORLD, **world))
    save_checkpoint(path, *parts, facts={})
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(saved(tmp_path_factory.mktemp("lerobot") / "tiny"))


def options(checkpoint: str, **more) -> dict:
    return {"checkpoint": checkpoint, "device": "cpu", **BUDGET, **more}


def policy_of(checkpoint: str, env: str = "emu_tabletop", **more):
    """The policy as lerobot-eval makes it."""
    return make_policy(make_policy_config("emu_mpc", **options(checkpoint, **more)), env_cfg=make_env_config(env))


def batch(envs: int = 1, size: int = 64, seed: int = 0, task: str = PUSH, **more) -> dict:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (envs, size, size, 3), dtype=np.uint8)
    seen = preprocess_observation({"pixels": pixels, "agent_pos": np.zeros((envs, 2), np.float32)})
    return {**seen, "task": [task] * envs, **more}


def test_it_acts_as_a_planned_episode_does(checkpoint: str):
    """Pictures come back as they were, histories and warm starts move on: the actions are those of `run_episode`."""
    policy = policy_of(checkpoint, seed=3)
    before, after = make_pre_post_processors(policy.config)
    (env,) = make_env(make_env_config("emu_tabletop", episode_length=5), n_envs=1)["emu_tabletop"].values()
    seen, _ = env.reset(seed=[3], options={"lerobot_new_rollout": True})
    actions = []
    for _ in range(5):
        words = {"task": list(env.call("task_description"))}
        with torch.inference_mode():
            action = after(policy.select_action(before({**preprocess_observation(seen), **words})))
        actions.append(action.numpy()[0])
        seen, _, _, _, info = env.step(action.numpy())
        assert "is_success" in (info.get("final_info") or info)
    env.close()
    model = emu_embodied.load(checkpoint, device="cpu")
    world = gymnasium.make("emu_embodied/TabletopPush-v0", disable_env_checker=True)
    run = run_episode(world, model, CEM(policy.config.planner, 3), seed=3, execute=2, max_steps=5)
    np.testing.assert_array_equal(np.stack(actions), run.actions)


def test_same_seed_same_actions_and_each_env_plans_by_itself(checkpoint: str):
    both = policy_of(checkpoint).select_action(batch(2))
    assert both.shape == (2, 2) and both.dtype == torch.float32 and both.abs().max() <= 1
    again = policy_of(checkpoint)
    for _ in range(2):
        assert torch.equal(again.select_action(batch(2)), both)
        again.reset()
    assert not torch.equal(policy_of(checkpoint, seed=7).select_action(batch(2)), both)
    second = {name: value[1:] for name, value in batch(2).items()}
    assert torch.equal(policy_of(checkpoint, seed=1).select_action(second), both[1:])


def test_a_batch_is_planned_at_once_as_env_by_env(checkpoint: str):
    together, asked = policy_of(checkpoint), []
    alone = [policy_of(checkpoint, seed=i) for i in range(3)]
    model = together.world_model
    real = model.rollout
    model.rollout = lambda history, *how: asked.append(len(history)) or real(history, *how)
    for step in range(3):
        seen = batch(3, seed=step)
        rows = [{name: value[i : i + 1] for name, value in seen.items()} for i in range(3)]
        expected = [policy.select_action(row) for policy, row in zip(alone, rows, strict=True)]
        assert torch.equal(together.select_action(seen), torch.cat(expected))
        imagined = torch.cat([policy.last_predicted_latents for policy in alone])
        assert torch.equal(together.last_predicted_latents, imagined)
    assert asked == [3] * 4  # two plans of two rounds


def test_what_was_imagined_becomes_a_video(checkpoint: str):
    policy, latents = policy_of(checkpoint), []
    assert policy.last_predicted_latents is None
    for step in range(3):
        policy.select_action(batch(2, seed=step))
        latents.append(policy.last_predicted_latents)
    assert all(codes.shape == (2, 1, 1, 16) for codes in latents)
    frames = policy.decode_predicted_latents(torch.cat(latents, dim=2))
    assert frames.shape == (3, 64, 128, 3) and frames.dtype == np.uint8
    model = policy.world_model
    rendered = model.decode(model.tokenizer.encode((batch()["observation.image"] * 255).round().byte().movedim(1, -1)))
    np.testing.assert_array_equal(policy_first_frame(policy, batch()), rendered[0])


def policy_first_frame(policy, seen: dict) -> np.ndarray:
    """What is shown as imagined at an episode's beginning."""
    policy.reset()
    policy.select_action(seen)
    return policy.decode_predicted_latents(policy.last_predicted_latents)[0]


def test_another_instruction_begins_a_new_episode(checkpoint: str):
    policy = policy_of(checkpoint)
    policy.select_action(batch(seed=1))
    later = policy.select_action(batch(seed=2, task="push the blue cube to the right"))
    policy.reset()
    assert torch.equal(policy.select_action(batch(seed=2, task="push the blue cube to the right")), later)


def test_a_chunk_is_the_plan_from_these_frames_alone(checkpoint: str):
    policy = policy_of(checkpoint)
    chunk = policy.predict_action_chunk(batch(2))
    assert chunk.shape == (2, 2, 2)
    policy.reset()
    assert torch.equal(policy.select_action(batch(2)), chunk[:, 0])


def test_another_robots_pictures_words_and_units(tmp_path: Path):
    """As PushT: 96 px, no instruction, positions from 0 to 512."""
    path = saved(tmp_path / "scaled", action_scale=((((256.0, 256.0), (200.0, 100.0))),))
    policy = policy_of(str(path), env="pusht", letterbox=True)
    seen = batch(size=96, task="")
    action = policy.select_action(seen)
    plain = policy_of(str(saved(tmp_path / "plain")), env="pusht", letterbox=True).select_action(seen)
    np.testing.assert_allclose(action, 256 + plain * torch.tensor([200.0, 100.0]), rtol=1e-6)
    told = policy_of(str(path), env="pusht", letterbox=True, goal="positions", instruction=PUSH)
    assert told.select_action(seen).shape == (1, 2)


def test_a_saved_policy_comes_back_with_its_processors(checkpoint: str, tmp_path: Path):
    policy_of(checkpoint, goal="reward").save_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path, cli_overrides=["--seed=5"])
    assert (config.type, config.checkpoint, config.goal, config.seed) == ("emu_mpc", checkpoint, "reward", 5)
    config.pretrained_path = tmp_path
    policy = make_policy(config, env_cfg=make_env_config("emu_tabletop"))
    overrides = {"device_processor": {"device": "cpu"}, "rename_observations_processor": {"rename_map": {}}}
    before, after = make_pre_post_processors(config, tmp_path, preprocessor_overrides=overrides)
    expected = policy_of(checkpoint, goal="reward", seed=5).select_action(batch())
    assert torch.equal(after(policy.select_action(before(batch()))), expected)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"goal": "win"}, ConfigError),
        ({"passes": 0}, ConfigError),
        ({"seed": -1}, ConfigError),
        ({"elites": 7}, InputError),
        ({"execute": 4}, InputError),
        ({"passes": 17}, InputError),
        ({"checkpoint": "nowhere"}, CheckpointError),
        ({"camera": "observation.images.wrist"}, InputError),
        ({"engine": "steam"}, EmuEmbodiedError),
    ],
)
def test_bad_options_are_one_typed_error(checkpoint: str, more: dict, error: type):
    with pytest.raises(error, match=next(iter(more))):
        policy_of(**{"checkpoint": checkpoint, **more})


def test_actions_of_another_shape_are_refused(checkpoint: str):
    with pytest.raises(InputError, match="action"):
        policy_of(checkpoint, env="aloha", camera="observation.images.top")


def test_a_model_of_several_action_scales_is_refused(tmp_path: Path):
    scales = (((0.0, 0.0), (1.0, 1.0)), ((0.0, 0.0), (2.0, 2.0)))
    mixed = str(saved(tmp_path / "mixed", action_scale=scales))
    with pytest.raises(ConfigError, match="action scales"):
        policy_of(mixed)
    first, second = (policy_of(mixed, dataset=i).select_action(batch()) for i in (0, 1))
    assert torch.equal(2 * first, second)
    with pytest.raises(InputError, match="dataset: 2"):
        policy_of(mixed, dataset=2)


def test_pictures_of_another_name_are_the_camera_where_there_are_no_others(checkpoint: str):
    expected, top = policy_of(checkpoint).select_action(batch()), "observation.images.top"

    def called(*names: str) -> dict:
        seen = batch()
        picture = seen.pop("observation.image")
        return {**seen, **dict.fromkeys(names, picture)}

    policy = make_policy(make_policy_config("emu_mpc", **options(checkpoint, execute=1)), env_cfg=renamed_env(top))
    assert torch.equal(policy.select_action(called(top)), expected)
    policy.reset()
    assert torch.equal(policy.select_action(called("observation.image")), expected)  # as after --rename_map
    policy.reset()
    assert torch.equal(policy.select_action(called(top, "observation.image")), expected)
    with pytest.raises(InputError, match="camera: .*choose one of .*top.*wrist"):
        policy.select_action(called(top, "observation.images.wrist"))
    with pytest.raises(InputError, match="camera: .*none that is there"):
        policy.select_action(called())
    named = make_policy_config("emu_mpc", **options(checkpoint, camera=top))
    assert torch.equal(make_policy(named, env_cfg=renamed_env(top)).select_action(called(top, "x")), expected)


def renamed_env(camera: str):
    """The table-top's env, whose pictures have another name."""
    env = make_env_config("emu_tabletop")
    env.features_map = {**env.features_map, "pixels": camera}
    return env


@pytest.mark.parametrize(
    ("seen", "field"),
    [
        (batch(size=96), "96 x 96 px; .*letterbox"),
        (batch(task="make tea"), "instruction"),
        (batch(task=""), "instruction"),
        (batch(task=["one"] * 2), "task"),
        (batch(**{"observation.image": None}), "observation.image"),
        (batch(**{"observation.image": torch.zeros(1, 64, 64, 3)}), "observation.image"),
        (batch(**{"observation.image": torch.zeros(1, 3, 64, 64, dtype=torch.uint8)}), "observation.image"),
        (batch(**{"observation.image": torch.full((1, 3, 64, 64), 255.0)}), "observation.image"),
        (batch(**{"observation.image": torch.full((1, 3, 64, 64), torch.nan)}), "observation.image"),
        (batch(**{"observation.state": torch.full((1, 2), torch.nan)}), "observation.state"),
        (batch(**{"observation.state": torch.zeros(2, 2)}), "observation.state"),
    ],
)
def test_bad_batches_are_one_typed_error(checkpoint: str, seen: dict, field: str):
    with pytest.raises(InputError, match=field):
        policy_of(checkpoint, goal="positions").select_action(seen)


def test_it_does_not_train(checkpoint: str):
    policy = policy_of(checkpoint)
    assert list(policy.parameters()) == [] and policy.get_optim_params() == {}
    for call in (lambda: policy.forward(batch()), policy.config.get_optimizer_preset):
        with pytest.raises(ConfigError, match="emu-embodied train"):
            call()


@pytest.fixture
def lerobot_eval(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Calls `lerobot-eval` in this process, with words for `emu_mpc` on `emu_tabletop`."""

    def run(*words: str) -> None:
        fixed = ["lerobot-eval", "--policy.type=emu_mpc", "--policy.device=cpu", "--env.type=emu_tabletop"]
        monkeypatch.setattr(sys, "argv", [*fixed, f"--output_dir={tmp_path / 'out'}", *words])
        register_third_party_plugins()
        eval_main()

    return run


def test_lerobot_eval_runs_to_its_end(checkpoint: str, lerobot_eval, monkeypatch, tmp_path: Path):
    """With the companion distribution installed, to `eval_info.json` and videos of what happened and was imagined."""
    shutil.copytree(ROOT / "distributions/lerobot_policy_emu_mpc", tmp_path / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(tmp_path / "source")], check=True)
    monkeypatch.syspath_prepend(tmp_path / "site")
    sizes = [f"--policy.{name}={value}" for name, value in BUDGET.items()]
    lerobot_eval(f"--policy.checkpoint={checkpoint}", *sizes, "--env.episode_length=3", *ONE_EPISODE)
    assert sys.modules.pop("lerobot_policy_emu_mpc").lerobot_plugin is lerobot_plugin  # LeRobot found it by its name
    overall = json.loads((tmp_path / "out/eval_info.json").read_text())["overall"]
    assert overall["n_episodes"] == 1
    for name in ("video_paths", "predicted_video_paths"):
        (path,) = overall[name]
        assert Path(path).stat().st_size > 0


def test_lerobot_eval_with_env_workers(checkpoint: str, lerobot_eval, monkeypatch, tmp_path: Path):
    """Processes of their own step the envs: they find the table-top where LeRobot's config of it is."""
    made = []
    monkeypatch.setattr(gymnasium.vector, "AsyncVectorEnv", _noted(gymnasium.vector.AsyncVectorEnv, made))
    sizes = [f"--policy.{name}={value}" for name, value in BUDGET.items()]
    two = ("--eval.n_episodes=2", "--eval.batch_size=2", "--eval.use_async_envs=true")
    lerobot_eval(f"--policy.checkpoint={checkpoint}", *sizes, "--env.episode_length=3", *two)
    (envs,) = made
    assert len(envs.processes) == 2 and not any(process.is_alive() for process in envs.processes)
    task = json.loads((tmp_path / "out/eval_info.json").read_text())["per_task"][0]["metrics"]
    assert len(task["successes"]) == 2 and np.isfinite(task["sum_rewards"]).all()
    assert all(Path(path).stat().st_size > 0 for path in [*task["video_paths"], *task["predicted_video_paths"]])


def _noted(kind: type, made: list) -> type:
    """The class, whose every instance is kept in `made`."""

    class Noted(kind):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    return Noted


def test_a_bad_option_of_lerobot_eval_is_named(lerobot_eval):
    with pytest.raises(ConfigError, match="goal: win; choose one of"):
        lerobot_eval("--policy.goal=win", *ONE_EPISODE)
