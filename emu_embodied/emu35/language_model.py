"""The released language model: read tensor by tensor into its place, so that memory never holds the weights twice."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import nn

from emu_embodied.errors import CheckpointError
from emu_embodied.model.transformer import Transformer, TransformerConfig

from .config import read_config
from .quantisation import quantise, require
from .weights import Weights


def meta_model(config: TransformerConfig) -> Transformer:
    """A transformer of which only names, shapes and sizes exist."""
    with torch.device("meta"):
        return Transformer(config)


def open_language_model(path: str | os.PathLike) -> tuple[Transformer, Weights]:
    """The model without weights, and its weights unread: all that can be wrong with files and shapes is found here.

    Raises:
        CheckpointError: see `load_language_model`.
    """
    model, weights = meta_model(read_config(path)), Weights(path)
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    norms = "model.layers.0.self_attn.q_norm.weight"
    if norms not in weights.entries and "model.layers.0.self_attn.q_proj.weight" in weights.entries:
        raise CheckpointError(f"{path}: {norms}", "missing", "expected Emu3.5; this is the older Emu3")
    weights.check(expected)
    return model, weights


def load_language_model(
    path: str | os.PathLike,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    quantisation: str | None = None,
    mesh: torch.distributed.device_mesh.DeviceMesh | None = None,
) -> Transformer:
    """Loads the language model of a released folder, in eval mode; called with ids (B, L) it gives logits (B, L, V).

    Args:
        path: the folder with `config.json` and safetensors.
        dtype: of the weights.
        device: where they go.
        quantisation: "int8", "int4" or "nf4" (`emu35.quantisation`) for the layers' matrices, which are rounded layer by layer
            as they come; embedding, head and norms keep `dtype`. None keeps all. On a mesh, "int8" alone.
        mesh: a mesh of one dimension over whose devices the layers are split (`emu35.sharding`); each process reads its part.

    Raises:
        CheckpointError: a file that is missing, damaged or of another kind, or a configuration or tensor that is not as
            expected; names file, key, expected and found. Nothing in the folder is executed.
        EngineError: a quantisation that is not installed or does not run there.
    """
    if quantisation is not None:
        require(quantisation, divided=mesh is not None)
    model, weights = open_language_model(path)
    model.requires_grad_(False)
    if mesh is None:

        def read(name: str) -> torch.Tensor:
            return weights.read(name, dtype, device)

    else:
        from .sharding import read_part, split

        split(model, mesh)

        def read(name: str) -> torch.Tensor:
            return read_part(weights, name, model.get_parameter(name), dtype, device)

    for module, names in _parts(model):
        for name in names:
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, nn.Parameter(read(name), requires_grad=False))
        if quantisation is not None and module.startswith("model.layers."):
            quantise(model.get_submodule(module), quantisation)
    return model.eval()


def _parts(model: Transformer) -> Iterator[tuple[str, list[str]]]:
    """Names of the layers and of the single modules around them, each with the names of its parameters, in order."""
    parts: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        words = name.split(".")
        parts.setdefault(".".join(words[:3] if words[1] == "layers" else words[:-1]), []).append(name)
    yield from parts.items()
