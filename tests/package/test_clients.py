"""Our worlds and datasets in the hands of others' clients: TorchRL, Minari, stable-worldmodel's World, LeRobot's tools."""

from __future__ import annotations

import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from tiny import tiny_world_model

import emu_embodied.envs  # noqa: F401  registers the worlds
from emu_embodied.data.lerobot_format import write_dataset
from emu_embodied.envs.tabletop.env import STATE_NAMES
from emu_embodied.envs.tabletop.tasks import COLOURS, all_tasks
from emu_embodied.errors import InputError, KeywordError
from emu_embodied.rollouts.collection.episodes import collect_episode, names_of
from emu_embodied.rollouts.collection.imagined import ImagineSettings, imagine
from emu_embodied.rollouts.vector_envs import DreamtWorlds, laid_out

TABLETOP = "emu_embodied/TabletopPush-v0"
WORLDS = (TABLETOP, "emu_embodied/Reacher-v0")


@pytest.mark.parametrize("name", WORLDS)
def test_an_unknown_keyword_is_what_clients_try_out(name: str):
    with pytest.raises(KeywordError, match=r"unexpected keyword argument 'frameskip'; \S+ knows") as caught:
        gymnasium.make(name, frameskip=2)
    assert isinstance(caught.value, TypeError) and isinstance(caught.value, InputError)


@pytest.mark.parametrize("name", [*WORLDS, "emu_embodied/Imagined-v0"])
def test_torchrl_rolls_out(name: str):
    gym = pytest.importorskip("torchrl.envs.libs.gym", reason="torchrl is not installed")
    more = {"world_model": tiny_world_model()} if "Imagined" in name else {}
    env = gym.GymEnv(name, frame_skip=2, **more)
    steps = env.rollout(2)
    assert steps["pixels"].dtype == torch.uint8 and steps.batch_size[0] in (1, 2)
    env.close()


@pytest.mark.parametrize("name", [*WORLDS, "emu_embodied/Imagined-v0"])
def test_infos_have_the_same_keys_from_the_reset_on(name: str):
    more = {"world_model": tiny_world_model()} if "Imagined" in name else {}
    with gymnasium.make(name, **more) as env:
        before = env.reset(seed=0)[1]
        after = env.step(np.zeros(env.action_space.shape, np.float32))[4]
    assert set(before) == set(after)
    assert all(set(before[key]) == set(after[key]) for key in before if isinstance(before[key], dict))


@pytest.mark.parametrize("name", [TABLETOP, "emu_embodied/Imagined-v0"])
def test_minari_records_infos(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for needed in ("minari", "h5py", "jax"):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    import minari

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    more = {"world_model": tiny_world_model()} if "Imagined" in name else {}
    env = minari.DataCollector(gymnasium.make(name, max_episode_steps=3, **more), record_infos=True, data_format="hdf5")
    for seed in range(2):
        env.reset(seed=seed)
        while not any(env.step(np.zeros(2, np.float32))[2:4]):
            pass
    with warnings.catch_warnings(action="ignore"):  # of an author and a licence that are not given
        assert env.create_dataset("test/ours-v0").total_episodes == 2
    env.close()


def test_stable_worldmodels_world_plans_with_its_solver():
    with warnings.catch_warnings(action="ignore"):
        world = pytest.importorskip("stable_worldmodel.world", reason="stable-worldmodel is not installed")
        from stable_worldmodel.policy import PlanConfig
        from stable_worldmodel.solver import CEMSolver
    from emu_embodied.policies.stable_worldmodel import CostableWorldModel
    from emu_embodied.rollouts.goals.task_costs import task_cost

    model = tiny_world_model()
    costs = CostableWorldModel(model, task_cost("positions", all_tasks(COLOURS)[0], model.objects))
    solver = CEMSolver(costs, num_samples=4, n_steps=1, topk=2)
    clip = [gymnasium.wrappers.ClipAction]
    worlds = world.World(TABLETOP, 2, add_pixels=False, goal_conditioned=False, pre_wrappers=clip)
    worlds.reset(seed=0)
    solver.configure(action_space=gymnasium.spaces.Box(-1, 1, (2, 2)), n_envs=2, config=PlanConfig(2, 1))
    seen = {"pixels": torch.from_numpy(np.asarray(worlds.infos["pixels"]))}
    actions = 5 * np.asarray(solver.solve(seen)["actions"])[:, 0]
    worlds.envs.step(actions)  # far outside the bounds
    worlds.close()


def test_dreams_are_laid_out_as_the_world_is():
    own = ["red.x", "red.y", "red.present"]
    state = laid_out(np.array([[1.0, 2.0, 1.0]]), own, list(STATE_NAMES))
    assert state.shape == (1, 24) and state.dtype == np.float32 and state.sum() == 4
    assert dict(zip(STATE_NAMES, state[0], strict=True))["red.y"] == 2
    dreams = DreamtWorlds(tiny_world_model(), TABLETOP, {})
    moment = dreams.begin([1])
    dreams.close()
    assert sorted(moment.states) == sorted(shape[0] for shape in dreams.shapes["observation.environment_state"])
    assert 24 in moment.states and np.array_equal(moment.states[24], laid_out(*_layouts(dreams, moment)))


def _layouts(dreams: DreamtWorlds, moment) -> tuple:
    names = [f"{name}.{part}" for name in dreams.objects for part in ("x", "y", "present")]
    return moment.states[len(names)], names, list(STATE_NAMES)


def test_lerobot_merges_real_and_dreamt_datasets(tmp_path: Path):
    tools = pytest.importorskip("lerobot.datasets.dataset_tools", reason="lerobot is not installed")
    with gymnasium.make(TABLETOP, max_episode_steps=-1, terminate_on_success=False) as env:
        names, fps = names_of(env.unwrapped), env.metadata["render_fps"]
        write_dataset(tmp_path / "real", [collect_episode(env, seed, 3) for seed in range(2)], names, fps)
    settings = ImagineSettings("tiny", "none", 2, 3)
    imagine(tiny_world_model(), settings, tmp_path / "dreamt", report=str)
    parts = [tools.LeRobotDataset(name, root=tmp_path / name) for name in ("real", "dreamt")]
    assert parts[0].meta.features == parts[1].meta.features
    whole = tools.merge_datasets(parts, "whole", tmp_path / "whole")
    assert whole.meta.total_episodes == 4 and whole[0]["observation.environment_state"].shape == (24,)
