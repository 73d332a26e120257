"""What a loader, an engine and an env are asked for is checked where it enters, and told in one sentence."""

from __future__ import annotations

import os
import stat

import gymnasium
import numpy as np
import pytest
import torch
from tiny import tiny_world_model
from tiny_token_model import tiny_model

import emu_embodied.envs  # noqa: F401  registers them
from emu_embodied.commands import main
from emu_embodied.commands._keys import ENGINES
from emu_embodied.device import find_device
from emu_embodied.emu35.loading import load as load_released
from emu_embodied.errors import CheckpointError, ConfigError, EngineError, InputError
from emu_embodied.inference.engines import registry
from emu_embodied.inference.engines.compiled import check_compiler
from emu_embodied.loading import load, load_proposer
from emu_embodied.shipped import checkpoint_path
from emu_embodied.storage.files import save_folder

WORLDS = ["TabletopPush-v0", "PushT-v0", "Reacher-v0", "Pusher-v0"]


@pytest.mark.parametrize("device", ["mps", "gpu", "", "cuda:-1", "cuda:999", "meta", "xla", 5, True, 2.5, ["cpu"], b"cpu"])
def test_a_device_that_is_not_here_is_refused(device):
    for loader in (load, load_proposer, load_released):
        with pytest.raises(InputError, match="^device: .*choose cpu, or cuda"):
            loader("nano-tabletop", device=device)


def test_devices_that_are_here():
    assert find_device("cpu") == find_device(torch.device("cpu")) == torch.device("cpu")
    assert find_device() == find_device("auto") == torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="device: tpu; choose"):
        find_device("tpu", ConfigError)


def test_the_command_line_knows_the_engines():
    assert ENGINES == (*registry.ENGINES, "auto")


def test_no_compiler_is_told_at_load(monkeypatch, tmp_path):
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    for cuda, language in ((False, r"C\+\+"), (True, "C")):
        with pytest.raises(EngineError, match=f"engine compiled: no {language} compiler is found; install one"):
            check_compiler(cuda)
    with pytest.raises(EngineError, match="engine compiled: no C"):
        load("nano-tabletop", engine="compiled", device="cpu")


def test_a_compiler_that_does_not_work_is_told_at_load(monkeypatch, tmp_path):
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho 'fatal error: Python.h: No such file' >&2\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(EngineError, match=r"engine compiled: .*g\+\+: fatal error: Python.h: No such file; install"):
        check_compiler()


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), OSError(12, "no memory"), KeyError("step")])
def test_auto_goes_on_without_an_engine_that_fails(error: Exception, monkeypatch, caplog):
    def make(name, model, **options):
        if name == "onnx":
            raise error
        return made(name, model, **options)

    made = registry.make_engine
    monkeypatch.setattr(registry, "make_engine", make)
    engine, trials = registry.fastest_engine(tiny_model(), 2)
    assert engine.name == "eager" and [trial.name for trial in trials] == ["eager", "onnx"]
    assert f"the onnx engine fails ({type(error).__name__}" in caplog.text and trials[1].ms is None


@pytest.mark.parametrize(
    ("world", "steps", "most"), [("TabletopPush-v0", 41, 39), ("PushT-v0", 21, 19), ("Reacher-v0", 200, 99)]
)
def test_a_frame_rate_of_nothing_is_refused(world: str, steps: int, most: int):
    with pytest.raises(InputError, match=f"control_steps: {steps}; the frame rate would be 0 .*at most {most}"):
        gymnasium.make(f"emu_embodied/{world}", control_steps=steps)
    env = gymnasium.make(f"emu_embodied/{world}", control_steps=most)
    assert env.metadata["render_fps"] == 1
    env.close()


@pytest.mark.parametrize("world", WORLDS)
def test_a_step_before_the_first_reset_is_told(world: str):
    env = gymnasium.make(f"emu_embodied/{world}").unwrapped
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"call reset\(\) before step\(\)"):
        env.step(np.zeros(env.action_space.shape, np.float32))
    env.close()


def test_a_dreamt_step_before_the_first_reset_is_told():
    for make, n in ((gymnasium.make, ()), (gymnasium.make_vec, (2,))):
        options = {"num_envs": 2} if n else {}
        env = make("emu_embodied/Imagined-v0", world_model=tiny_world_model(), **options).unwrapped
        with pytest.raises(gymnasium.error.ResetNeeded, match=r"call reset\(\) before step\(\)"):
            env.step(np.zeros((*n, 2), np.float32))
        env.close()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nano-tabeltop", "did you mean nano-tabletop?"),
        ("x" * 300, "choose among: nano-language"),
        ("a\0b", "choose among"),
        (None, "give a shipped name or a checkpoint's folder"),
        (5, "give a shipped name"),
        (["a"], "give a shipped name"),
    ],
)
def test_a_checkpoint_that_is_not_there(name, said: str):
    with pytest.raises(CheckpointError, match=r"^checkpoint: ") as caught:
        load(name)
    assert said in caught.value.remedy


def test_a_folder_that_is_something_else(tmp_path):
    with pytest.raises(CheckpointError, match="it has no manifest.json, and so is no checkpoint"):
        checkpoint_path(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="a released folder, as it seems, which generate and"):
        checkpoint_path(tmp_path)


def test_a_checkpoint_over_a_released_model_draws_no_key_frames(tmp_path, capsys):
    save_folder(tmp_path / "adapted", {}, {"config": {"base": {}}})
    for words in (["subgoal", f"checkpoint={tmp_path}/adapted"], ["subgoal", f"checkpoint={tmp_path}/adapted", "mode=edit"]):
        assert main([*words, "image=x.png", "instruction=go", f"out={tmp_path}/out"]) == 2
        assert "which draws no key frames here: name a checkpoint of train stage=language" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["adapted"]


@pytest.mark.parametrize("name", ["nano-language", "nano-tabletop", str(checkpoint_path("nano-pusht"))])
def test_a_world_model_answers_no_prompts(name: str, tmp_path, capsys):
    assert main(["generate", f"checkpoint={name}", "prompt=hello", f"out={tmp_path}/out"]) == 2
    said = capsys.readouterr().err
    assert f"checkpoint: {name}; it is a world model, which answers no prompts" in said and said.count("\n") == 1
    assert not os.listdir(tmp_path)
