"""Folders of safetensors + JSON, written whole or not at all and read only when intact; knows nothing of models."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_safetensors

from emu_embodied.errors import CheckpointError

from .atomic import encode_json, remove, staged, sync, write
from .regular import MAX_JSON_BYTES, check_room, opened, read
from .strict_json import parse_object
from .tensor_header import RESTORE, Described, fit, header_bytes, read_header

FORMAT, VERSION = "emu-embodied-folder", 1
MANIFEST = "manifest.json"
_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_NAMES = "plain names of [A-Za-z0-9_.-]"
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")


def save_folder(
    path: str | os.PathLike,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    documents: Mapping[str, dict | str | bytes],
    *,
    max_shard_bytes: int | None = None,
) -> None:
    """Writes a folder so that a crash at any moment leaves the old or the new one, complete.

    An existing folder is replaced with all that is in it. One writer a folder: savers do not wait for each other.

    Args:
        path: the folder; parents are made.
        tensors: each entry becomes `<name>.safetensors`; one file at a time is held in memory.
        documents: dicts become `<name>.json`; texts and bytes are written under their full name ("README.md") as they are.
        max_shard_bytes: splits an entry with more bytes into `<name>-00001-of-0000N.safetensors` of at most so many
            (a single larger tensor stays whole).

    Raises:
        CheckpointError: non-finite weights, values or names that cannot be stored, a full disk, or a target that is
            something else. What was there before stays as it was.
    """
    target = Path(os.path.realpath(path))
    previous = _previous(target)
    with staged(target) as partial:
        if previous.exists():  # a crash left it: it comes back if its successor did not arrive, and goes if it did
            remove(previous) if target.exists() else os.rename(previous, target)
        if target.is_file() or target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
            raise CheckpointError(str(target), f"has no {MANIFEST}", "not ours to replace; choose another path")
        partial.mkdir()
        files = {}
        for name, data in _encode(tensors, documents, max_shard_bytes):
            if name in files or name == MANIFEST or not _NAME.fullmatch(name):
                raise CheckpointError(str(target / name), "name taken or unfit", f"use {_NAMES}, each once")
            write(partial / name, data)
            files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        manifest = {"format": FORMAT, "version": VERSION, "files": files}
        write(partial / MANIFEST, encode_json(MANIFEST, manifest))
        sync(partial)
        _swap(partial, target, previous)


class Folder:
    """A folder that `save_folder` wrote, opened. Its tensors are read when they are asked for.

    Whatever is read is checked against the manifest that was read first, so that two versions of a folder never mix. Only
    regular files that the manifest names are opened.

    Args:
        path: the folder; if a crash left only its predecessor, that is read. A reader that races a save may get an
            error instead of one of the two: open it again.

    Attributes:
        path: where its files are.
        documents: the JSON documents by name (without `.json`).

    Raises:
        CheckpointError: a folder or file is missing, damaged, hostile, or of another format.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = _find(path)
        self._files, self._entries = _read_manifest(self.path), {}
        self.documents: dict[str, dict] = {}
        for name, entry in self._files.items():
            stem, suffix = os.path.splitext(name)
            if suffix == ".safetensors":
                shard = _SHARD.fullmatch(stem)
                self._entries.setdefault(shard[1] if shard else stem, []).append(name)
                continue
            data = _read_verified(self.path, name, entry, MAX_JSON_BYTES)
            if suffix == ".json":
                self.documents[stem] = parse_object(str(self.path / name), data)

    @property
    def tensor_bytes(self) -> int:
        """How many bytes its tensor files take, as its manifest says; no larger ones are read."""
        return sum(self._files[file]["bytes"] for files in self._entries.values() for file in files)

    @property
    def entries(self) -> list[str]:
        """Names of what has tensors."""
        return list(self._entries)

    def tensors(
        self,
        name: str,
        expected: Mapping[str, torch.Tensor] | None = None,
        kinds: Collection[torch.dtype] = (),
        device: str | torch.device = "cpu",
    ) -> dict[str, torch.Tensor]:
        """The tensors of an entry, by name.

        Args:
            name: of the entry.
            expected: whose names, shapes and dtypes they must have, on any device; compared with what the files say they hold
                before these are read.
            kinds: dtypes that will do as well.
            device: where they go.

        Raises:
            CheckpointError: the entry is missing, damaged, hostile, not finite, not what is expected, or more than the memory
                has room for.
        """
        if name not in self._entries:
            raise CheckpointError(str(self.path), f"has no tensors {name!r}", f"ask for one listed in {MANIFEST}")
        headers = self.described(name)
        if expected is not None:
            fit(str(self.path / self._entries[name][0]), headers, expected, kinds)
        check_room(self.path, sum(entry.end - entry.begin for entry in headers.values()))
        tensors: dict[str, torch.Tensor] = {}
        for file in self._entries[name]:
            part = _read_tensors(self.path, file, self._files[file])
            tensors |= {key: tensor.to(device) for key, tensor in part.items()}
        return tensors

    def described(self, name: str) -> dict[str, Described]:
        """What the files of an entry say they hold, by name; nothing more is read.

        Raises:
            CheckpointError: as `tensors`.
        """
        headers: dict[str, Described] = {}
        for file in self._entries.get(name, ()):
            with opened(self.path / file, self._files[file]["bytes"], self.path) as (source, size):
                header, _ = _read_header(str(self.path / file), source, size)
            if twice := header.keys() & headers.keys():
                raise CheckpointError(str(self.path / file), f"in two shards: {sorted(twice)}", "save it anew")
            headers |= header
        return headers


def load_folder(
    path: str | os.PathLike, *, tensors: Collection[str] | None = None, device: str | torch.device = "cpu"
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, dict]]:
    """Reads what `save_folder` wrote; each file but the tensors not wanted is checked against the manifest first.

    Args:
        path: see `Folder`.
        tensors: the tensor entries wanted; all of them when None.
        device: where the tensors go.

    Returns:
        The tensors by entry and name, and the JSON documents by name (without `.json`).

    Raises:
        CheckpointError: a folder, file or entry is missing, damaged, hostile, non-finite, or of another format.
    """
    folder = Folder(path)
    names = folder.entries if tensors is None else tensors
    return {name: folder.tensors(name, device=device) for name in names}, folder.documents


def sums(path: str | os.PathLike) -> dict[str, str]:
    """The SHA-256 of each file of a folder that `save_folder` wrote, by name, as its manifest has them; nothing else is read.

    Raises:
        CheckpointError: the manifest is missing or damaged.
    """
    return {name: entry["sha256"] for name, entry in _read_manifest(_find(path)).items()}


def load_file(path: str | os.PathLike, name: str) -> bytes:
    """Reads one file of a folder that `save_folder` wrote, checked against the manifest.

    Raises:
        CheckpointError: the folder or the file is missing or damaged.
    """
    folder = _find(path)
    files = _read_manifest(folder)
    if name not in files:
        raise CheckpointError(str(folder / name), f"not in {MANIFEST}", f"ask for one of {sorted(files)}")
    return _read_verified(folder, name, files[name], MAX_JSON_BYTES if name.endswith(".json") else math.inf)


def _previous(target: Path) -> Path:
    return target.parent / f".{target.name}.previous"


def _swap(partial: Path, target: Path, previous: Path) -> None:
    try:
        if target.exists():
            os.rename(target, previous)
        os.rename(partial, target)
        sync(target.parent)
    except BaseException:  # back to how it was
        if not partial.exists():
            os.rename(target, partial)
        if previous.exists() and not target.exists():
            os.rename(previous, target)
        raise
    remove(previous)


def _encode(tensors: Mapping, documents: Mapping, max_shard_bytes: int | None) -> Iterator[tuple[str, bytes]]:
    """Yields each file's name and bytes, one at a time, so that only one is in memory."""
    for name, entry in tensors.items():
        if _SHARD.fullmatch(name):
            raise CheckpointError(name, "ends like a shard", "choose a name without -NNNNN-of-NNNNN")
        try:
            shards = _shards(entry, math.inf if max_shard_bytes is None else max_shard_bytes)
            for index, shard in enumerate(shards, 1):
                part = f"-{index:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
                yield f"{name}{part}.safetensors", save_safetensors(_plain(shard))
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(name, str(error), "store dense, finite tensors of safetensors' types") from error
    for name, document in documents.items():
        if isinstance(document, str | bytes):
            data = document if isinstance(document, bytes) else document.encode(errors="surrogatepass")
        else:
            name, data = f"{name}.json", encode_json(f"{name}.json", document)
        if name.endswith(".safetensors"):
            raise CheckpointError(name, "a text under a tensor file's name", "choose another name")
        if name.endswith(".json"):
            parse_object(name, data)
            if len(data) > MAX_JSON_BYTES:
                raise CheckpointError(
                    name, f"{len(data)} bytes", f"at most {MAX_JSON_BYTES} are read back; keep it in tensors"
                )
        yield name, data


def _shards(entry: Mapping[str, torch.Tensor], limit: float) -> list[dict[str, torch.Tensor]]:
    shards, filled = [{}], 0
    for key, tensor in entry.items():
        if shards[-1] and filled + tensor.nbytes > limit:
            shards.append({})
            filled = 0
        shards[-1][key] = tensor
        filled += tensor.nbytes
    return shards


def _plain(shard: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns finite CPU tensors that are contiguous and share no memory; ValueError where that cannot be."""
    plain, storages = {}, set()
    for key, tensor in shard.items():
        if key == "__metadata__":
            raise ValueError("the tensor name __metadata__ is reserved")
        tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        _require_finite(key, tensor)
        storage = tensor.untyped_storage().data_ptr()
        plain[key] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return plain


def _require_finite(key: str, tensor: torch.Tensor) -> None:
    if tensor.is_floating_point() or tensor.is_complex():
        tensor = tensor.float() if tensor.itemsize == 1 else tensor  # float8 has no isfinite
        if not torch.isfinite(tensor).all():
            raise ValueError(f"tensor {key!r} has NaN or infinite values")


def _read_manifest(folder: Path) -> dict[str, dict]:
    path = folder / MANIFEST
    manifest = parse_object(str(path), read(path, MAX_JSON_BYTES, folder))
    kind = manifest.get("format"), manifest.get("version")
    files: Any = manifest.get("files")
    if kind != (FORMAT, VERSION):
        raise CheckpointError(str(path), kind, f"this release reads format {FORMAT!r}, version {VERSION}")
    try:
        for name, entry in files.items():
            if not _NAME.fullmatch(name) or [type(entry[key]) for key in ("sha256", "bytes")] != [str, int]:
                raise CheckpointError(str(path), f"{name!r}: {entry!r}", f"files have {_NAMES}, a sha256 and bytes")
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(str(path), repr(error), "files must map each name to its sha256 and bytes") from error
    return files


def _read_verified(folder: Path, name: str, entry: dict, limit: float = math.inf) -> bytes:
    data = read(folder / name, min(entry["bytes"], limit), folder)
    if len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise CheckpointError(str(folder / name), f"{len(data)} bytes that do not match {MANIFEST}", RESTORE)
    return data


def _find(path: str | os.PathLike) -> Path:
    """The folder, or the predecessor that a crash left of it."""
    folder = Path(os.path.realpath(path))
    return _previous(folder) if not folder.exists() and _previous(folder).is_dir() else folder


def _read_header(path: str, file: BufferedReader, size: int) -> tuple[dict[str, Described], bytes]:
    """What a tensor file says it holds, and the bytes that say so; the file stands where its tensors begin."""
    start = file.read(8)
    data = start + file.read(header_bytes(path, start, size) - 8)
    return read_header(path, data, size), data


def _read_tensors(folder: Path, name: str, entry: dict) -> dict[str, torch.Tensor]:
    """The tensors of a file, each in memory of its own, once; the library would hold the file beside them."""
    path, tensors = str(folder / name), {}
    with opened(folder / name, entry["bytes"], folder) as (file, size):
        header, data = _read_header(path, file, size)
        digest = hashlib.sha256(data)
        for key, told in sorted(header.items(), key=lambda item: (item[1].begin, item[1].end)):
            data = bytearray(told.end - told.begin)
            file.readinto(data)
            digest.update(data)
            flat = torch.frombuffer(data, dtype=told.dtype) if data else torch.empty(0, dtype=told.dtype)
            tensors[key] = flat.reshape(told.shape)
    if size != entry["bytes"] or digest.hexdigest() != entry["sha256"]:
        raise CheckpointError(path, f"{size} bytes that do not match {MANIFEST}", RESTORE)
    for key, tensor in tensors.items():
        try:
            _require_finite(key, tensor)
        except ValueError as error:
            raise CheckpointError(path, str(error), f"dense, finite safetensors are read; {RESTORE}") from error
    return tensors
