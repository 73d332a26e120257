"""World models over released models on disk: what was trained, and where the rest is. Knows no training."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from emu_embodied.checkpoint import FORMAT, World, check_actions, envelope, open_checkpoint
from emu_embodied.errors import CheckpointError, ConfigError, InputError
from emu_embodied.model.token_model import TokenModel
from emu_embodied.storage.files import save_folder
from emu_embodied.storage.regular import read_json
from emu_embodied.storage.schema import build
from emu_embodied.tokenizers.ibq_frames import IBQFrames
from emu_embodied.validation import choice, whole_number

from .action_adapter import AdoptionConfig, InstructionText, adopt
from .language_model import open_language_model
from .loading import load
from .lora import LoRAConfig, add_adapters, merge_adapters
from .quantisation import QUANTISATIONS

SHARD = 4 << 30  # bytes
FLOATS = (torch.float32, torch.bfloat16, torch.float16)  # trained parts are in the dtype of the training's device


@dataclass(frozen=True)
class Base:
    """Where the released models lie, and what they must be.

    Attributes:
        model, vision, text: folders.
        quantisation: how the language model's matrices are rounded ("int8", "nf4"); None for not at all.
        fingerprint: of their small files: configurations, index, vocabularies.

    Raises:
        ConfigError: an unknown quantisation.
    """

    model: str
    vision: str
    text: str
    quantisation: str | None
    fingerprint: str

    def __post_init__(self) -> None:
        if self.quantisation is not None:
            choice("quantisation", self.quantisation, QUANTISATIONS)

    @classmethod
    def of(
        cls,
        model: str | Path,
        vision: str | Path | None = None,
        text: str | Path | None = None,
        quantisation: str | None = None,
    ) -> Base:
        """The base in folders, of which all but the first default to it.

        Raises:
            CheckpointError: the first holds no language model that could be loaded; of the others nothing is read yet.
        """
        open_language_model(model)
        folders = [str(Path(folder or model).absolute()) for folder in (model, vision, text)]
        return cls(folders[0], folders[1], folders[2], quantisation, _fingerprint(folders))

    def load(self, dtype: torch.dtype, device: torch.device | str):
        """The released models.

        Raises:
            CheckpointError: they are not there, damaged, or others than when the checkpoint was made.
        """
        released = load(self.model, self.vision, self.text, dtype, device, self.quantisation)
        found = _fingerprint([self.model, self.vision, self.text])
        if found != self.fingerprint:
            raise CheckpointError(
                self.model, f"fingerprint {found}", f"the checkpoint was made over {self.fingerprint}"
            )
        return released


def _fingerprint(folders: list[str]) -> str:
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(Path(folder).glob("*")):
            if not path.is_file():  # a pipe would wait, a device would never end
                continue
            if path.suffix in (".json", ".yaml", ".tiktoken", ".txt") and path.name != "manifest.json":
                digest.update(path.name.encode() + path.read_bytes())
            elif path.suffix in (".safetensors", ".ckpt"):
                digest.update(f"{path.name} {path.stat().st_size}".encode())
    return digest.hexdigest()[:16]


def save_adapted(
    path: Path,
    base: Base,
    adoption: AdoptionConfig,
    lora: LoRAConfig,
    model: TokenModel,
    state: dict[str, torch.Tensor],
    world: World,
    facts: dict,
) -> None:
    """Writes a checkpoint that refers to its base: adapters and new parts, or with rank 0 the whole token model.

    Args:
        path: the folder.
        base, adoption, lora: what it stands on, and how.
        model: for its configuration.
        state: what was trained (`training.loop.trained_state`).
        world, facts: as in `checkpoint.save_checkpoint`.

    Raises:
        CheckpointError: weights that are not finite, or a full disk.
    """
    parts = {"base": base, "adoption": adoption, "lora": lora, "action_dim": model.config.action_dim, "world": world}
    config = envelope(FORMAT, facts, **parts)
    save_folder(path, {"trained": state}, {"config": config}, max_shard_bytes=SHARD)


PARTS = {"base": Base, "world": World, "adoption": AdoptionConfig, "lora": LoRAConfig}


def is_adapted(path: str | Path) -> bool:
    """Whether a folder is a checkpoint of `save_adapted`; False too for one that is none at all."""
    if not Path(path, "manifest.json").is_file():
        return False
    config = read_json(Path(path, "config.json"))
    return isinstance(config, dict) and "base" in config


def load_adapted(
    path: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> tuple[IBQFrames, InstructionText, TokenModel, World, dict]:
    """Reads a checkpoint of `save_adapted` and its base; adapters are merged unless matrices are rounded; in eval mode.

    Args:
        path: its folder.
        dtype, device: of the released models; by default float32 on the CPU and bfloat16 elsewhere.

    Returns:
        frame tokenizer, text, trajectory model, world, and the whole configuration.

    Raises:
        CheckpointError: it is missing or damaged, its base is missing or another, or its parts do not fit it.
    """
    folder, config, place = open_checkpoint(Path(path), FORMAT, "expected a world model of version 1")
    parts = {name: build(kind, config.get(name), f"{place}: {name}") for name, kind in PARTS.items()}
    base, world, adoption, lora = parts.values()
    world = world.settled()
    actions = whole_number(f"{place}: action_dim", config.get("action_dim"), 1, 4096, CheckpointError)
    check_actions(place, world, actions)
    device = torch.device(device)
    released = base.load(dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16), device)
    try:
        frames, text, model = adopt(released, world, actions, adoption)
    except (ConfigError, InputError) as error:
        raise CheckpointError(f"{place}: {error.field}", error.value, error.remedy) from None
    if lora.rank:
        add_adapters(model.transformer, lora)
    else:
        model.transformer.requires_grad_(True)
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    model.load_state_dict(folder.tensors("trained", wanted, FLOATS), strict=False)
    if lora.rank and base.quantisation is None:
        merge_adapters(model.transformer)
    return frames.eval(), text, model.eval().requires_grad_(False), world, config
