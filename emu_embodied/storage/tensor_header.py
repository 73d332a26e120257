"""What a safetensors file says it holds: names, dtypes, shapes, places, checked before a tensor is read. Knows no model."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from emu_embodied.errors import CheckpointError

from .strict_json import parse_object

MAX_HEADER_BYTES, MAX_TENSORS, MAX_SIDES = 16 << 20, 16_384, 32
MAX_NUMBERS = 1 << 62  # of a tensor, without its sides of 0, which torch counts as well
DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64, "BOOL": torch.bool},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8},
}
RESTORE = "restore the file from a copy"


@dataclass(frozen=True)
class Described:
    """One tensor of a file.

    Attributes:
        dtype, shape: of the tensor.
        begin, end: its bytes, counted from the header's end.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def header_bytes(path: str, start: bytes, size: int) -> int:
    """How many bytes of a file of `size` bytes, of which the first 8 are given, come before its tensors.

    Raises:
        CheckpointError: it is no safetensors file.
    """
    end = 8 + int.from_bytes(start, "little")
    if len(start) < 8 or not 8 < end <= min(size, MAX_HEADER_BYTES):
        raise CheckpointError(path, start, f"not a safetensors file; {RESTORE}")
    return end


def read_header(path: str, data: bytes, size: int) -> dict[str, Described]:
    """What a file of `size` bytes holds, by name.

    Args:
        path: for the error.
        data: the file's beginning, of `header_bytes` or more.

    Raises:
        CheckpointError: another kind of file; too many tensors; tensors of unknown kinds, of sizes other than their shapes,
            that overlap, or that do not fill the file.
    """
    end = header_bytes(path, data[:8], size)
    document = parse_object(path, data[8:end])
    document.pop("__metadata__", None)
    if len(document) > MAX_TENSORS:
        raise CheckpointError(path, f"{len(document)} tensors", f"at most {MAX_TENSORS} are read; {RESTORE}")
    found = {name: _described(path, name, entry) for name, entry in document.items()}
    last = 0
    for name, entry in sorted(found.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != last:
            raise CheckpointError(path, f"{name} begins at {entry.begin}", f"expected {last}; {RESTORE}")
        last = entry.end
    if last != size - end:
        raise CheckpointError(path, f"{size - end} bytes of tensors", f"its header tells of {last}; {RESTORE}")
    return found


def fit(
    path: str,
    found: Mapping[str, Described],
    expected: Mapping[str, torch.Tensor],
    kinds: Collection[torch.dtype] = (),
) -> None:
    """Compares names, shapes and dtypes with those that a model has; its tensors may be on the `meta` device.

    Dtypes among `kinds` will do as well.

    Raises:
        CheckpointError: the first difference.
    """
    for name, tensor in expected.items():
        if name not in found:
            raise CheckpointError(path, f"no {name}", f"its configuration asks for {_told(tensor)}")
        if found[name].shape != tuple(tensor.shape) or found[name].dtype not in (tensor.dtype, *kinds):
            raise CheckpointError(f"{path}: {name}", _told(found[name]), f"its configuration asks for {_told(tensor)}")
    if more := found.keys() - expected.keys():
        raise CheckpointError(path, f"an unknown {min(more)}", "its configuration has no such part")


def _told(tensor: torch.Tensor | Described) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _described(path: str, name: str, entry: object) -> Described:
    """One entry of a header, checked by itself."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if dtype in DTYPES:
            sides = all(type(side) is int and side >= 0 for side in shape) and len(shape) <= MAX_SIDES
            if sides and math.prod(side or 1 for side in shape) <= MAX_NUMBERS:
                if 0 <= begin <= end and end - begin == math.prod(shape) * DTYPES[dtype].itemsize:
                    return Described(DTYPES[dtype], tuple(shape), begin, end)
    raise CheckpointError(path, f"{name}: {entry}"[:200], f"expected the dtype, shape and place of a tensor; {RESTORE}")
