"""Reads the released vision tokenizer from its folder. Nothing that a file names is imported, built or run."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open

from emu_embodied.errors import CheckpointError, ConfigError
from emu_embodied.storage.regular import read_file
from emu_embodied.storage.strict_json import MAX_VALUES, count_values
from emu_embodied.storage.tensor_header import MAX_HEADER_BYTES, MAX_TENSORS
from emu_embodied.tokenizers.ibq import IBQ, IBQConfig

CONFIG, PICKLED, PLAIN = "config.yaml", "model.ckpt", "model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
_DDCONFIG = ("ch", "ch_mult", "num_res_blocks", "attn_resolutions", "resolution", "in_channels", "out_ch", "z_channels")
_LISTS = ("ch_mult", "attn_resolutions")
# Keywords of the official constructors that change what the network computes -> the one value that is implemented.
_FIXED = {
    "double_z": False,
    "resamp_with_conv": True,
    "attn_type": "vanilla",
    "use_linear_attn": False,
    "tanh_out": False,
}
_FIXED |= {"give_pre_end": False, "l2_normalize": False, "l2_norm": False}
_RESTORE = "restore the file from a copy"


def load_vision_tokenizer(
    path: str | os.PathLike, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> IBQ:
    """Loads a folder of `config.yaml` and `model.safetensors` or `model.ckpt`; the first is taken where both are there.

    Weights are read tensor by tensor from the mapped file into a model without storage, so that memory never doubles.
    What is neither converted nor moved stays mapped: do not write into the file while the tokenizer is in use.

    Args:
        path: the folder.
        dtype: of the weights.
        device: where they go.

    Returns:
        The tokenizer in eval mode, without gradients.

    Raises:
        CheckpointError: a file is missing or damaged, holds something else than weights, or does not fit the configuration.
    """
    folder = Path(path)
    config = _read_config(folder / CONFIG)
    weights = folder / (PLAIN if (folder / PLAIN).is_file() else PICKLED)
    if not weights.is_file():
        raise CheckpointError(str(weights), "no such file", f"the folder must hold {PLAIN} or {PICKLED}")
    with torch.device("meta"):
        model = IBQ(config)
    tensors = _plain_tensors(weights) if weights.name == PLAIN else _pickled_tensors(weights)
    expected, state = model.state_dict(), {}
    for key, tensor in tensors:
        state[key] = _fitting(weights, key, tensor, expected).to(device, dtype).contiguous()
    if missing := [key for key in expected if key not in state]:
        found = f"lacks {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
        raise CheckpointError(str(weights), found, f"{CONFIG} asks for it; use the files of one release")
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def _read_config(path: Path) -> IBQConfig:
    try:
        document = yaml.safe_load(read_file(path, MAX_CONFIG_BYTES).decode())
    except (RecursionError, ValueError, yaml.YAMLError) as error:
        found = " ".join(str(error).split())
        raise CheckpointError(str(path), found, "must be plain YAML in UTF-8, without tags") from error
    options = _table(path, document, "the top level")
    network = _table(path, options.get("ddconfig"), "ddconfig")
    for key, value in [*network.items(), *options.items()]:
        if key in _FIXED and value != _FIXED[key]:
            raise CheckpointError(f"{path}: {key}", _shown(value), f"only {_FIXED[key]!r} is supported")
    values = {key: _value(path, network, key) for key in _DDCONFIG}
    values |= {key: _value(path, options, key) for key in ("n_embed", "embed_dim")}
    try:
        return IBQConfig(**values)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error.field}", _shown(error.value), error.remedy) from error


def _table(path: Path, value: object, name: str) -> dict:
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {name}", _shown(value), "must be a table of names and values")
    return value


def _value(path: Path, options: dict, key: str) -> Any:
    if key not in options:
        raise CheckpointError(f"{path}: {key}", "missing", "the tokenizer's sizes are read from it, none is guessed")
    value, many = options[key], key in _LISTS
    rule = "must be a list of whole numbers" if many else "must be a whole number"
    if isinstance(value, list) != many or not all(isinstance(v, int) for v in (value if many else [value])):
        raise CheckpointError(f"{path}: {key}", _shown(value), rule)
    return tuple(value) if many else value


def _shown(value: object) -> str:
    """A value for a message: aliases in YAML can make nested ones endless."""
    return repr(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"


def _fitting(path: Path, key: str, tensor: object, expected: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The tensor itself, if it is what the model needs under this key."""
    where = f"{path}: {key}"
    if key not in expected:
        raise CheckpointError(
            where, "unexpected key", f"{CONFIG} describes no such weight; use the files of one release"
        )
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or not tensor.is_floating_point():
        found = f"{tensor.dtype}, {tensor.layout}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise CheckpointError(where, found, "expected a dense tensor of floating point numbers")
    if tensor.shape != expected[key].shape:
        raise CheckpointError(where, tuple(tensor.shape), f"expected shape {tuple(expected[key].shape)} by {CONFIG}")
    if not torch.isfinite(tensor).all():
        raise CheckpointError(where, "NaN or infinite values", _RESTORE)
    return tensor.detach()


def _plain_tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():
                yield key, file.get_tensor(key)
    except Exception as error:  # a hostile header makes the library raise nearly anything
        raise CheckpointError(str(path), str(error), f"not a whole safetensors file; {_RESTORE}") from error


def _check_header(path: Path) -> None:
    """Finds other formats under this name, and duplicate keys, which the library lets pass."""
    remedy = f"not a whole safetensors file; {_RESTORE}"
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, path.stat().st_size - 8):
                raise CheckpointError(str(path), f"begins with {start!r}", remedy)
            text = file.read(length)
        if count_values(text) > MAX_VALUES or len(json.loads(text.decode(), object_pairs_hook=_unique)) > MAX_TENSORS:
            raise CheckpointError(str(path), f"a header of {length} bytes", remedy)
    except OSError as error:
        raise CheckpointError(str(path), error.strerror or str(error), _RESTORE) from error
    except (RecursionError, ValueError) as error:
        raise CheckpointError(str(path), str(error), remedy) from error


def _unique(pairs: list[tuple[str, object]]) -> dict:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("duplicate keys in the header")
    return table


def _pickled_tensors(path: Path) -> Iterator[tuple[str, object]]:
    _check_archive(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the unpickler raises nearly anything on what it refuses
        found = str(error).strip().partition("\n")[0]
        raise CheckpointError(str(path), found, "only tensors are read; nothing in the file was run") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(str(path), f"a {type(state).__name__}", "expected a state dict: names and tensors")
    yield from state.items()


def _check_archive(path: Path) -> None:
    """Sums of everything inside: torch does not compare them when it maps a file."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
            damaged = packed[0] if packed else archive.testzip()
    except Exception as error:  # zipfile, too, raises nearly anything on a damaged file
        raise CheckpointError(str(path), str(error), f"not a whole file of torch.save; {_RESTORE}") from error
    if damaged:
        raise CheckpointError(str(path), f"{damaged} is damaged", _RESTORE)
