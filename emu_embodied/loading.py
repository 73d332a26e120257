"""The door by which a name becomes a world model: the one place where concrete parts are put together."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from emu_embodied.checkpoint import fingerprint, load_checkpoint
from emu_embodied.decoding.config import DecodingConfig
from emu_embodied.errors import CheckpointError, InputError
from emu_embodied.world_model import TokenWorldModel

SHIPPED = Path(__file__).resolve().parent / "checkpoints"


def checkpoint_path(name_or_path: str | Path) -> Path:
    """The folder of a shipped checkpoint's name, or of a path.

    Raises:
        CheckpointError: it is neither.
    """
    for path in (SHIPPED / str(name_or_path), Path(name_or_path)):
        if (path / "manifest.json").is_file():
            return path
    shipped = sorted(p.name for p in SHIPPED.glob("*") if p.is_dir())
    raise CheckpointError("checkpoint", str(name_or_path), f"choose one of {shipped} or give a checkpoint's folder")


def weights_label(name_or_path: str | Path, passes: int) -> str:
    """Names a checkpoint, its weights and K, so that a journal of planned episodes is not continued with others."""
    return f"{name_or_path} {fingerprint(checkpoint_path(name_or_path))} passes={passes}"


def load(
    name_or_path: str | Path = "nano-tabletop",
    *,
    device: str | torch.device | None = None,
    seed: int = 0,
    **decoding: Any,
) -> TokenWorldModel:
    """Loads a world model.

    Args:
        name_or_path: a shipped name ("nano-tabletop") or a checkpoint's folder.
        device: where to run; by default CUDA where there is one, else the CPU.
        seed: of the sampling noise.
        decoding: options of `decoding.config.DecodingConfig`: `decoding="exact"`, `passes=4`, `temperature=1.0`, ...

    Raises:
        CheckpointError: missing, damaged, or of another format.
        InputError: a decoding option out of range.
    """
    known = [option.name for option in fields(DecodingConfig)]
    for name in decoding:
        if name not in known:
            raise InputError("option", name, f"choose among {known}")
    how = DecodingConfig(**decoding)
    tokenizer, text, model, world, _ = load_checkpoint(checkpoint_path(name_or_path))
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return TokenWorldModel(tokenizer.to(place), text, model.to(place), world, decoding=how, seed=seed)
