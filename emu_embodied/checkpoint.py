"""A world model on disk: weights as safetensors, everything else as JSON. Knows the parts, and not how they are used."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import emu_embodied
from emu_embodied.errors import CheckpointError, ConfigError, InputError
from emu_embodied.labels import LABELS
from emu_embodied.model.config import TokenModelConfig, check_objects, check_scale
from emu_embodied.model.token_model import TokenModel
from emu_embodied.storage.files import Folder, load_folder, save_folder, sums
from emu_embodied.storage.schema import build
from emu_embodied.tokenizers.frames import FrameTokenizer, FrameTokenizerConfig
from emu_embodied.tokenizers.text import TextTokenizer
from emu_embodied.validation import choice, env_id, number, whole_number

FORMAT = "emu-embodied-world-model"


@dataclass(frozen=True)
class World:
    """Names and scales of what the frames show.

    Attributes:
        objects: name -> RGB in 0..255; the robot itself comes first. Their `NAME.x`, `NAME.y` are labels in the states.
        position_scale: world units at the right and at the lower edge of the frame.
        env_id: the Gymnasium id of the real environment, for the imagined one's spaces and reset; without a module to import.
            Empty where there is none.
        action_names: names of the action's values.
        eye: the detector that finds objects in frames, one of `object_detection.DETECTORS`.
        landmarks: object -> the object whose second point it is, so that the two give its angle.
        action_scale: centres and half-ranges by which recorded actions became values in [-1, 1], for each dataset trained on;
            empty where they were so from the beginning. See `units.ActionScale`.
        known: which of `labels.LABELS` the data had, so that the heads learnt them; None before training.

    Raises:
        ConfigError: a name, colour or number that is none.
    """

    objects: Mapping[str, tuple[int, int, int]]
    position_scale: tuple[float, float]
    env_id: str
    action_names: tuple[str, ...] = field(default=())
    eye: str = "colours"
    landmarks: Mapping[str, str] = field(default_factory=dict)
    action_scale: tuple[tuple[tuple[float, ...], ...], ...] = field(default=())
    known: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_objects(self.objects)
        for name, colour in self.objects.items():
            if len(colour) != 3:
                raise ConfigError(f"objects.{name}", colour, "give red, green and blue")
            for part in colour:
                whole_number(f"objects.{name}", part, 0, 255)
        check_scale(self.position_scale)
        if self.env_id:
            env_id("env_id", self.env_id)
        for names in (self.landmarks.keys(), self.landmarks.values()):
            if unknown := set(names) - set(self.objects):
                raise ConfigError("landmarks", min(unknown), f"choose among the objects {list(self.objects)}")
        for scale in self.action_scale:
            _check_action_scale(scale)
        for label in self.known or ():
            choice("known", label, LABELS)

    def settled(self) -> World:
        """The same, where a checkpoint does not tell yet what its data had: a simulator's recordings have all labels, and of
        what was learnt from others nothing is believed."""
        return self if self.known is not None else replace(self, known=LABELS if self.env_id else ())

    def learnt_from(self, cache_known: np.ndarray) -> World:
        """The same with the labels that training episodes have, (n, 3) as `FrameCache.known`, beside those known before."""
        found = [label for label, there in zip(LABELS, cache_known.T, strict=True) if there.any()]
        return replace(self, known=tuple(label for label in LABELS if label in {*(self.known or ()), *found}))


def _check_action_scale(scale: tuple) -> None:
    """Centres and half-ranges, as many of the one as of the other."""
    if len(scale) != 2 or len(scale[0]) != len(scale[1]):
        raise ConfigError(
            "action_scale", scale, "give each dataset's centres and half-ranges, one of each an action value"
        )
    for centre, half in zip(*scale, strict=True):
        number("action_scale", centre, -1e12, 1e12)
        number("action_scale", half, 0, 1e12)


def versions() -> dict[str, str]:
    """Of what writes a checkpoint, to be kept with it."""
    return {
        "emu-embodied": emu_embodied.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def envelope(kind: str, facts: dict, **parts: object) -> dict:
    """The `config.json` of a checkpoint, which `open_checkpoint` reads.

    Args:
        kind: the format.
        facts: how it was trained.
        parts: configurations, as dataclasses, and other values by name.
    """
    described = {
        name: asdict(part) if is_dataclass(part) and not isinstance(part, type) else part
        for name, part in parts.items()
    }
    return {"format": kind, "version": 1, **described, "training": facts, "versions": versions()}


def save_checkpoint(
    path: Path, tokenizer: FrameTokenizer, text: TextTokenizer, model: TokenModel, world: World, facts: dict
) -> None:
    """Writes a checkpoint: safetensors for the weights, JSON for everything else, SHA-256 sums for all.

    Raises:
        CheckpointError: weights that are not finite, or a full disk.
    """
    config = envelope(FORMAT, facts, tokenizer=tokenizer.config, model=model.config, world=world)
    tensors = {"frame_tokenizer": tokenizer.state_dict(), "token_model": model.state_dict()}
    save_folder(path, tensors, {"config": config, "text": {"tokenizer": text.to_json()}})


def load_checkpoint(path: Path) -> tuple[FrameTokenizer, TextTokenizer, TokenModel, World, dict]:
    """Reads a checkpoint that `save_checkpoint` wrote; modules come in eval mode.

    Its sums, the whole of its configuration, and what its files say they hold are checked before anything is built.

    Returns:
        frame tokenizer, text tokenizer, trajectory model, world, and the whole configuration.

    Raises:
        CheckpointError: missing, damaged, or of another format.
    """
    folder, config, place = open_checkpoint(path, FORMAT, "expected a world model of version 1")
    if "base" in config:
        raise CheckpointError(
            str(path), "stands on a released model", "load it by its path, or train it with preset=emu3.5"
        )
    frames = build(FrameTokenizerConfig, config.get("tokenizer"), f"{place}: tokenizer")
    sizes = build(TokenModelConfig, config.get("model"), f"{place}: model")
    world = build(World, config.get("world"), f"{place}: world").settled()
    try:
        text = TextTokenizer.from_json(folder.documents.get("text", {}).get("tokenizer"))
    except InputError as error:
        raise CheckpointError(f"{folder.path / 'text.json'}: {error.field}", error.value, error.remedy) from None
    _check_fit(place, frames, sizes, text, world)
    tokenizer = restore(folder, "frame_tokenizer", lambda: FrameTokenizer(frames))
    return tokenizer, text, restore(folder, "token_model", lambda: TokenModel(sizes)), world, config


def _check_fit(
    place: str, frames: FrameTokenizerConfig, model: TokenModelConfig, text: TextTokenizer, world: World
) -> None:
    """Whether the parts of a checkpoint speak of the same tokens, objects and actions."""
    check_actions(place, world, model.action_dim)
    for name, found, expected in (
        ("model.grid", model.grid, frames.grid),
        ("model.vocabulary.codebook_size", model.vocabulary.codebook_size, frames.codebook_size),
        ("model.vocabulary.text_size", model.vocabulary.text_size, text.size),
        ("model.objects", model.objects, tuple(world.objects)),
        ("model.position_scale", model.position_scale, world.position_scale),
    ):
        if found != expected:
            raise CheckpointError(
                f"{place}: {name}", found, f"the other parts say {expected}: use those of one training"
            )


def check_actions(place: str, world: World, action_dim: int) -> None:
    """Whether a world scales as many values of an action as a model takes.

    Raises:
        CheckpointError: it does not; `place` is where it stands.
    """
    for centres, _ in world.action_scale:
        if len(centres) != action_dim:
            rule = f"actions have {action_dim} values: use the parts of one training"
            raise CheckpointError(f"{place}: world.action_scale", centres, rule)


def open_checkpoint(path: Path, kind: str, remedy: str) -> tuple[Folder, dict, str]:
    """Opens a folder whose `config.json` is an `envelope`.

    Args:
        path: the folder.
        kind: the format.
        remedy: what is said where it is another.

    Returns:
        the folder, its configuration, and what errors about that are to be called.

    Raises:
        CheckpointError: missing, damaged, or of another format or version.
    """
    folder = Folder(path)
    config, place = folder.documents.get("config", {}), str(folder.path / "config.json")
    if config.get("format") != kind or config.get("version") != 1:
        raise CheckpointError(place, config.get("format"), remedy)
    if not isinstance(config.get("training"), dict):
        raise CheckpointError(f"{place}: training", config.get("training"), "must be a JSON object")
    return folder, config, place


def restore[Module: nn.Module](folder: Folder, name: str, make: Callable[[], Module]) -> Module:
    """A module with the weights of a folder's entry, in eval mode.

    It is made on the `meta` device first, and what the files say they hold is compared with that; so nothing takes memory that
    the files do not fill.

    Args:
        folder: of a checkpoint.
        name: of the entry.
        make: makes the module, of a checked configuration.

    Raises:
        CheckpointError: the entry is missing, damaged, or not of such a module.
    """
    with torch.device("meta"):
        expected = make().state_dict()
    tensors = folder.tensors(name, expected)
    module = make()
    module.load_state_dict(tensors)
    return module.eval()


def fingerprint(path: Path) -> str:
    """Twelve hex digits that name a checkpoint's weights: a hash of the sums that its manifest has of them.

    Nothing but the manifest is read; loading compares the files with it.

    Raises:
        CheckpointError: the manifest is missing or damaged.
    """
    weights = sorted((name, found) for name, found in sums(path).items() if name.endswith(".safetensors"))
    return hashlib.sha256("".join(f"{name} {found}\n" for name, found in weights).encode()).hexdigest()[:12]


def add_card(path: Path, card: str, metrics: dict) -> None:
    """Puts a model card (`README.md`) and its figures (`metrics.json`) into a checkpoint's folder, with their sums.

    Raises:
        CheckpointError: the checkpoint is damaged, or the disk is full.
    """
    tensors, documents = load_folder(path)
    save_folder(path, tensors, {**documents, "metrics": metrics, "README.md": card})
