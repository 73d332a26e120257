"""emu-embodied: one token model as a world a robot can dream in. Importing it is quick; parts load when they are used."""

from __future__ import annotations

from emu_embodied.process import prepare

prepare()  # before the first import of torch, mujoco or onnxruntime

__version__ = "0.1.0"


def load(name_or_path: str = "nano-tabletop", **options):
    """Loads a world model by name or path; see `emu_embodied.loading.load`."""
    from emu_embodied.loading import load as load_world_model

    return load_world_model(name_or_path, **options)
