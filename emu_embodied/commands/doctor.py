"""Shows what is installed and works: packages, GPU, rendering, shipped checkpoints; of a checkpoint, what it needs.

Ends with an error when something is missing that the package cannot do without. With checkpoint=FOLDER no weights are read:
names, shapes and sizes tell what will fit.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emu_embodied.errors import ConfigError
from emu_embodied.process import OPENGL_REMEDY
from emu_embodied.shipped import shipped_checkpoints

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
# The same of what extras bring -> the extra, and its distributions.
OPTIONAL = {
    "onnxruntime": ("onnx", ("onnxruntime", "onnxruntime-gpu")),
    "tensorrt": ("tensorrt", ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")),
    "tensorrt_rtx": ("tensorrt-rtx", ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings")),
    "gym_pusht": ("pusht", ("gym-pusht",)),
    "gymnasium_robotics": ("robotics", ("gymnasium-robotics",)),
    "gym_aloha": ("aloha", ("gym-aloha",)),
    "metaworld": ("metaworld", ("metaworld",)),
    "stable_baselines3": ("rl", ("stable-baselines3",)),
    "stable_worldmodel": ("stable-worldmodel", ("stable-worldmodel",)),
    "peft": ("lora", ("peft",)),
    "torchao": ("quantisation", ("torchao",)),
    "transformers": ("fvd", ("transformers",)),
    "rerun": ("rerun", ("rerun-sdk",)),
    "matplotlib": ("viz", ("matplotlib",)),
}
# In a process of its own, because a broken OpenGL driver may end it.
RENDER = """
from emu_embodied.errors import ConfigError
try:
    from emu_embodied.envs.rendering import Renderers, mujoco
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    Renderers().draw(model, mujoco.MjData(model), -1, 16)
except ConfigError as error:
    raise SystemExit(error.value)
"""


def run(config: DictConfig) -> None:
    """Prints the table.

    Raises:
        ConfigError: a required package is missing, or rendering fails.
        CheckpointError: the checkpoint lacks a file or tensor, or is of another kind.
    """
    if config.checkpoint is not None:
        _plan(config.checkpoint, config.tokens, config.rank)
        return
    versions = {name: _version(distributions) for name, distributions in REQUIRED.items()}
    rendering = _render_failure() if config.render and versions["mujoco"] else ""
    table = Table("what", "found", title="emu-embodied doctor")
    table.add_row("python", platform.python_version())
    for name, version in versions.items():
        table.add_row(name, version or "missing")
    for name, (extra, distributions) in OPTIONAL.items():
        table.add_row(name, _version(distributions) or escape(f"none (optional: emu-embodied[{extra}])"))
    table.add_row("CUDA device", _cuda_device() if versions["torch"] else "none")
    table.add_row("MUJOCO_GL", os.environ.get("MUJOCO_GL", "unset"))
    table.add_row("offscreen render", ("fails" if rendering else "works") if config.render else "not tried")
    table.add_row("checkpoints", ", ".join(shipped_checkpoints()) or "none")
    Console().print(table)
    for name, version in versions.items():
        if version is None:
            raise ConfigError(name, "not installed", f"run: pip install '{REQUIRED[name][0]}'")
    if rendering:
        raise ConfigError("offscreen render", rendering, OPENGL_REMEDY)


def _plan(checkpoint: str, tokens: int, rank: int) -> None:
    """Prints what a checkpoint's language model needs, and what of that this machine has."""
    from emu_embodied.emu35 import memory_estimate
    from emu_embodied.emu35.quantisation import BITS

    sizes = _sizes(checkpoint)
    names = {kind: kind or "bf16" for kind in BITS}
    table = Table("what", *names.values(), title=f"{checkpoint}: {memory_estimate.parameters(sizes) / 1e6:,.1f}M parameters")

    def gigabytes(what: str, values: list[float]) -> None:
        shown = ["-" if value == float("inf") else f"{value / 1e9:.3g} GB" for value in values]
        table.add_row(what, *shown, *["-"] * (len(names) - len(values)))

    weights = {kind: memory_estimate.weight_bytes(sizes, kind) for kind in names}
    cache = memory_estimate.cache_bytes(sizes, tokens)
    needs = {"running": {kind: size + cache for kind, size in weights.items()}}
    training = f"training adapters of rank {rank}"
    needs[training] = {kind: memory_estimate.training_bytes(sizes, rank, tokens, kind) for kind in names}
    gigabytes("weights", list(weights.values()))
    gigabytes(f"keys and values of {tokens} tokens", [cache] * len(names))
    gigabytes(f"running on {tokens} tokens", list(needs["running"].values()))
    gigabytes(f"{training} on {tokens} tokens", list(needs[training].values()))
    gigabytes(f"training all weights on {tokens} tokens", [memory_estimate.training_bytes(sizes, 0, tokens)])
    operations = memory_estimate.pass_flops(sizes, 1, tokens)
    table.add_row(f"operations of one token after {tokens}", *[f"{operations:.3g}"] * len(names))
    for name, free, count in _memories():
        for job, wanted in needs.items():
            fits = (_fit(value, weights[kind], free, count, job == "running") for kind, value in wanted.items())
            table.add_row(f"{job}: {name}, {free / 1e9:.1f} GB free", *fits)
    Console().print(table)


def _fit(wanted: float, weights: float, free: float, count: int, splits: bool) -> str:
    """Whether something fits, or on how many devices of this kind its weights would, if they can be split."""
    if wanted == float("inf"):
        return "-"
    if wanted <= free:
        return "fits"
    for devices in (2, 4, 8) if splits else ():
        if weights / devices + (wanted - weights) <= free:
            return f"split over {devices}" + ("" if devices <= count else f" ({count} here)")
    return "does not fit"


def _sizes(checkpoint: str):
    """The language model's sizes, of a released folder or of one of our checkpoints."""
    from pathlib import Path

    from emu_embodied.emu35.checkpoint import Base
    from emu_embodied.emu35.config import read_config
    from emu_embodied.emu35.language_model import open_language_model
    from emu_embodied.errors import CheckpointError
    from emu_embodied.loading import checkpoint_path
    from emu_embodied.model.transformer import TransformerConfig
    from emu_embodied.storage.regular import read_json
    from emu_embodied.storage.schema import build

    if (Path(checkpoint) / "config.json").is_file() and not (Path(checkpoint) / "manifest.json").is_file():
        return open_language_model(checkpoint)[0].config
    place = checkpoint_path(checkpoint) / "config.json"
    document = read_json(place)
    if not isinstance(document, dict):
        raise CheckpointError(str(place), document, "the top level must be a JSON object")
    if "base" in document:
        return read_config(build(Base, document["base"], f"{place}: base").model)
    model = document.get("model")
    sizes = model.get("transformer") if isinstance(model, dict) else model
    return build(TransformerConfig, sizes, f"{place}: model.transformer")


def _memories() -> list[tuple[str, float, int]]:
    """Where a model could be: name, free bytes, and how many of the kind there are."""
    import torch

    found = [("this machine's memory", float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")), 1)]
    count = torch.cuda.device_count()
    return found + [(torch.cuda.get_device_name(i), float(torch.cuda.mem_get_info(i)[0]), count) for i in range(count)]


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
