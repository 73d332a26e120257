"""Folders of safetensors + JSON, written whole or not at all and read only when intact; knows nothing of models."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from emu_embodied.errors import CheckpointError

FORMAT, VERSION = "emu-embodied-folder", 1
MANIFEST = "manifest.json"
MAX_JSON_BYTES = 64 << 20
_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_NAMES = "plain names of [A-Za-z0-9_.-]"
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
_RESTORE = "restore the file from a copy"


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
    with _staged(target) as partial:
        if previous.exists():  # a crash left it: it comes back if its successor did not arrive, and goes if it did
            _remove(previous) if target.exists() else os.rename(previous, target)
        if target.is_file() or target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
            raise CheckpointError(str(target), f"has no {MANIFEST}", "not ours to replace; choose another path")
        partial.mkdir()
        files = {}
        for name, data in _encode(tensors, documents, max_shard_bytes):
            if name in files or name == MANIFEST or not _NAME.fullmatch(name):
                raise CheckpointError(str(target / name), "name taken or unfit", f"use {_NAMES}, each once")
            _write(partial / name, data)
            files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        manifest = {"format": FORMAT, "version": VERSION, "files": files}
        _write(partial / MANIFEST, _encode_json(MANIFEST, manifest))
        _sync(partial)
        _swap(partial, target, previous)


def load_folder(
    path: str | os.PathLike, *, tensors: Collection[str] | None = None, device: str | torch.device = "cpu"
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, dict]]:
    """Reads what `save_folder` wrote; each file but the tensors not wanted is checked against the manifest first.

    Args:
        path: the folder; if a crash left only its predecessor, that is read. A reader that races a save may get an
            error instead of one of the two: load again.
        tensors: the tensor entries wanted; all of them when None.
        device: where the tensors go.

    Returns:
        The tensors by entry and name, and the JSON documents by name (without `.json`).

    Raises:
        CheckpointError: a folder, file or entry is missing, damaged, hostile, non-finite, or of another format.
    """
    folder = Path(os.path.realpath(path))
    if not folder.exists() and _previous(folder).is_dir():
        folder = _previous(folder)
    loaded: dict[str, dict[str, torch.Tensor]] = {}
    documents: dict[str, dict] = {}
    for name, entry in _read_manifest(folder).items():
        stem, suffix = os.path.splitext(name)
        if suffix != ".safetensors":
            data = _read_verified(folder, name, entry)
            if suffix == ".json":
                documents[stem] = _parse_document(str(folder / name), data)
            continue
        shard = _SHARD.fullmatch(stem)
        stem = shard[1] if shard else stem
        if tensors is None or stem in tensors:
            part = _parse_tensors(folder / name, _read_verified(folder, name, entry))
            if twice := part.keys() & loaded.setdefault(stem, {}).keys():
                raise CheckpointError(str(folder / name), f"in two shards: {sorted(twice)}", "save it anew")
            loaded[stem] |= {key: tensor.to(device) for key, tensor in part.items()}
    if missing := set(tensors or ()) - loaded.keys():
        raise CheckpointError(str(folder), f"has no tensors {sorted(missing)}", f"ask for one listed in {MANIFEST}")
    return loaded, documents


def load_file(path: str | os.PathLike, name: str) -> bytes:
    """Reads one file of a folder that `save_folder` wrote, checked against the manifest.

    Raises:
        CheckpointError: the folder or the file is missing or damaged.
    """
    folder = Path(os.path.realpath(path))
    files = _read_manifest(folder)
    if name not in files:
        raise CheckpointError(str(folder / name), f"not in {MANIFEST}", f"ask for one of {sorted(files)}")
    return _read_verified(folder, name, files[name])


def write_json(path: str | os.PathLike, value: object) -> None:
    """Writes one JSON file: all of it, or the old one stays.

    Raises:
        CheckpointError: a value that JSON does not know (NaN included), or a disk that does not take it.
    """
    write_bytes(path, _encode_json(str(path), value))


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes one file: all of it, or the old one stays.

    Raises:
        CheckpointError: a disk that does not take it.
    """
    target = Path(os.path.realpath(path))
    with _staged(target) as partial:
        _write(partial, data)
        os.replace(partial, target)
        _sync(target.parent)


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Types what the disk refuses while a file is written by other means than these functions.

    Raises:
        CheckpointError: a disk that does not take it.
    """
    try:
        yield
    except OSError as error:
        fault = (error.strerror or str(error)).partition("\n")[0]
        raise CheckpointError(str(path), f"not written: {fault}", "free space or choose another path") from error


def read_json(path: str | os.PathLike, folder: Path | None = None) -> object:
    """Reads one JSON file.

    Args:
        path: the file.
        folder: see `regular_file`.

    Raises:
        CheckpointError: missing, elsewhere, too large, not JSON, duplicate keys or non-finite numbers.
    """
    return _parse_json(str(path), _read(Path(path), MAX_JSON_BYTES, folder))


def regular_file(path: str | os.PathLike, folder: Path | None = None) -> Path:
    """Where a path leads, links followed: a regular file, never a pipe, a device or a folder. Opens nothing.

    Args:
        path: the file.
        folder: where it has to lie. What links of a snapshot in the Hub's cache (REPOSITORY/snapshots/REVISION) lead to in
            REPOSITORY/blobs counts as inside.

    Raises:
        CheckpointError: missing, not a regular file, or outside the folder.
    """
    try:
        real = Path(os.path.realpath(path, strict=True))
        regular = real.is_file()
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(str(path), found, f"check the path, or {_RESTORE}") from error
    if not regular or not (folder is None or any(real.is_relative_to(home) for home in _homes(folder))):
        raise CheckpointError(str(path), f"leads to {real}", "only regular files inside the folder are read")
    return real


def _homes(folder: Path) -> list[Path]:
    """The folder, and the blobs of the Hub's cache where it lies in a snapshot of that."""
    folder = Path(os.path.realpath(folder))
    caches = [place.parent.parent for place in (folder, *folder.parents) if place.parent.name == "snapshots"]
    return [folder, *(cache / "blobs" for cache in caches[:1])]


def rng_state() -> dict[str, torch.Tensor]:
    """Returns the states of torch's default generators as uint8 tensors: "cpu", and "cuda.0"... where there is CUDA."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state()} | {f"cuda.{index}": state for index, state in enumerate(cuda)}


def set_rng_state(state: Mapping[str, torch.Tensor]) -> None:
    """Restores what `rng_state` returned; states of CUDA devices that are not here are left out.

    Raises:
        CheckpointError: the CPU's state is missing, or one is not torch's.
    """
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        torch.set_rng_state(state["cpu"].cpu())
        for index in range(devices):
            if f"cuda.{index}" in state:
                torch.cuda.set_rng_state(state[f"cuda.{index}"].cpu(), index)
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError("rng state", repr(error), "use the tensors that rng_state() returned") from error


def generator_state(generator: np.random.Generator) -> dict:
    """Returns the state of a PCG64 generator (`np.random.default_rng`) as a dict fit for JSON.

    Raises:
        CheckpointError: a generator of another kind.
    """
    state = generator.bit_generator.state
    if state["bit_generator"] != "PCG64":
        raise CheckpointError("generator", state["bit_generator"], "use np.random.default_rng(seed), a PCG64")
    return state


def restore_generator(state: dict) -> np.random.Generator:
    """Returns a new generator that goes on where the one given to `generator_state` stood.

    Raises:
        CheckpointError: not a PCG64 state.
    """
    bits = np.random.PCG64(0)
    try:
        bits.state = state
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise CheckpointError("generator", repr(error), "use the dict that generator_state() returned") from error
    return np.random.Generator(bits)


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """Yields a sibling path to build in; removes it and those of dead processes, and types what the disk refuses."""
    prefix = f".{target.name}.partial-"
    partial = target.parent / f"{prefix}{os.getpid()}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for entry in target.parent.iterdir():
            owner = entry.name.removeprefix(prefix)
            if owner != entry.name and owner.isdecimal() and (entry == partial or not _alive(int(owner))):
                _remove(entry)
        yield partial
    except OSError as error:
        remedy = "free space or choose another path; what was there before is still complete"
        raise CheckpointError(str(target), f"not written: {error.strerror or error}", remedy) from error
    finally:
        _remove(partial)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError, OverflowError) as error:
        return isinstance(error, PermissionError)
    return True


def _previous(target: Path) -> Path:
    return target.parent / f".{target.name}.previous"


def _remove(path: Path) -> None:
    """Clears away what is there, as far as that can be: why not is no reason to hide why it was to go."""
    with suppress(OSError):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _swap(partial: Path, target: Path, previous: Path) -> None:
    try:
        if target.exists():
            os.rename(target, previous)
        os.rename(partial, target)
        _sync(target.parent)
    except BaseException:  # back to how it was
        if not partial.exists():
            os.rename(target, partial)
        if previous.exists() and not target.exists():
            os.rename(previous, target)
        raise
    _remove(previous)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
            name, data = f"{name}.json", _encode_json(f"{name}.json", document)
        if name.endswith(".safetensors"):
            raise CheckpointError(name, "a text under a tensor file's name", "choose another name")
        if name.endswith(".json"):
            _parse_document(name, data)
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


def _encode_json(field: str, value: object) -> bytes:
    try:
        data = (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(field, str(error), "use finite numbers, texts, lists and dicts with text keys") from error
    _parse_json(field, data)  # keys such as 1 and "1" fall together only here
    return data


def _read_manifest(folder: Path) -> dict[str, dict]:
    path = folder / MANIFEST
    manifest = _parse_document(str(path), _read(path, MAX_JSON_BYTES, folder))
    kind, files = (manifest.get("format"), manifest.get("version")), manifest.get("files")
    if kind != (FORMAT, VERSION):
        raise CheckpointError(str(path), kind, f"this release reads format {FORMAT!r}, version {VERSION}")
    try:
        for name, entry in files.items():
            if not _NAME.fullmatch(name) or [type(entry[key]) for key in ("sha256", "bytes")] != [str, int]:
                raise CheckpointError(str(path), f"{name!r}: {entry!r}", f"files have {_NAMES}, a sha256 and bytes")
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(str(path), repr(error), "files must map each name to its sha256 and bytes") from error
    return files


def _read_verified(folder: Path, name: str, entry: dict) -> bytes:
    limit = min(entry["bytes"], MAX_JSON_BYTES) if name.endswith(".json") else entry["bytes"]
    data = _read(folder / name, limit, folder)
    if len(data) != entry["bytes"] or hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise CheckpointError(str(folder / name), f"{len(data)} bytes that do not match {MANIFEST}", _RESTORE)
    return data


def _read(path: Path, limit: int, folder: Path | None = None) -> bytes:
    """Reads a file of at most `limit` bytes; see `regular_file`."""
    real = regular_file(path, folder)
    try:
        size = real.stat().st_size
        data = real.read_bytes() if size <= limit else b""
    except OSError as error:
        raise CheckpointError(str(path), error.strerror or str(error), f"check the path, or {_RESTORE}") from error
    if size > limit:
        raise CheckpointError(str(path), f"{size} bytes", f"at most {limit} are expected; {_RESTORE}")
    return data


def _parse_tensors(path: Path, data: bytes) -> dict[str, torch.Tensor]:
    end = 8 + int.from_bytes(data[:8], "little")
    if not 8 < end <= min(len(data), MAX_JSON_BYTES):
        raise CheckpointError(str(path), data[:8], f"not a safetensors file; {_RESTORE}")
    _parse_document(str(path), data[8:end])  # safetensors itself lets duplicate keys pass
    try:
        tensors = load_safetensors(data)
        for key, tensor in tensors.items():
            _require_finite(key, tensor)
    except Exception as error:  # a hostile header makes the library raise nearly anything
        raise CheckpointError(str(path), str(error), f"dense, finite safetensors are read; {_RESTORE}") from error
    return tensors


def _parse_document(field: str, data: bytes) -> dict:
    value = _parse_json(field, data)
    if not isinstance(value, dict):
        raise CheckpointError(field, value, "the top level must be a JSON object")
    return value


def _parse_json(field: str, data: bytes) -> object:
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
    except (RecursionError, ValueError) as error:
        raise CheckpointError(field, str(error), "must be UTF-8 JSON with unique keys and finite numbers") from error


def _unique(pairs: list[tuple[str, object]]) -> dict:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate keys")
    return result


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not finite")
    return number
