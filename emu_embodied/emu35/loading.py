"""The door by which released folders become a model: its parts, checked against each other. Knows no prompt and no task."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from emu_embodied.device import find_device
from emu_embodied.errors import CheckpointError
from emu_embodied.shipped import shipped_checkpoints
from emu_embodied.types import short_repr

if TYPE_CHECKING:
    from emu_embodied.generation.interleaved import NoisyEmbedder
    from emu_embodied.model.transformer import Transformer
    from emu_embodied.tokenizers.ibq import IBQ

    from .text import Emu35Text

DIDA = "dida.safetensors"


@dataclass(frozen=True)
class DidaVectors:
    """What a DiDA-trained model adds to its embeddings: (D,) each, see `interleaved.NoisyEmbedder`."""

    hidden_token: torch.Tensor
    noised: torch.Tensor

    __repr__ = short_repr


@dataclass(frozen=True)
class Emu35:
    """A released model, whole.

    Attributes:
        model: tokens to logits.
        vision: images to codes and back.
        text: text to ids and back.
        noisy: what drawing images by DiDA needs; None for a model that was not trained to, as those published.
    """

    model: Transformer
    vision: IBQ
    text: Emu35Text
    noisy: NoisyEmbedder | None = None


def load(
    path: str | os.PathLike,
    vision: str | os.PathLike | None = None,
    text: str | os.PathLike | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    quantisation: str | None = None,
) -> Emu35:
    """Loads the three parts of a released model.

    Args:
        path: the language model's folder; `dida.safetensors` in it, if there, holds `hidden_token` and `noised` (D,).
        vision: the vision tokenizer's folder; by default the language model's.
        text: the text tokenizer's folder; by default the language model's.
        dtype: of the language model; by default bfloat16 on a GPU, else float32. The vision tokenizer has float32.
        device: where to run; by default CUDA where there is one, else the CPU.
        quantisation: "int8", "int4" or "nf4" for the layers' matrices (`emu35.quantisation`).

    Raises:
        CheckpointError: a part is missing, damaged, or of other sizes than the others.
        EngineError: a quantisation that is not installed, or does not fit.
    """
    from .language_model import load_language_model
    from .text import load_text_tokenizer
    from .vision import load_vision_tokenizer

    device = find_device(device)
    _check_released(path)
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    tokenizer = load_text_tokenizer(path if text is None else text)
    images = load_vision_tokenizer(path if vision is None else vision, dtype=torch.float32, device=device)
    codes, known = images.config.n_embed, tokenizer.vocabulary.codebook_size
    if codes != known:  # before the language model, which takes minutes
        raise CheckpointError("vision codebook", codes, f"the text tokenizer lists {known} visual tokens")
    model = load_language_model(path, dtype=dtype, device=device, quantisation=quantisation)
    _check_sizes(model.config.vocab_size, tokenizer)
    return Emu35(model, images, tokenizer, _load_dida(Path(path), model))


def _check_released(path: str | os.PathLike) -> None:
    """Refuses our own checkpoints, which have other files."""
    if os.fspath(path) in shipped_checkpoints() or (Path(path) / "manifest.json").is_file():
        rule = (
            "it is a world model, which answers no prompts: give a released model's folder, or a checkpoint of "
            "train preset=emu3.5; emu-embodied subgoal, plan and play take a world model"
        )
        raise CheckpointError("checkpoint", str(path), rule)


def _check_sizes(size: int, tokenizer: Any) -> None:
    if size != tokenizer.vocabulary.size:
        raise CheckpointError("vocab_size", size, f"the text tokenizer has {tokenizer.vocabulary.size} ids")


def _load_dida(folder: Path, model: Transformer) -> DidaVectors | None:
    """The vectors of `dida.safetensors`, where the folder has one."""
    from safetensors.torch import load as load_safetensors

    from emu_embodied.storage.regular import read_file
    from emu_embodied.storage.tensor_header import MAX_HEADER_BYTES, read_header

    path, like = folder / DIDA, model.lm_head.weight
    if not path.is_file():
        return None
    data = read_file(path, MAX_HEADER_BYTES + 16 * model.config.hidden_size)
    read_header(str(path), data, len(data))
    try:
        tensors = load_safetensors(data)
    except Exception as error:  # a hostile header makes the library raise nearly anything
        raise CheckpointError(str(path), str(error), "restore the file from a copy") from error
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = {name: (model.config.hidden_size,) for name in ("hidden_token", "noised")}
    if found != expected or not all(torch.isfinite(tensor.float()).all() for tensor in tensors.values()):
        raise CheckpointError(str(path), found, f"expected {expected}, finite")
    return DidaVectors(**{name: tensor.to(like) for name, tensor in tensors.items()})
