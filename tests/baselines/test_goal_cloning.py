"""Behaviour cloning: learns from recorded goals, is kept and resumed, and plays protocol A beside the planners."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import quiet

from benchmarks import protocol_a
from emu_embodied.baselines.goal_cloning import ClonedPolicy, CloningConfig, load_policy, save_policy
from emu_embodied.commands import main
from emu_embodied.data.frame_cache import FrameCache, save_frame_cache
from emu_embodied.errors import CheckpointError, ConfigError, DatasetError, InputError
from emu_embodied.protocols import GoalPolicy
from emu_embodied.rollouts.evaluation.goal_reaching import ProtocolSettings, Stage, play_protocol
from emu_embodied.training.folder import TrainingRun
from emu_embodied.training.loop import LoopConfig
from emu_embodied.training.stages.cloning import Pairs, train_cloning

LOOP = {"learning_rate": 3e-3, "warmup": 5, "average": 0.9, "log_every": 20, "evaluate_every": 60, "save_every": 30}
SMALL = {"batch": 32, "held_out": 6, "sizes": {"width": 8, "hidden": 32}}


def chases(episodes: int = 60, length: int = 6, size: int = 24) -> FrameCache:
    """Episodes in which a square goes to one place by straight steps of 2 px at most; where to is told by later frames only."""
    rng = np.random.default_rng(0)
    pixels, actions = (
        np.zeros((episodes * length, size, size, 3), np.uint8),
        np.zeros((episodes * length, 2), np.float32),
    )
    for f in range(len(pixels)):
        if f % length == 0:
            place, mark = rng.uniform(4, size - 4, (2, 2))
        (x, y) = place.round().astype(int)
        pixels[f, y - 2 : y + 2, x - 2 : x + 2] = 255
        if f % length < length - 1:
            actions[f] = np.clip((mark - place) / 2, -1, 1)
            place = place + 2 * actions[f]
    frames = len(pixels)
    return FrameCache(
        pixels,
        np.zeros((frames, 2), np.float32),
        np.zeros((frames, 0), np.float32),
        actions,
        np.zeros(frames, np.float32),
        np.zeros(frames, bool),
        np.arange(episodes + 1) * length,
        ("go there",) * episodes,
        {"agent_pos": ["x", "y"], "state": [], "action": ["dx", "dy"]},
        4.0,
    )


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a policy of 64 px frames with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("cloning") / "policy"
    save_policy(path, ClonedPolicy(CloningConfig(64, 2, width=4, hidden=8)), {})
    return path


# Learning


def test_a_goal_is_later_in_the_same_episode():
    pairs = Pairs(chases(3, 5))
    assert pairs.frames.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13]
    frames, goals, actions = pairs.take(np.array([0, 3, 8]), np.array([2, 1, 6]))
    for found, wanted in ((frames, [0, 3, 8]), (goals, [2, 4, 9])):
        assert found.equal(pairs.pixels[wanted])
    assert actions.equal(pairs.actions[[0, 3, 8]])


def test_it_learns_to_go_where_the_goal_frame_says_and_is_kept(tmp_path: Path):
    said: list[str] = []
    cache = chases()
    path = train_cloning(cache, LoopConfig(250, **LOOP), TrainingRun(tmp_path, report=said.append), **SMALL)
    losses = [float(line.partition("loss ")[2].split()[0].rstrip(",")) for line in said if "loss " in line]
    assert losses[-1] < 0.6 * losses[0]
    facts = json.loads((path / "config.json").read_text())["training"]
    assert facts["errors"]["3_ahead"] < 0.6 * facts["errors"]["zero"] and facts["held_out"] == 6

    policy = load_policy(path)
    assert isinstance(policy, GoalPolicy)
    blank = np.zeros((2, 24, 24, 3), np.uint8)
    blank[0, 10:14, 10:14] = blank[1, 10:14, 17:21] = 255
    right, left = policy.act(blank[0], blank[1]), policy.act(blank[1], blank[0])
    assert right[0] > 0.5 > -0.5 > left[0] and abs(right[1]) < 0.5 and np.abs([right, left]).max() <= 1
    assert np.array_equal(right, load_policy(path).act(blank[0], blank[1]))


def test_an_interrupted_training_ends_as_one_that_was_not(tmp_path: Path):
    cache, loop = chases(20), LoopConfig(12, **LOOP | {"log_every": 1, "save_every": 4})
    whole = load_policy(train_cloning(cache, loop, quiet(tmp_path / "whole"), **SMALL))

    def stop(line: str) -> None:
        if line.startswith("cloning 6/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_cloning(cache, loop, TrainingRun(tmp_path / "parts", report=stop), **SMALL)
    parts = load_policy(train_cloning(cache, loop, quiet(tmp_path / "parts"), **SMALL))
    assert all(one.equal(other) for one, other in zip(whole.parameters(), parts.parameters(), strict=True))


def test_saved_is_loaded_and_damage_is_refused(tmp_path: Path):
    policy = ClonedPolicy(CloningConfig(20, 3, width=4, hidden=8))
    save_policy(tmp_path / "policy", policy, {"steps": 1})
    found = load_policy(tmp_path / "policy")
    assert found.config == policy.config and not found.training
    assert all(found.state_dict()[name].equal(value) for name, value in policy.state_dict().items())
    frame = np.zeros((20, 20, 3), np.uint8)
    assert found.act(frame, frame).shape == (3,)
    for bad in (frame[:10], frame.astype(np.float32)):
        with pytest.raises(InputError, match="goal: .*20 x 20"):
            found.act(frame, bad)
    (tmp_path / "policy" / "policy.safetensors").write_bytes(b"no")
    for path in (tmp_path / "policy", tmp_path / "nothing"):
        with pytest.raises(CheckpointError):
            load_policy(path)


def test_too_little_data_are_named(tmp_path: Path):
    with pytest.raises(DatasetError, match="held out"):
        train_cloning(chases(6), LoopConfig(1), TrainingRun(tmp_path), **SMALL)
    with pytest.raises(DatasetError, match="one frame each"):
        train_cloning(chases(9, 1), LoopConfig(1), TrainingRun(tmp_path), **SMALL)
    with pytest.raises(ConfigError, match="ahead: 0"):
        train_cloning(chases(9), LoopConfig(1), TrainingRun(tmp_path), ahead=0, **SMALL)


# Playing


@pytest.mark.parametrize("env", ["tabletop", "pusht"])
def test_the_clone_plays_and_sees_two_frames_only(env: str):
    class Watched:
        def __init__(self) -> None:
            self.seen: list[tuple[np.ndarray, np.ndarray]] = []

        def act(self, pixels: np.ndarray, goal: np.ndarray) -> np.ndarray:
            self.seen.append((pixels.copy(), goal.copy()))
            return np.array([0.5, -0.5], np.float32)

    asked, policy = ProtocolSettings(env, "cloning"), Watched()
    (row,) = play_protocol(asked, 1, lambda: policy)
    assert row["predicted_frames"] == 0 and row["plan_seconds"] == [] and len(policy.seen) == row["steps"]
    stage = Stage(asked, lambda: policy)
    scene = stage.set(stage.draw(1)[0])
    assert np.array_equal(policy.seen[0][0], scene.start.pixels)
    assert all(np.array_equal(goal, scene.goal.pixels) for _, goal in policy.seen)
    assert (policy.seen[0][0] != policy.seen[-1][0]).any()  # it looks anew at each step
    with pytest.raises(ConfigError, match="agent: cloning; give make_model"):
        Stage(asked)


def test_the_benchmark_plays_it_once_and_reports(untrained: Path, tmp_path: Path, monkeypatch, capsys):
    words = ["protocol_a", "--env", "tabletop", "--agents", "random", "cloning", "--cloning", str(untrained)]
    words += ["--episodes", "2", "--folder", str(tmp_path / "runs"), "--out", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", words)
    protocol_a.main()
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["cloning"]["n"] == 2 and len(found["cloned"]["sha256"]) == 12
    assert (tmp_path / "runs" / "tabletop-expert-cloning.jsonl").is_file()
    monkeypatch.setattr(sys, "argv", [*words, "--report"])
    capsys.readouterr()
    protocol_a.main()
    assert json.loads((tmp_path / "out.json").read_text()) == found
    assert capsys.readouterr().err == ""  # nothing was played again
    monkeypatch.setattr(sys, "argv", [*words[:3], "--agents", "expert", *words[8:10], *words[12:]])
    protocol_a.main()
    more = json.loads((tmp_path / "out.json").read_text())
    assert more.pop("expert")["n"] == 2 and more == found, "what was not played anew is kept"
    monkeypatch.setattr(sys, "argv", [*words[:3], "--goals", "random", *words[3:]])
    with pytest.raises(SystemExit, match="out: .*out.json; it is of another goals"):
        protocol_a.main()
    (tmp_path / "out.json").write_text("[]")
    with pytest.raises(SystemExit, match="it is no result of this benchmark"):
        protocol_a.main()


def test_a_missing_policy_is_named(tmp_path: Path, monkeypatch):
    words = ["protocol_a", "--env", "tabletop", "--agents", "cloning", "--episodes", "1"]
    for more, message in (([], "cloning: .*stage=cloning"), (["--cloning", str(tmp_path / "none")], "none")):
        monkeypatch.setattr(sys, "argv", words + more)
        with pytest.raises(SystemExit, match=f"protocol_a: .*{message}"):
            protocol_a.main()


def test_a_command_trains_it(tmp_path: Path, capsys):
    save_frame_cache(tmp_path / "frames", chases(8))
    few = ["cloning.steps=3", "cloning.batch=4", "cloning.held_out=1", f"frames={tmp_path / 'frames'}"]
    assert main(["train", "stage=cloning", f"out={tmp_path / 'run'}", *few]) == 0
    assert "--cloning" in capsys.readouterr().out
    assert load_policy(tmp_path / "run" / "policy").config == CloningConfig(24, 2)
    assert main(["train", "stage=cloning", f"out={tmp_path / 'run'}", *few, "cloning.steps=4"]) == 2
    assert "steps" in capsys.readouterr().err


def test_actions_in_a_robots_own_units_are_refused(tmp_path):
    scaled = replace(chases(), action_scale=np.float32([[[0.0, 0.0], [0.05, 0.05]]]))
    with pytest.raises(DatasetError, match="units"):
        train_cloning(scaled, LoopConfig(2), TrainingRun(tmp_path))
