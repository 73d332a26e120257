"""What the package asks of its process: how threads wait, that nothing reports home, and that a forked child computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SET = ("MUJOCO_GL", "ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
ASLEEP = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


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
    assert settings() == drawing | quiet | ASLEEP


@pytest.mark.parametrize(
    "own", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "1000"}, {"KMP_BLOCKTIME": "200"}, {"OMP_WAIT_POLICY": ""}]
)
def test_who_sets_how_threads_wait_has_decided(own: dict[str, str]):
    found = settings(**own)
    assert {name: found[name] for name in ASLEEP if name in found} == own


def test_the_users_own_settings_stay():
    own = {"MUJOCO_GL": "osmesa", "ORT_DISABLE_TELEMETRY": "0", "HF_HUB_DISABLE_TELEMETRY": "0"}
    assert settings(**own) == own | ASLEEP


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
    assert python(code).stdout.split() == ["0", "1"]


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
