"""The door by which a name becomes a world model: the one place where concrete parts are put together."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from emu_embodied.checkpoint import fingerprint, load_checkpoint
from emu_embodied.device import find_device
from emu_embodied.emu35.checkpoint import is_adapted, load_adapted
from emu_embodied.errors import CheckpointError, InputError
from emu_embodied.generation.key_frames import SubgoalDecoding, TokenSubgoals
from emu_embodied.inference.decoding.config import DecodingConfig
from emu_embodied.inference.frame_step import FrameStep
from emu_embodied.model.token_model import TokenModel
from emu_embodied.process import warn_of_spinning
from emu_embodied.protocols import StepEngine
from emu_embodied.shipped import checkpoint_path
from emu_embodied.storage.regular import read_json
from emu_embodied.validation import whole_number
from emu_embodied.world_model import TokenWorldModel


def weights_label(
    name_or_path: str | Path, passes: int, engine: str = "eager", precision: str = "fp32", dataset: int | None = None
) -> str:
    """Names a checkpoint, its weights and how it is loaded, so that no journal of planned episodes is continued with others."""
    label = f"{name_or_path} {fingerprint(checkpoint_path(name_or_path))} passes={passes}"
    label += "" if engine == "eager" else f" engine={engine}"
    label += "" if precision == "fp32" else f" precision={precision}"
    return label if dataset is None else f"{label} dataset={dataset}"


def load(
    name_or_path: str | Path = "nano-tabletop",
    *,
    device: str | torch.device | None = None,
    engine: str = "eager",
    precision: str = "fp32",
    seed: int = 0,
    dataset: int | None = None,
    **decoding: Any,
) -> TokenWorldModel:
    """Loads a world model.

    Args:
        name_or_path: a shipped name ("nano-tabletop") or a checkpoint's folder.
        device: where to run, see `device.find_device`; by default CUDA where there is one, else the CPU.
        engine: what executes the model's steps, one of `registry.ENGINES`, or "auto" for the fastest that agrees with the
            eager steps; the world model's `engine.name` says which runs.
        precision: fp32, or bf16 or fp16 for engines that have it; see `registry.make_engine`.
        seed: of the sampling noise.
        dataset: of a model of several robots, which one's action scale holds: that of the dataset so many places after the
            first that it was trained on.
        decoding: options of `decoding.config.DecodingConfig`: `decoding="exact"`, `passes=4`, `temperature=1.0`, ...

    Raises:
        CheckpointError: missing, damaged, of another format, or of parts that do not fit together.
        InputError: a decoding option out of range, an unknown engine, or a device that is not here.
        EngineError: an engine that is not installed, or does not run here.
    """
    known = [option.name for option in fields(DecodingConfig)]
    for name in decoding:
        if name not in known:
            raise InputError("option", name, f"choose among {known}")
    how = DecodingConfig(**decoding)
    warn_of_spinning(torch.get_num_threads())
    place, path = find_device(device), checkpoint_path(name_or_path)
    tokenizer, text, model, world, _ = load_adapted(path, device=place) if is_adapted(path) else load_checkpoint(path)
    model.to(place)
    if dataset is not None:
        chosen = whole_number("dataset", dataset, 0, max(0, len(world.action_scale) - 1), InputError)
        world = replace(world, action_scale=world.action_scale[chosen : chosen + 1])
    steps = _engine(engine, model, precision)
    return TokenWorldModel(
        tokenizer.to(place), text, model, world, decoding=how, engine=steps, seed=seed, name=str(path)
    )


def load_proposer(
    name_or_path: str | Path = "nano-language",
    *,
    device: str | torch.device | None = None,
    engine: str = "eager",
    samples: int = 1,
    caption_temperature: float = 0.0,
    **decoding: Any,
) -> TokenSubgoals:
    """Loads what draws key frames from words; see `key_frames.TokenSubgoals`.

    Args:
        name_or_path: a shipped name ("nano-language") or the folder of a checkpoint of `train stage=language`.
        device, engine: as in `load`.
        samples: chains drawn side by side, of which the likeliest is proposed.
        caption_temperature: of the captions' tokens; 0 takes the likeliest.
        decoding: of the key frames, as in `load`: `passes=4`, `guidance=2`, `decoding="autoregressive"`, ...

    Raises:
        CheckpointError, EngineError: as `load`.
        InputError: as `load`; or a checkpoint that did not learn it.
    """
    path = checkpoint_path(name_or_path)
    if is_adapted(path):
        rule = (
            "it stands on a released model, which draws no key frames here: name a checkpoint of train stage=language"
        )
        raise InputError("checkpoint", str(name_or_path), rule)
    world_model = load(path, device=device, engine=engine, **{**decoding, "guidance": 1.0})
    config = read_json(path / "config.json")
    words = config["training"].get("words", []) if isinstance(config, dict) else None  # load has checked the rest
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise CheckpointError(f"{path / 'config.json'}: training.words", words, "must be a list of texts")
    frames = replace(world_model.decoding, guidance=decoding.get("guidance", 1.0))
    caption = DecodingConfig("autoregressive", temperature=caption_temperature)
    return TokenSubgoals(world_model, words, SubgoalDecoding(frames, caption, samples))


def _engine(name: str, model: TokenModel, precision: str) -> StepEngine:
    if name == "eager" and precision == "fp32":
        return FrameStep(model)
    from emu_embodied.inference.engines.registry import checked_engine, fastest_engine

    if name == "auto":
        return fastest_engine(model, 64 if model.noised.is_cuda else 16, precision=precision)[0]
    return checked_engine(name, model, precision=precision)
