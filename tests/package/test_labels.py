"""What no data told of is not believed: it ends no dream, enters no cost, and is in no info and no record."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from arm import arm_model, frames, planner
from tiny import WORLD, tiny_world_model

from emu_embodied.checkpoint import World, load_checkpoint, save_checkpoint
from emu_embodied.envs.imagined.beliefs import Beliefs
from emu_embodied.envs.imagined.env import ImaginedEnv
from emu_embodied.envs.imagined.vector_env import ImaginedVectorEnv
from emu_embodied.errors import InputError
from emu_embodied.loading import checkpoint_path
from emu_embodied.policies import costs
from emu_embodied.rollouts.collection.imagined import ImagineSettings, imagine
from emu_embodied.rollouts.vector_envs import DreamtWorlds
from emu_embodied.storage.files import load_folder, save_folder
from emu_embodied.types import Observation

SURE = 9.0  # of a success head that nobody trained: it believes in every frame


def sure(model):
    """The same model with heads that say that all is done, and well done."""
    with torch.no_grad():
        model.model.heads.value[-1].bias.fill_(SURE)
    return model


def test_an_untrained_head_ends_no_dream_and_claims_nothing():
    env = ImaginedEnv(sure(arm_model()), starts=frames())
    _, begun = env.reset(seed=0)
    for _ in range(5):
        _, reward, terminated, _, info = env.step(env.action_space.sample())
        assert not terminated and reward == 0.0
    assert set(begun) == set(info) == {"entropy", "task"}  # recorders want the same keys from the reset on
    env = ImaginedEnv(sure(arm_model(known=("success",))), starts=frames())
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(env.action_space.sample())
    assert terminated and info["is_success"] and reward == 0.0


def test_a_vector_of_dreams_goes_on_too():
    env = ImaginedVectorEnv(sure(arm_model()), 3, starts=frames())
    env.reset(seed=0)
    _, rewards, terminations, _, infos = env.step(env.action_space.sample())
    assert not terminations.any() and not rewards.any() and "is_success" not in infos


@pytest.mark.parametrize(
    "label, cost",
    [
        ("reward", costs.RewardHead()),
        ("positions", costs.ObjectPositions(lambda positions: positions[..., 0, 0].abs())),
        ("positions", costs.ObjectLost(0)),
        ("positions", costs.BehindObject(lambda p: p[..., 0, 0], lambda p: p[..., 0, :], 0, 1)),
    ],
)
def test_a_cost_that_needs_what_nobody_trained_is_refused(label, cost):
    known = {"reward", "success", "positions"} - {label}
    model = tiny_world_model(world=replace(WORLD, known=tuple(known)))
    history = model.encode([Observation(np.zeros((64, 64, 3), np.uint8), np.zeros(model.agent_dim, np.float32))])
    for wanted in (cost, costs.WeightedSum([(1.0, costs.ActionEffort()), (0.5, cost)])):
        with pytest.raises(InputError, match=f"does not know its {label}"):
            planner().plan(model, history, wanted)
    planner().plan(model, history, costs.Uncertainty())


def test_who_needs_success_or_places_says_so():
    blind = tiny_world_model(world=replace(WORLD, known=("reward",)))
    assert blind.agent_dim == 0
    with pytest.raises(InputError, match="beliefs"):
        ImaginedEnv(blind, starts=frames(), observe=["beliefs"])
    with pytest.raises(InputError, match="beliefs"):
        Beliefs(ImaginedEnv(tiny_world_model()), blind)
    with pytest.raises(InputError, match="success"):
        DreamtWorlds(blind, WORLD.env_id, {})


def test_records_hold_what_is_known(tmp_path):
    import pyarrow.parquet as parquet

    for known, columns in (((), set()), (("success",), {"next.success"}), (("reward",), {"next.reward"})):
        root = tmp_path / "-".join(("dreams", *known))
        summary = imagine(
            arm_model(known=known), ImagineSettings("a", "0", 1, steps=3), root, frames(), lambda line: None
        )
        table = parquet.read_table(next((root / "data").glob("*/*.parquet")))
        assert {name for name in table.column_names if name.startswith("next.")} == columns
        assert (summary.success is None) == ("success" not in known)


def test_a_training_remembers_which_labels_its_data_had():
    known = np.array([[False, True, False], [False, True, True]])
    assert World({}, (1.0, -1.0), "").learnt_from(known).known == ("success", "positions")
    assert World({}, (1.0, -1.0), "", known=("reward",)).learnt_from(known[:1]).known == ("reward", "success")


def test_a_checkpoint_from_before_is_judged_by_what_it_was_trained_on(tmp_path):
    for env_id, wanted in ((WORLD.env_id, ("reward", "success", "positions")), ("", ())):
        model = tiny_world_model(world=replace(WORLD, env_id=env_id))
        path = tmp_path / (env_id.partition("/")[2] or "none")
        save_checkpoint(path, model.tokenizer, model.text, model.model, model.world, {})
        tensors, documents = load_folder(path)
        del documents["config"]["world"]["known"]
        save_folder(path, tensors, documents)
        assert load_checkpoint(path)[3].known == wanted


@pytest.mark.parametrize("name", ["nano-tabletop", "nano-pusht"])
def test_the_shipped_models_know_all(name):
    assert load_checkpoint(checkpoint_path(name))[3].known == ("reward", "success", "positions")
