"""What the package asks of its process: how threads wait, that nothing reports home, and that a forked child computes."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SET = ("MUJOCO_GL", "ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
PATIENT = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
# A network in which every address is this machine's, and nobody answers: what is sent anywhere is counted at its loopback.
ALONE = """ip link set lo up && ip route add local default dev lo && ip -6 route add local default dev lo
"$@"; code=$?; awk '/lo:/ {print "packets", $3}' /proc/net/dev; exit $code"""
COMMANDS = """
import sys
sys.path.insert(0, {tests!r})
if __name__ == "__main__":
    from emu_embodied.checkpoint import save_checkpoint
    from emu_embodied.commands import main
    from tiny import WORLD, tiny_world_model
    model = tiny_world_model()
    save_checkpoint("tiny", model.tokenizer, model.text, model.model, WORLD, {{}})
    small = ["candidates=2", "elites=1", "iterations=1", "horizon=1", "execute=1", "steps=1", "videos=0"]
    for words in (
        ["doctor"],
        ["plan", "checkpoint=tiny", "engine={engine}", "episodes=1", "out=plan", *small],
        ["imagine", "checkpoint=tiny", "episodes=1", "steps=1", "out=dreams"],
        ["collect", "episodes=1", "steps=1", "workers=1", "out=data"],
    ):
        assert main(words) == 0, words
"""


def python(code: str, **environment: str | None) -> subprocess.CompletedProcess:
    """Runs code in a new process; a variable that is None is not set there."""
    own = {name: value for name, value in os.environ.items() if name not in SET} | {"PYTHONPATH": str(ROOT)}
    own = {name: value for name, value in (own | environment).items() if value is not None}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=own, timeout=600, cwd=ROOT)


def settings(before: str = "", **environment: str) -> dict[str, str]:
    code = f"{before}\nimport emu_embodied, json, os; print(json.dumps({{n: os.environ[n] for n in {SET} if n in os.environ}}))"
    return json.loads(python(code, **environment).stdout)


def test_what_libraries_read_when_they_are_loaded_is_set_with_the_import():
    drawing = {"MUJOCO_GL": "egl"} if sys.platform == "linux" else {}
    quiet = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    assert settings() == drawing | quiet | PATIENT


@pytest.mark.parametrize(
    "own", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "0"}, {"KMP_BLOCKTIME": "200"}, {"OMP_WAIT_POLICY": ""}]
)
def test_who_sets_how_threads_wait_has_decided(own: dict[str, str]):
    found = settings(**own)
    assert {name: found[name] for name in PATIENT if name in found} == own


def test_the_users_own_settings_stay():
    own = {"MUJOCO_GL": "osmesa", "ORT_DISABLE_TELEMETRY": "0", "HF_HUB_DISABLE_TELEMETRY": "0"}
    assert settings(**own) == own | PATIENT


def test_only_linux_is_told_how_to_draw():
    assert "MUJOCO_GL" not in settings("import sys; sys.platform = 'darwin'")


def test_threads_that_spin_already_are_said_once():
    code = "import emu_embodied; emu_embodied.load('nano-pusht'); emu_embodied.load('nano-pusht')"
    late = "import torch; torch.set_num_threads({}); " + code
    told = python(late.format(2)).stderr
    assert told.count("RuntimeWarning") == 1 and "Import emu_embodied first" in told
    for quiet in (python(late.format(1)), python(late.format(2), OMP_WAIT_POLICY="active"), python(code)):
        assert quiet.returncode == 0 and quiet.stderr == ""


def test_workers_inherit_the_settings():
    code = """
import emu_embodied, multiprocessing, os
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(os.getenv, ("GOMP_SPINCOUNT",)), pool.apply(os.getenv, ("ORT_DISABLE_TELEMETRY",)))
"""
    assert python(code).stdout.split() == ["1000", "1"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("engine", ["eager", "onnx"])
def test_a_forked_child_dreams_like_its_parent(engine: str):
    """Its parent's threads are not there: OpenMP and ONNX Runtime would wait for them without end."""
    if engine == "onnx":
        pytest.importorskip("onnxruntime")
    code = f"""
import os, torch, numpy as np, emu_embodied
from emu_embodied.types import Observation
torch.set_num_threads(2)
model = emu_embodied.load("nano-tabletop", engine={engine!r})
seen = Observation(np.full((64, 64, 3), 128, np.uint8), np.zeros(2, np.float32), "push the red cube to the left")
def dream(): return model.step(model.encode([seen]), np.ones((1, 2), np.float32))[1].codes_BSTN.flatten().tolist()
expected = dream()
child = os.fork()
if not child: os._exit(0 if dream() == expected and torch.get_num_threads() == 1 else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.get_num_threads())
"""
    assert python(code, OMP_NUM_THREADS="2").stdout.split() == ["0", "2"]


def packets(tmp_path: Path, *command: str) -> tuple[int, str]:
    """How many packets a command sends to anywhere, itself included, and what it says."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("unshare and ip, which make a network of its own, are not here")
    own = {name: value for name, value in os.environ.items() if name not in SET}
    own |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home" / "cache")}
    begun = ["unshare", "--map-root-user", "--net", "sh", "-c", ALONE, "sh", *command]
    done = subprocess.run(begun, capture_output=True, text=True, env=own, timeout=900, cwd=tmp_path)
    if "packets" not in done.stdout:
        pytest.skip(f"a network of its own cannot be had here: {done.stderr.strip()[:200]}")
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]), done.stdout


def test_nothing_is_sent_to_anywhere(tmp_path: Path):
    """No name is looked up and no connection tried, by native code either; and no telemetry waits in the cache."""
    knock = "import socket; s = socket.socket(); s.settimeout(1); s.connect_ex(('192.0.2.1', 443))"
    assert packets(tmp_path, sys.executable, "-c", knock)[0] > 0
    engine = "onnx" if importlib.util.find_spec("onnxruntime") else "eager"
    script = tmp_path / "script.py"
    script.write_text(COMMANDS.format(tests=str(ROOT / "tests" / "support"), engine=engine))
    assert packets(tmp_path, sys.executable, str(script))[0] == 0
    assert not list((tmp_path / "home").rglob("*onnxruntime.db")) and not list((tmp_path / "home").rglob("deviceid"))
