"""A world model on disk: weights as safetensors, everything else as JSON. Knows the parts, and not how they are used."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

import emu_embodied
from emu_embodied.errors import CheckpointError
from emu_embodied.storage import load_folder, save_folder
from emu_embodied.token_model import TokenModel, TokenModelConfig
from emu_embodied.tokenizers.frames import FrameTokenizer, FrameTokenizerConfig
from emu_embodied.tokenizers.text import TextTokenizer
from emu_embodied.transformer import TransformerConfig
from emu_embodied.vocabulary import Vocabulary

FORMAT = "emu-embodied-world-model"


@dataclass(frozen=True)
class World:
    """Names and scales of what the frames show.

    Attributes:
        objects: name -> RGB in 0..255; the robot itself comes first. Their `NAME.x`, `NAME.y` are labels in the states.
        position_scale: world units at the right and at the lower edge of the frame.
        env_id: the Gymnasium id of the real environment, for the imagined one's spaces and reset.
        action_names: names of the action's values.
        eye: what reads objects from frames, one of `rollouts.eyes.EYES`.
        landmarks: object -> the object whose second point it is, so that the two give its angle.
        action_scale: centres and half-ranges by which recorded actions became values in [-1, 1], for each dataset trained on;
            empty where they were so from the beginning. See `data.resampling.denormalise`.
    """

    objects: Mapping[str, tuple[int, int, int]]
    position_scale: tuple[float, float]
    env_id: str
    action_names: tuple[str, ...] = field(default=())
    eye: str = "colours"
    landmarks: Mapping[str, str] = field(default_factory=dict)
    action_scale: tuple = field(default=())


def versions() -> dict[str, str]:
    """Of what writes a checkpoint, to be kept with it."""
    return {
        "emu-embodied": emu_embodied.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def save_checkpoint(
    path: Path, tokenizer: FrameTokenizer, text: TextTokenizer, model: TokenModel, world: World, facts: dict
) -> None:
    """Writes a checkpoint: safetensors for the weights, JSON for everything else, SHA-256 sums for all.

    Raises:
        CheckpointError: weights that are not finite, or a full disk.
    """
    config = {
        "format": FORMAT,
        "version": 1,
        "tokenizer": asdict(tokenizer.config),
        "model": asdict(model.config),
        "world": asdict(world),
        "training": facts,
        "versions": versions(),
    }
    tensors = {"frame_tokenizer": tokenizer.state_dict(), "token_model": model.state_dict()}
    save_folder(path, tensors, {"config": config, "text": {"tokenizer": text.to_json()}})


def load_checkpoint(path: Path) -> tuple[FrameTokenizer, TextTokenizer, TokenModel, World, dict]:
    """Reads a checkpoint that `save_checkpoint` wrote, after checking its sums; modules come in eval mode.

    Returns:
        frame tokenizer, text tokenizer, trajectory model, world, and the whole configuration.

    Raises:
        CheckpointError: missing, damaged, or of another format.
    """
    tensors, documents = load_folder(path)
    config = documents.get("config", {})
    if config.get("format") != FORMAT or config.get("version") != 1:
        raise CheckpointError(f"{path}/config.json", config.get("format"), "expected a world model of version 1")
    if "base" in config:
        raise CheckpointError(
            str(path), "stands on a released model", "load it by its path, or train it with preset=emu3.5"
        )
    try:
        tokenizer = FrameTokenizer(
            FrameTokenizerConfig(**{**config["tokenizer"], "levels": tuple(config["tokenizer"]["levels"])})
        )
        m = dict(config["model"])
        m["vocabulary"], m["transformer"] = Vocabulary(**m["vocabulary"]), TransformerConfig(**m["transformer"])
        m["objects"], m["position_scale"] = tuple(m["objects"]), tuple(m["position_scale"])
        model = TokenModel(TokenModelConfig(**m))
        world = World(**config["world"])
        tokenizer.load_state_dict(tensors["frame_tokenizer"])
        model.load_state_dict(tensors["token_model"])
        text = TextTokenizer.from_json(documents["text"]["tokenizer"])
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            str(path), str(error).splitlines()[0], "it was written by another version: train it again"
        ) from None
    return tokenizer.eval(), text, model.eval(), world, config


def fingerprint(path: Path) -> str:
    """Twelve hex digits that name a checkpoint's weights."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def add_card(path: Path, card: str, metrics: dict) -> None:
    """Puts a model card (`README.md`) and its figures (`metrics.json`) into a checkpoint's folder, with their sums.

    Raises:
        CheckpointError: the checkpoint is damaged, or the disk is full.
    """
    tensors, documents = load_folder(path)
    save_folder(path, tensors, {**documents, "metrics": metrics, "README.md": card})
