"""Tiny Emu3.5 tokenizers, valid, the same on every platform, and made without files; and where the reference data is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml

from emu_embodied.emu35.text import Emu35Text
from emu_embodied.tokenizers.ibq import IBQ, IBQConfig

REFERENCE = Path(os.environ.get("EMU35_REFERENCE", Path(__file__).parents[3] / "shared" / "emu3.5"))
DATA = Path(__file__).parent / "data" / "emu35"
MERGES = (b" a", b" t", b"he", b" the", b"in", b"re", b"red", b" cu", b"be", b"\xe5\xa4", b"\xe5\xa4\xa9")
TINY_IBQ = IBQConfig(32, (1, 1, 1, 1, 2), 1, (4,), 64, z_channels=16, n_embed=64, embed_dim=16)


def needs_reference(part: str):
    """Marks a test that reads `part` of the data computed with the official code."""
    path = REFERENCE / part
    return pytest.mark.skipif(not path.exists(), reason=f"no reference data at {path}; set EMU35_REFERENCE")


def published_bytes() -> list[bytes]:
    """The single bytes in the published order: printable ones first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [bytes([byte]) for byte in printable + [byte for byte in range(256) if byte not in printable]]


def tiny_text_files(merges: Sequence[bytes] = MERGES, codes: int = 64) -> dict[str, bytes]:
    """A valid pair of files: the 256 bytes and some merges, and a list of `codes` visual tokens."""
    return Emu35Text([*published_bytes(), *merges], codes).to_files()


def tiny_text(merges: Sequence[bytes] = MERGES, codes: int = 64) -> Emu35Text:
    """The tokenizer of `tiny_text_files`."""
    return Emu35Text.from_files(tiny_text_files(merges, codes))


def tiny_ibq(config: IBQConfig = TINY_IBQ) -> IBQ:
    """Weights from integer arithmetic alone."""
    return fill(IBQ(config))


@torch.no_grad()
def fill(model: torch.nn.Module) -> torch.nn.Module:
    """Gives a model weights from integer arithmetic and their names, the same on every platform and in every version."""
    for name, parameter in model.named_parameters():
        start = int(hashlib.sha256(name.encode()).hexdigest()[:6], 16)
        x = (torch.arange(parameter.numel(), dtype=torch.int64) + start) % 65521
        for step in (40503, 7919, 104729):
            x = (x * x + step) % 65521
        spread = 1.0 if "embedding" in name else 3 / max(1, parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.2
        parameter.copy_((x.float() / 65521 - 0.5).view_as(parameter) * spread)
        if "norm" in name and name.endswith("weight"):
            parameter.add_(1)
    return model.eval().requires_grad_(False)


def tiny_image(height: int = 64, width: int = 96) -> torch.Tensor:
    """(1, height, width, 3) uint8: coarse patches in many colours, so that codes differ from place to place."""
    tall, wide = -(-height // 8), -(-width // 8)
    x = torch.arange(tall * wide * 3, dtype=torch.int64) * 48301 % 65521
    patches = (x * x % 65521 % 256).view(1, tall, wide, 3).to(torch.uint8)
    return patches.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :height, :width]


def write_ibq(folder: Path, model: IBQ, **changes) -> Path:
    """A folder like the released one: `config.yaml` (with `changes` in its ddconfig) and `model.ckpt`."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {name: getattr(model.config, name) for name in model.config.__dataclass_fields__}
    top = {name: values.pop(name) for name in ("n_embed", "embed_dim")}
    network = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
    network |= {"double_z": False, "dropout": 0.0, **changes}
    (folder / "config.yaml").write_text(yaml.safe_dump({"ddconfig": network, **top}))
    torch.save(model.state_dict(), folder / "model.ckpt")
    return folder
