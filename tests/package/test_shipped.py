"""What a newcomer gets: the shipped checkpoint loads by name, is better than copying, plans and evaluates from the CLI."""

import json

import gymnasium
import numpy as np
import pytest

import emu_embodied
import emu_embodied.envs
from emu_embodied.commands import main
from emu_embodied.commands._config import compose_config
from emu_embodied.commands._runs import shipped_proposer
from emu_embodied.data.frame_cache import save_frame_cache
from emu_embodied.errors import ConfigError
from emu_embodied.loading import checkpoint_path
from emu_embodied.rollouts.collection.episodes import record_frames
from emu_embodied.rollouts.evaluation.prediction import Truth, quick_quality

NAME = "nano-tabletop"


@pytest.fixture(scope="module")
def model():
    return emu_embodied.load(NAME)


def test_it_is_small_and_says_how_it_was_made(model):
    folder = checkpoint_path(NAME)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 20e6
    config = json.loads((folder / "config.json").read_text())
    assert (
        config["training"]["recipe"]["trajectory_loop"]["steps"] > 0 and config["world"]["env_id"] == model.world.env_id
    )
    assert (folder / "README.md").is_file() and json.loads((folder / "metrics.json").read_text())["figures"]


def test_it_is_better_than_copying_the_last_frame(model):
    cache = record_frames("emu_embodied/TabletopPush-v0", {}, range(5_000_000, 5_000_012), 24)
    figures = quick_quality(model, Truth(cache, model.world))
    assert figures["robot_px_1"] < 2.0  # copying: about 4
    assert figures["head_median_px_8"] < 0.6 * figures["copy_median_px_8"]


def test_the_readme_example_dreams(model):
    dream = gymnasium.make("emu_embodied/Imagined-v0")  # no arguments: the default checkpoint
    first, info = dream.reset(seed=7)
    assert first["pixels"].shape == (64, 64, 3) and info["task"]
    for _ in range(3):
        observation, reward, *_ = dream.step(np.array([1.0, 0.0], np.float32))
    moved = observation["agent_pos"] - first["agent_pos"]
    assert moved[0] > 4 and abs(moved[1]) < 1.5  # three steps of 2.5 cm to the right, unless something is in the way
    assert np.isfinite(reward)
    dream.close()
    worlds = gymnasium.make_vec("emu_embodied/Imagined-v0", num_envs=3)
    observations, _ = worlds.reset(seed=1)
    assert observations["pixels"].shape == (3, 64, 64, 3)
    worlds.step(np.zeros((3, 2), np.float32))
    worlds.close()


def test_each_env_has_its_own_checkpoint_and_who_has_none_is_told(capsys):
    for verb in ("plan", "evaluate"):
        assert [compose_config(verb, [f"env={env}"]).checkpoint for env in ("tabletop", "pusht")] == [
            NAME,
            "nano-pusht",
        ]
    with pytest.raises(ConfigError, match="subgoals: .*no shipped checkpoint draws key frames of reacher"):
        shipped_proposer(compose_config("plan", ["env=reacher"]).env, "subgoals")
    assert main(["plan", "env=reacher", "goal=reward", "episodes=1"]) == 2
    assert "checkpoint: nano-reacher; choose among" in capsys.readouterr().err


def test_plan_writes_what_it_promises(tmp_path, capsys):
    budget = ["candidates=16", "elites=4", "iterations=2", "horizon=4", "steps=4"]
    assert main(["plan", f"checkpoint={NAME}", "episodes=1", "seed=7", *budget, f"out={tmp_path}"]) == 0
    (run,) = tmp_path.iterdir()
    result = json.loads((run / "result.json").read_text())
    assert result["seeds"] == [7] and result["n"] == 1 and result["frames_per_plan"] == 128
    assert {"torch", "mujoco", "emu-embodied"} <= set(result["versions"])
    assert (run / "episode-7.png").stat().st_size > 5000 and (run / "episode-7.mp4").stat().st_size > 1000
    assert str(run) in capsys.readouterr().out.replace("\n", "")


def test_evaluate_writes_its_table(tmp_path, capsys):
    assert main(["evaluate", f"checkpoint={NAME}", "episodes=3", "planning=0", "worst=1", f"out={tmp_path}"]) == 0
    figures = {f["name"]: f for f in json.loads((tmp_path / "result.json").read_text())["figures"]}
    flicker = figures["tokenizer: codes that change in static patches, %"]
    assert flicker["value"] <= 1 and len(figures) >= 9
    assert (tmp_path / "worst-01.png").is_file() and "copy-last" in (tmp_path / "table.md").read_text()
    assert "copy-last" in capsys.readouterr().out


def test_long_dreams_are_judged_by_probes_that_a_command_trains(tmp_path, capsys):
    cache = record_frames("emu_embodied/TabletopPush-v0", {}, range(5_000_000, 5_000_004), 12)
    save_frame_cache(tmp_path / "frames", cache)
    few = ["probes.steps=3", "probes.batch=4", "probes.held_out=1"]
    assert main(["train", "stage=probes", f"frames={tmp_path / 'frames'}", f"out={tmp_path / 'run'}", *few]) == 0
    assert "evaluate probes=" in capsys.readouterr().out
    words = [
        f"checkpoint={NAME}",
        "episodes=2",
        "steps=12",
        "planning=0",
        "worst=0",
        "horizon=4",
        f"out={tmp_path / 'table'}",
    ]
    assert main(["evaluate", *words, "horizons=[1,8,32]", f"probes={tmp_path / 'run' / 'probes'}"]) == 0
    rows = json.loads((tmp_path / "table" / "result.json").read_text())["rollouts"]
    assert {row["step"] for row in rows} == {0, 1, 4, 8} and "probe-FD" in {row["metric"] for row in rows}
    moving = next(row for row in rows if row["metric"] == "PSNR of what moves, dB" and row["step"] == 8)
    assert moving["copy_last"] < moving["round_trip"]
    assert "valid horizon" in (tmp_path / "table" / "table.md").read_text()
    capsys.readouterr()
    for word, message in (("horizons=[0]", "horizons"), (f"probes={tmp_path}", str(tmp_path))):
        assert main(["evaluate", *words, word]) == 2
        assert message in capsys.readouterr().err


def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path, capsys):
    copy = tmp_path / "damaged"
    copy.mkdir()
    for path in checkpoint_path(NAME).iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    weights = bytearray((copy / "token_model.safetensors").read_bytes())
    weights[-100] ^= 1
    (copy / "token_model.safetensors").write_bytes(weights)
    assert main(["plan", f"checkpoint={copy}", f"out={tmp_path / 'runs'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("emu-embodied: error: ") and "token_model.safetensors" in error and "Traceback" not in error
    assert main(["plan", "checkpoint=nona-tabletop", f"out={tmp_path / 'runs'}"]) == 2
    assert NAME in capsys.readouterr().err and not (tmp_path / "runs").exists()
