"""Tensors of a folder of safetensors, found and checked before any is read, then read one at a time. Knows no model."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from emu_embodied.errors import CheckpointError
from emu_embodied.storage.regular import read_json
from emu_embodied.storage.strict_json import MAX_VALUES, count_values
from emu_embodied.storage.tensor_header import MAX_TENSORS

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
PICKLE = "a pickle or zip", "expected safetensors: nothing in it was executed"
OTHERS = {  # what a file that is no safetensors begins with
    **dict.fromkeys((b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), PICKLE),
    b"version ": ("a pointer of Git LFS", "fetch the file itself: git lfs pull"),
}
LARGEST_HEADER = 16 << 20
DTYPES = ("F32", "F16", "BF16", "F64")
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Attributes:
        file: that holds it.
        dtype: as safetensors writes it, "BF16".
        shape: of the tensor.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]


class Weights:
    """The tensors of a folder by name.

    Args:
        folder: has `model.safetensors.index.json` and its shards, or `model.safetensors`.

    Raises:
        CheckpointError: files that are missing, damaged, or not safetensors; nothing in them is executed.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self.entries: dict[str, Entry] = {}
        for file, names in self._files().items():
            header = _header(file)
            for name in names:
                if name not in header:
                    raise CheckpointError(f"{file}: {name}", "missing", f"{INDEX} says it is there; restore the file")
            for name, entry in header.items():
                if name in self.entries:
                    raise CheckpointError(
                        f"{file}: {name}", f"also in {self.entries[name].file.name}", "expected it once"
                    )
                self.entries[name] = Entry(file, entry["dtype"], tuple(entry["shape"]))

    def check(self, expected: Mapping[str, tuple[int, ...]], ignored: str = "rotary_emb.inv_freq") -> None:
        """Compares names, shapes and types with what a model needs.

        Raises:
            CheckpointError: the first difference, by file, key, expected and found.
        """
        for name, shape in expected.items():
            entry = self.entries.get(name)
            if entry is None:
                raise CheckpointError(f"{self.folder}: {name}", "missing", f"expected a tensor of shape {tuple(shape)}")
            if entry.shape != tuple(shape):
                raise CheckpointError(f"{entry.file}: {name}", f"shape {entry.shape}", f"expected {tuple(shape)}")
            if entry.dtype not in DTYPES:
                raise CheckpointError(f"{entry.file}: {name}", entry.dtype, f"expected one of {DTYPES}")
        for name, entry in self.entries.items():
            if name not in expected and not name.endswith(ignored):
                raise CheckpointError(f"{entry.file}: {name}", "unexpected", "expected only the model's own tensors")

    def read(
        self, name: str, dtype: torch.dtype, device: torch.device | str, part: tuple[slice, ...] = ()
    ) -> torch.Tensor:
        """One tensor, or a part of it, copied to its place; its file is closed again, so that no mapped page stays.

        Raises:
            CheckpointError: the file cannot be read, or the tensor is not finite.
        """
        entry = self.entries[name]
        try:
            with safe_open(entry.file, "pt") as file:
                stored = file.get_slice(name)[part] if part else file.get_tensor(name)
                tensor = stored.to(device, dtype, copy=True)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{entry.file}: {name}", str(error), "restore the file from a copy") from error
        if not all(value.isfinite() for value in tensor.aminmax()):  # unlike a sum, they need no second copy
            raise CheckpointError(f"{entry.file}: {name}", "NaN or inf", "restore the file from a copy")
        return tensor

    def _files(self) -> dict[Path, list[str]]:
        """Each file with the names that the index gives it; none where there is no index."""
        index, single = self.folder / INDEX, self.folder / SINGLE
        if not index.exists():
            if single.is_file():
                return {single: []}
            found = sorted(path.name for pattern in PICKLES for path in self.folder.glob(pattern))
            what = f"only {found[0]}, which is a pickle and may run code" if found else "nothing"
            raise CheckpointError(str(single), what, f"expected safetensors: {SINGLE}, or {INDEX} and its shards")
        table = read_json(index)
        places = table.get("weight_map") if isinstance(table, Mapping) else None
        if not isinstance(places, Mapping) or not places:
            raise CheckpointError(
                f"{index}: weight_map", type(places).__name__, "expected tensor names with their files"
            )
        files: dict[Path, list[str]] = {}
        for name, file in places.items():
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
                raise CheckpointError(
                    f"{index}: {name}", file, "expected the name of a .safetensors file in the folder"
                )
            files.setdefault(self.folder / file, []).append(name)
        for file in files:
            if not file.is_file():
                raise CheckpointError(str(file), "missing", f"{INDEX} names it: fetch all shards")
        return files


def _header(file: Path) -> dict[str, dict]:
    """The description of a safetensors file's tensors, checked against its length.

    Raises:
        CheckpointError: it is truncated, or something else.
    """
    try:
        size = file.stat().st_size
        with open(file, "rb") as opened:
            start = opened.read(8)
            for signature, (found, remedy) in OTHERS.items():
                if start.startswith(signature):
                    raise CheckpointError(str(file), found, remedy)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            if length > min(size - 8, LARGEST_HEADER):
                raise CheckpointError(
                    str(file), f"{size} bytes", "expected safetensors: it is cut off, or something else"
                )
            text = opened.read(length)
        if count_values(text) > MAX_VALUES:
            raise CheckpointError(str(file), f"a header of {length} bytes", "its tensors are too many to be a model's")
        header = json.loads(text, object_pairs_hook=_unique)
        header.pop("__metadata__", None)
        if len(header) > MAX_TENSORS:
            raise CheckpointError(str(file), f"{len(header)} tensors", f"at most {MAX_TENSORS} are read")
        spans = sorted((*entry["data_offsets"], name) for name, entry in header.items())
        _check_spans(file, header, spans, size - 8 - length)
    except OSError as error:
        raise CheckpointError(str(file), error.strerror or str(error), "restore the file from a copy") from error
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(str(file), f"a damaged header: {error}", "restore the file from a copy") from error
    return header


def _check_spans(file: Path, header: dict[str, dict], spans: list[tuple[int, int, str]], size: int) -> None:
    """Refuses tensors that overlap, leave gaps, have other sizes than their shapes, or end elsewhere than their file."""
    last = 0
    for begin, end, name in spans:
        dtype, shape = header[name]["dtype"], header[name]["shape"]
        if begin != last or any(type(side) is not int or side < 0 for side in shape):
            raise CheckpointError(f"{file}: {name}", f"begins at {begin}, shape {shape}", f"expected {last}: damaged")
        if dtype in SIZES and end - begin != math.prod(shape) * SIZES[dtype]:
            raise CheckpointError(f"{file}: {name}", f"{end - begin} bytes", f"expected {shape} of {dtype}")
        if end > size:
            raise CheckpointError(f"{file}: {name}", f"{size} bytes of data", f"cut off: expected {end} or more")
        last = end
    if last != size:
        raise CheckpointError(str(file), f"{size} bytes of data", f"expected {last}: restore the file from a copy")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuses a name that stands twice, of which JSON would keep the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found
