"""Shows what is installed and works: packages, GPU, rendering, shipped checkpoints.

Ends with an error when something is missing that the package cannot do without.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata, resources

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from emu_embodied.errors import ConfigError

# What is shown -> the distributions that may provide it.
REQUIRED = {
    "torch": ("torch",),
    "gymnasium": ("gymnasium",),
    "mujoco": ("mujoco",),
    "lerobot": ("lerobot",),
    "numpy": ("numpy",),
    "cv2": ("opencv-python", "opencv-python-headless"),
    "hydra": ("hydra-core",),
}
OPTIONAL = {
    "gym_pusht": ("gym-pusht",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
    "tensorrt_rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
}
# In a process of its own, because a broken OpenGL driver may end it.
RENDER = """
import emu_embodied, mujoco
model = mujoco.MjModel.from_xml_string("<mujoco/>")
with mujoco.Renderer(model, 16, 16) as renderer:
    renderer.update_scene(mujoco.MjData(model))
    renderer.render()
"""


def run(config: DictConfig) -> None:
    """Prints the table.

    Raises:
        ConfigError: a required package is missing, or rendering fails.
    """
    versions = {name: _version(distributions) for name, distributions in REQUIRED.items()}
    rendering = _render_failure() if config.render and versions["mujoco"] else ""
    table = Table("what", "found", title="emu-embodied doctor")
    table.add_row("python", platform.python_version())
    for name, version in versions.items():
        table.add_row(name, version or "missing")
    for name, distributions in OPTIONAL.items():
        table.add_row(name, _version(distributions) or "none (optional)")
    table.add_row("CUDA device", _cuda_device() if versions["torch"] else "none")
    table.add_row("MUJOCO_GL", os.environ.get("MUJOCO_GL", "unset"))
    table.add_row("offscreen render", ("fails" if rendering else "works") if config.render else "not tried")
    table.add_row("checkpoints", ", ".join(shipped_checkpoints()) or "none")
    Console().print(table)
    for name, version in versions.items():
        if version is None:
            raise ConfigError(name, "not installed", f"run: pip install '{REQUIRED[name][0]}'")
    if rendering:
        remedy = "install EGL (Debian, Ubuntu: apt-get install libegl1 libgl1), or set MUJOCO_GL=osmesa or glfw"
        raise ConfigError("offscreen render", rendering, remedy)


def shipped_checkpoints() -> list[str]:
    """Names of the checkpoints inside the package."""
    folder = resources.files("emu_embodied") / "checkpoints"
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


def _version(distributions: tuple[str, ...]) -> str | None:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return None


def _cuda_device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def _render_failure() -> str:
    """The last line of what went wrong in a tiny offscreen render; empty if it works."""
    try:
        done = subprocess.run([sys.executable, "-c", RENDER], capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return "no answer within 120 s"
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
