"""Policies tried in real and imagined worlds: order, pairing, resuming, LeRobot's own ACT, and what does not fit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import WORLD, tiny_world_model

from emu_embodied.checkpoint import save_checkpoint
from emu_embodied.commands import main
from emu_embodied.errors import CheckpointError, ConfigError, InputError, SimulationError
from emu_embodied.rollouts.agents import lerobot
from emu_embodied.rollouts.agents.lerobot import load_agent, planning_agent, policy_label
from emu_embodied.rollouts.agents.random import RandomAgent
from emu_embodied.rollouts.agents.scripted import ExpertAgent
from emu_embodied.rollouts.collection.imagined import ImagineSettings, imagine
from emu_embodied.rollouts.evaluation.policy_ranking import (
    PolicySettings,
    compare,
    evaluate_policy,
    summarise,
)
from emu_embodied.rollouts.vector_envs import DreamtWorlds, RealWorlds
from emu_embodied.types import ACTION, OBS_ENVIRONMENT_STATE, OBS_IMAGE, OBS_STATE

ENV = WORLD.env_id
SETTINGS = PolicySettings("random", "imagined", ENV, batch=3, max_steps=4)


@pytest.fixture(scope="module")
def model():
    return tiny_world_model()


@pytest.fixture(scope="module")
def dreams(model):
    worlds = DreamtWorlds(model, ENV, {})
    yield worlds
    worlds.close()


@pytest.fixture(scope="module")
def real(model):
    worlds = RealWorlds(ENV, {}, model.objects)
    yield worlds
    worlds.close()


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    save_checkpoint(path, model.tokenizer, model.text, model.model, WORLD, {})
    return path


@pytest.fixture(scope="module")
def act(model, tmp_path_factory) -> Path:
    """LeRobot's ACT, trained two steps on dreams with all that they hold, and saved as `lerobot-train` does."""
    import datasets
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.policies import make_policy, make_pre_post_processors
    from lerobot.policies.factory import make_policy_config

    folder = tmp_path_factory.mktemp("act")
    imagine(model, ImagineSettings("tiny", "0", episodes=2, steps=5), folder / "dreams", report=str)
    sizes = {"dim_model": 32, "n_heads": 2, "dim_feedforward": 32, "n_encoder_layers": 1, "n_vae_encoder_layers": 1}
    config = make_policy_config(
        "act", chunk_size=2, n_action_steps=2, pretrained_backbone_weights=None, device="cpu", **sizes
    )
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        torch.manual_seed(0)
        steps = {ACTION: [0, 0.25]}
        dataset = LeRobotDataset("dreams", root=folder / "dreams", delta_timestamps=steps)
        policy = make_policy(config, ds_meta=dataset.meta)
        processors = make_pre_post_processors(config, dataset_stats=dataset.meta.stats)
        optimiser = torch.optim.AdamW(policy.get_optim_params(), lr=1e-3)
        for batch in torch.utils.data.DataLoader(dataset, batch_size=6):
            loss, _ = policy.forward(processors[0](batch))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    policy.config.pretrained_backbone_weights = (
        "ResNet18_Weights.IMAGENET1K_V1"  # as by default: nothing may be fetched
    )
    for part in (policy, *processors):
        part.save_pretrained(folder / "policy")
    return folder / "policy"


@pytest.fixture
def copy(act, tmp_path) -> Path:
    return Path(shutil.copytree(act, tmp_path / "policy"))


def edit(path: Path, change) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def test_an_expert_is_better_than_chance_in_the_real_world(real):
    settings = replace(SETTINGS, world="real", batch=8, max_steps=40)
    rows = {
        a: evaluate_policy(settings, range(8), real, b)
        for a, b in (("expert", ExpertAgent()), ("random", RandomAgent()))
    }
    expert, random = summarise(rows["expert"]), summarise(rows["random"])
    assert expert["rate"] >= 0.8 > 0.3 >= random["rate"] and expert["return_mean"] > random["return_mean"]
    assert expert["wilson_95"][0] > random["wilson_95"][1] and expert["steps_median"] < 40
    assert all(row["steps"] < 40 or not row["success"] for row in rows["expert"])


def test_an_expert_that_strays_is_worse_and_plays_in_dreams_too(real, dreams):
    settings = replace(SETTINGS, world="real", batch=8, max_steps=40)
    steps = [summarise(evaluate_policy(settings, range(8), real, ExpertAgent(stray))) for stray in (0.0, 0.7)]
    assert steps[1]["return_mean"] < steps[0]["return_mean"]
    moment = dreams.begin([3, 4])
    agent = ExpertAgent()
    agent.check(dreams)
    agent.begin(dreams, [3, 4])
    assert agent.act(moment).shape == (2, 2) and np.abs(agent.act(moment)).max() <= 1


@pytest.mark.parametrize("yaw", [-2.0, 0.0, 1.0])
def test_pushts_expert_reads_the_angle_from_the_tip(yaw):
    """The same action from places as from the simulator's pose."""
    pytest.importorskip("gym_pusht")
    worlds = RealWorlds("emu_embodied/PushT-v0", {}, ("pusher", "T", "tip"))
    agent, seen = ExpertAgent(), []
    agent.check(worlds)
    worlds.begin([1])
    worlds.envs[0].unwrapped.reset(options={"pusher": (8, 8), "T": (-4, 3, yaw)})
    moment = worlds.step(np.zeros((1, 2), np.float32))
    agent.begin(worlds, [1])
    act = agent._acts[0].act
    agent._acts[0].act = lambda *poses: seen.append(poses) or act(*poses)
    agent.act(moment)
    pose = worlds.envs[0].unwrapped.poses()
    np.testing.assert_allclose(seen[0][1], pose[1], atol=1e-4)
    np.testing.assert_allclose(seen[0][0], pose[0, :2], atol=1e-4)
    worlds.close()


def test_both_worlds_start_alike(real, dreams, model):
    seeds = [3, 4]
    here, there = real.begin(seeds), dreams.begin(seeds)
    assert here.tasks == there.tasks and np.array_equal(here.agent_pos, there.agent_pos)
    rendered = model.decode(model.tokenizer.encode(torch.from_numpy(here.pixels)))
    assert np.array_equal(there.pixels, rendered)
    size = 3 * len(model.objects)
    assert here.states[size].shape == there.states[size].shape == (2, size)
    np.testing.assert_allclose(here.states[size][:, :2], here.agent_pos, atol=1e-5)


def test_a_dream_depends_on_its_seed_and_actions_alone(dreams):
    one = evaluate_policy(SETTINGS, range(3), dreams, RandomAgent())
    assert one == evaluate_policy(SETTINGS, range(3), dreams, RandomAgent())
    assert [row["seed"] for row in one] == [0, 1, 2] and len({row["return"] for row in one}) == 3
    assert all(1 <= row["steps"] <= 4 for row in one)


def test_stopped_and_continued_it_is_the_same(dreams, tmp_path):
    whole = evaluate_policy(SETTINGS, range(7), dreams, RandomAgent(), tmp_path / "whole.jsonl")
    calls = []

    def stop(run) -> None:
        calls.append(run.seed)
        if len(calls) == 4:
            raise KeyboardInterrupt

    path = tmp_path / "stopped.jsonl"
    with pytest.raises(KeyboardInterrupt):
        evaluate_policy(SETTINGS, range(7), dreams, RandomAgent(), path, stop)
    path.write_text(path.read_text() + '{"seed": 5, "succ')  # as a kill leaves it
    played = []
    assert evaluate_policy(SETTINGS, range(7), dreams, RandomAgent(), path, played.append) == whole
    assert {run.seed for run in played}.isdisjoint({0, 1, 2})
    assert evaluate_policy(SETTINGS, range(7), dreams, RandomAgent(), path, pytest.fail) == whole
    with pytest.raises(ConfigError, match="max_steps: 5; .* begun with 4"):
        evaluate_policy(replace(SETTINGS, max_steps=5), range(7), dreams, RandomAgent(), path)


class Constant:
    """Always the same action."""

    def __init__(self, action) -> None:
        self.action = action

    def check(self, worlds) -> None: ...

    def begin(self, worlds, seeds) -> None:
        self.count = len(seeds)

    def act(self, moment) -> np.ndarray:
        return np.tile(np.array(self.action), (self.count, 1))


def test_actions_beyond_the_world_are_clipped_and_counted(dreams):
    far = evaluate_policy(SETTINGS, range(2), dreams, Constant([3.0, 0.5]))
    near = evaluate_policy(SETTINGS, range(2), dreams, Constant([1.0, 0.5]))
    assert [row["clipped"] for row in far] == [0.5, 0.5] and summarise(near)["clipped_mean"] == 0
    assert [row["return"] for row in far] == [row["return"] for row in near]
    with pytest.raises(SimulationError, match="NaN"):
        evaluate_policy(SETTINGS, range(2), dreams, Constant([np.nan, 0]))


def test_pairs_are_compared():
    def rows(wins, returns):
        return [
            {"seed": i, "instruction": "", "success": win, "return": total, "steps": 5, "clipped": 0.0}
            for i, (win, total) in enumerate(zip(wins, returns, strict=True))
        ]

    found = compare(rows([True, True, False, False], [4, 3, 1, 0]), rows([True, False, False, True], [8, 6, 2, 0]))
    assert [found[name] for name in ("both", "only_real", "only_imagined", "neither", "agree")] == [1, 1, 1, 1, 0.5]
    assert found["rate_difference"] == 0 and found["return_correlation"] == pytest.approx(1)
    assert found["rate_difference_95"][0] < 0 < found["rate_difference_95"][1]
    assert compare(rows([True], [1]), rows([True], [1]))["return_correlation"] is None


def test_lerobots_act_acts_in_dreams_and_for_real(act, dreams, real):
    agent = load_agent(act, "cpu")
    assert agent.inputs == {OBS_IMAGE: (3, 64, 64), OBS_STATE: (2,), OBS_ENVIRONMENT_STATE: (24,)}
    for name, worlds in (("imagined", dreams), ("real", real)):
        settings = replace(SETTINGS, policy=policy_label(act), world=name)
        rows = evaluate_policy(settings, range(4), worlds, agent)
        assert rows == evaluate_policy(settings, range(4), worlds, load_agent(act, "cpu"))
        assert len(rows) == 4 and np.isfinite([row["return"] for row in rows]).all()


def test_it_acts_as_lerobot_eval_would(act, real):
    """The same keys, processors and calls: an action is the saved policy's for LeRobot's own batch."""
    from lerobot.envs import preprocess_observation
    from lerobot.policies import make_pre_post_processors

    agent, moment = load_agent(act, "cpu"), real.begin([5])
    agent.begin(real, [5])
    before, after = make_pre_post_processors(agent.policy.config, str(act))
    seen = {"pixels": moment.pixels, "agent_pos": moment.agent_pos, "environment_state": moment.states[24]}
    batch = before({**preprocess_observation(seen), "task": moment.tasks})
    expected = after(agent.policy.predict_action_chunk(batch)[:, 0]).detach().numpy()
    np.testing.assert_allclose(agent.act(moment), expected, atol=1e-6)


def test_the_planner_is_a_policy_too(checkpoint, dreams):
    agent = planning_agent(str(checkpoint), "cpu", candidates=4, elites=2, iterations=1, horizon=2, execute=2)
    rows = evaluate_policy(replace(SETTINGS, policy="emu_mpc", max_steps=2), range(2), dreams, agent)
    assert len(rows) == 2 and not any(row["clipped"] for row in rows)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "it has no model.safetensors"),
        (lambda folder: (folder / "policy_preprocessor.json").unlink(), "it has no policy_preprocessor.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "no JSON object"),
        (lambda folder: edit(folder / "config.json", lambda c: c.update(type="magic")), "LeRobot cannot load it"),
        (lambda folder: edit(folder / "config.json", lambda c: c.update(dim_model=64)), "LeRobot cannot load it"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "LeRobot cannot load it"),
        (
            lambda folder: edit(
                folder / "policy_preprocessor.json", lambda p: p["steps"].append({"class": "os.system"})
            ),
            "it names code to import",
        ),
    ],
)
def test_a_damaged_policy_is_one_typed_error(copy, damage, message):
    damage(copy)
    with pytest.raises(CheckpointError, match=message):
        load_agent(copy, "cpu")


@pytest.mark.parametrize(
    ("inputs", "output", "message"),
    [
        ({OBS_IMAGE: (3, 96, 96)}, (2,), r"observation.image: shape \(3, 96, 96\); this world shows .*\(3, 64, 64\)"),
        ({"observation.images.top": (3, 64, 64)}, (2,), "observation.images.top"),
        ({OBS_STATE: (7,)}, (2,), "observation.state"),
        ({OBS_ENVIRONMENT_STATE: (25,)}, (2,), "observation.environment_state"),
        ({}, (6,), r"action: shape \(6,\); this world's actions have shape \(2,\)"),
    ],
)
def test_a_policy_of_another_world_is_refused(dreams, inputs, output, message):
    agent = lerobot.LeRobotAgent(None, (None, None), inputs, output)
    with pytest.raises(InputError, match=message):
        evaluate_policy(SETTINGS, range(2), dreams, agent)


def test_what_the_preprocessor_renames_is_asked_for_by_the_envs_name(copy):
    def rename(saved) -> None:
        (step,) = (step for step in saved["steps"] if step["registry_name"] == "rename_observations_processor")
        step["config"]["rename_map"] = {OBS_STATE: "observation.state"}

    edit(copy / "policy_preprocessor.json", rename)
    assert OBS_STATE in load_agent(copy, "cpu").inputs
    steps = [{"config": {"rename_map": {OBS_IMAGE: "observation.images.top"}}}]
    assert lerobot._renamed(steps) == {"observation.images.top": OBS_IMAGE}
    steps += [{"config": None}, {"config": {"rename_map": {"observation.images.top": "observation.images.cam", "a": "b"}}}]
    assert lerobot._renamed(steps) == {"observation.images.cam": OBS_IMAGE, "b": "a"}
    assert lerobot._renamed([{"config": {"rename_map": {"a": "b", "b": "a"}}}]) == {"a": "b", "b": "a"}


@pytest.mark.parametrize("config", [[], "x", 3, {"rename_map": ["a"]}, {"rename_map": {"a": 1}}])
def test_a_processor_whose_steps_are_no_mappings_is_refused(copy, config):
    edit(copy / "policy_preprocessor.json", lambda saved: saved["steps"][0].update(config=config))
    with pytest.raises(CheckpointError, match=r"policy_preprocessor.json.*(mapping)"):
        load_agent(copy)


def test_other_weights_are_another_policy(copy, act):
    assert policy_label(copy).split()[1] == policy_label(act).split()[1]
    edit(copy / "config.json", lambda config: config.update(n_action_steps=1))
    assert policy_label(copy).split()[1] != policy_label(act).split()[1]


def test_the_command_compares_worlds_and_goes_on(act, checkpoint, tmp_path, capsys):
    words = ["evaluate-policy", f"policy={act}", f"checkpoint={checkpoint}", "world=both", "episodes=3", "batch=2"]
    words += ["steps=3", "videos=1", "device=cpu"]
    assert main([*words, f"out={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "imagined" in printed and "real" in printed and "the same verdict in" in printed
    (folder,) = tmp_path.iterdir()
    assert {path.name for path in folder.iterdir()} == {"real.jsonl", "imagined.jsonl", "result.json", "episode-0.mp4"}
    result = json.loads((folder / "result.json").read_text())
    assert result["compared"]["n"] == 3 and len(result["compared"]["pairs"]) == 3 and result["seeds"] == [0, 1, 2]
    assert result["versions"]["lerobot"] and result["worlds"]["imagined"]["wilson_95"][1] < 1.01
    assert main([*words, f"resume={folder}"]) == 0
    again = json.loads((folder / "result.json").read_text())
    assert again == result and "seed 0" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["policy=nowhere"], "policy: nowhere; give a folder"),
        (["policy=expert", "stray=2"], "stray: 2"),
        (["policy=random", "stray=0.5"], "stray: 0.5"),
        (["policy=random", "world=mars"], "world: mars"),
        (["policy=random", "checkpoint=nowhere"], "checkpoint: nowhere"),
        (["policy=random", "env=pusht", "checkpoint=nano-tabletop"], "checkpoint: emu_embodied/TabletopPush-v0"),
        (["policy=random", "episodes=0"], "episodes: 0"),
        (["policy=random", "batch=0"], "batch: 0"),
        (["policy=random", "resume=nowhere"], "resume: nowhere"),
        ([], "policy"),
    ],
)
def test_a_wrong_word_is_one_line(words, message, tmp_path, capsys):
    assert main(["evaluate-policy", *words, f"out={tmp_path / 'out'}"]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1 and not (tmp_path / "out").exists()
