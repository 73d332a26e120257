"""Pictures of MuJoCo's worlds: one typed error where they cannot be drawn, any thread may draw them, copies draw the same."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import emu_embodied.envs  # noqa: F401  registers the envs
from emu_embodied.errors import InputError
from emu_embodied.process import OPENGL_REMEDY

ROOT = Path(__file__).resolve().parents[2]
MUJOCO_WORLDS = ("emu_embodied/TabletopPush-v0", "emu_embodied/Reacher-v0")
WITHOUT_OPENGL = [  # settings under which no machine draws; osmesa and glfw need what may be there
    {"MUJOCO_GL": "wrong"},
    {"MUJOCO_GL": "glfw", "DISPLAY": "", "WAYLAND_DISPLAY": ""},
    {"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "99"},
    {"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "egl"},
]
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MuJoCo has one way to draw")
TRY = f"""
import gymnasium, emu_embodied.envs
from emu_embodied.errors import ConfigError
for name in {2 * MUJOCO_WORLDS}:  # twice: GLFW ends the process at the second try
    try:
        gymnasium.make(name, disable_env_checker=True).reset(seed=0)
    except ConfigError as error:
        print(error)
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    own = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=own, timeout=600)


@linux_only
@pytest.mark.parametrize("environment", WITHOUT_OPENGL, ids=lambda e: " ".join(map("=".join, e.items())))
def test_without_opengl_there_is_one_typed_error(environment: dict[str, str]):
    done = python(TRY, **environment)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "") and len(lines) == 2 * len(MUJOCO_WORLDS)
    assert all(line.startswith("offscreen render: ") and line.endswith(f"; {OPENGL_REMEDY}") for line in lines)


@linux_only
def test_commands_say_it_in_one_line(tmp_path: Path):
    """In the command itself, and in its workers."""
    small = ("candidates=2", "elites=1", "iterations=1", "horizon=1", "execute=1")
    script = tmp_path / "script.py"
    script.write_text(f"""
from emu_embodied.commands import main
if __name__ == "__main__":
    for words in (["plan", "episodes=1", *{small}], ["subgoal"], ["play"], ["collect", "episodes=1", "workers=1"]):
        print("exit code", main(words))
""")
    own = os.environ | {"PYTHONPATH": str(ROOT), "MUJOCO_EGL_DEVICE_ID": "99"}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=own, timeout=600, cwd=tmp_path)
    told = done.stderr.splitlines()
    assert done.stdout.count("exit code 2\n") == len(told) == 4, done.stdout
    assert all(line.startswith("emu-embodied: error: offscreen render: ") and line.endswith(OPENGL_REMEDY) for line in told)


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked by default on Linux")
@pytest.mark.parametrize(
    "drawn",
    [
        "env = gymnasium.make('emu_embodied/TabletopPush-v0'); env.reset(seed=0)",
        "env = gymnasium.make('emu_embodied/TabletopPush-v0'); env.reset(seed=0); env.close()",
        "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 16, 16)",
    ],
    ids=["by an env", "by one that is closed", "by MuJoCo alone"],
)
def test_a_child_forked_after_drawing_refuses_to_draw(drawn: str):
    """OpenGL would hang there without a word."""
    code = f"""
import gymnasium, numpy as np, emu_embodied.envs
from emu_embodied.errors import ConfigError
{drawn}
envs = gymnasium.make_vec("emu_embodied/TabletopPush-v0", 2, vectorization_mode="async", vector_kwargs={{"context": "fork"}})
envs.reset_async(seed=0)
try:
    envs.reset_wait(timeout=300)
except ConfigError as error:
    print(error)
"""
    assert 'context="spawn"' in python(code).stdout


def test_a_child_forked_before_drawing_draws():
    code = """
import gymnasium, emu_embodied.envs
envs = gymnasium.make_vec("emu_embodied/TabletopPush-v0", 1, vectorization_mode="async", vector_kwargs={"context": "fork"})
envs.reset_async(seed=3)
pixels = envs.reset_wait(timeout=300)[0]["pixels"][0]
envs.close()
print((pixels == gymnasium.make("emu_embodied/TabletopPush-v0").reset(seed=3)[0]["pixels"]).all())
"""
    assert python(code).stdout == "True\n"


@pytest.mark.parametrize("name", MUJOCO_WORLDS)
def test_any_thread_draws_the_same(name: str):
    with gymnasium.make(name, disable_env_checker=True) as env:
        pixels = env.reset(seed=1)[0]["pixels"]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(env.unwrapped.frame, [64, 32, 64, 48, 64, 32]))
            elsewhere = pool.submit(env.reset, seed=1).result()[0]["pixels"]
        small = env.unwrapped.frame(32)
        assert all(np.array_equal(frame, {64: pixels, 32: small}.get(len(frame), frame)) for frame in found)
        assert np.array_equal(elsewhere, pixels) and np.array_equal(env.unwrapped.frame(64), pixels)


def test_who_drew_before_goes_on_in_a_context_of_their_own():
    """Gymnasium's viewer does not look whose context is current."""
    ours = gymnasium.make(MUJOCO_WORLDS[0], disable_env_checker=True)
    with gymnasium.make("Reacher-v5", render_mode="rgb_array") as theirs:
        theirs.reset(seed=0)
        before = theirs.render()
        pixels = ours.reset(seed=0)[0]["pixels"]
        assert np.array_equal(theirs.render(), before)
        assert np.array_equal(ours.unwrapped.frame(64), pixels)
    assert np.array_equal(ours.unwrapped.frame(64), pixels)
    ours.close()


def test_closing_one_world_leaves_another_as_it_was():
    first, second = (gymnasium.make(MUJOCO_WORLDS[0], disable_env_checker=True) for _ in range(2))
    first.reset(seed=1)
    pixels = second.reset(seed=2)[0]["pixels"]
    first.close()
    assert np.array_equal(second.unwrapped.frame(64), pixels)
    second.close()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"])
@pytest.mark.parametrize("name", ["emu_embodied/TabletopPush-v0", "emu_embodied/PushT-v0"])
def test_a_copy_in_mid_episode_has_the_same_future(name: str, copied):
    if name.endswith("PushT-v0"):
        pytest.importorskip("gym_pusht")
    env = gymnasium.make(name, disable_env_checker=True, terminate_on_success=False)
    env.reset(seed=3)
    actions = np.random.default_rng(3).uniform(-1, 1, (8, 2)).astype(np.float32)
    for action in actions[:3]:
        env.step(action)
    other = copied(env)
    for action in actions[3:]:
        (seen, *rest, info), (seen_2, *rest_2, info_2) = env.step(action), other.step(action)
        assert np.array_equal(seen["pixels"], seen_2["pixels"]) and rest == rest_2
        assert np.allclose(info["environment_state"], info_2["environment_state"], atol=1e-4)
    assert np.array_equal(env.reset()[0]["pixels"], other.reset()[0]["pixels"])  # its generator too
    env.close()
    other.close()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_world_that_would_be_copied_wrongly_refuses(copied):
    with gymnasium.make("emu_embodied/Reacher-v0", disable_env_checker=True) as env:
        env.reset(seed=0)
        with pytest.raises(InputError, match="reset it with the same seed"):
            copied(env.unwrapped)


def test_no_number_of_control_steps_is_too_large_for_its_error():
    with pytest.raises(InputError, match="control_steps: 1000.*at most 39"):
        gymnasium.make("emu_embodied/TabletopPush-v0", control_steps=10**400, disable_env_checker=True)


def test_the_doctor_and_the_worlds_say_the_same(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    from emu_embodied.commands import main

    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    assert main(["doctor"]) == 2
    told = capsys.readouterr().err
    assert "offscreen render: RuntimeError: The MUJOCO_EGL_DEVICE_ID" in told and OPENGL_REMEDY in told
