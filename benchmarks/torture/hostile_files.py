"""Damaged and hostile files: refused with one typed error that names them, soon, in little memory, and nothing is executed."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium
import numpy as np
from payloads import payloads

import emu_embodied.envs  # noqa: F401  here, so that no fork imports it anew
from emu_embodied.loading import load
from emu_embodied.storage.files import MANIFEST

from .battery import Job, NotRun, Trial, battery
from .kills import tiny_checkpoint
from .processes import Ending, MiB, in_child

SECONDS, MEMORY = 5.0, 300 * MiB  # of a core and of memory that a file may cost
ACTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pickle.find_class", "socket.connect")
_watched: list[str] = []  # what hostile content did, by Python's audit events


def optional(name: str):
    """A module that stands beside the tests.

    Raises:
        NotRun: it is not there.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise NotRun(f"tests/support/{name}.py: {error}") from None


def judge(what: str, ending: Ending, file: str = "", refused: bool = True) -> Trial:
    """Whether a hostile file was refused by a typed error that names it, in bounds; `refused=False` lets it be taken, too."""
    answer = ending.value if isinstance(ending.value, dict) else {}
    if acts := answer.get("acts"):
        return Trial(what, False, ending.computed, f"executed: {acts}")
    kind = answer.get("kind", ending.kind)
    text = str(answer.get("text", ending.value))
    held = kind == "typed" and file in text or not refused and kind == "done"
    held = held and ending.computed < SECONDS and ending.grown < MEMORY
    return Trial(what, held, ending.computed, "" if held else f"{kind}: {text[:300]}; {ending}"[:500])


def opened(folder: Path, door: Callable[[Path], object]) -> Ending:
    """Opens a folder by a door, in a child that stands in it and watches what is executed."""
    return in_child(lambda: _watch(folder, door), SECONDS * 6)


def _watch(folder: Path, door: Callable[[Path], object]) -> dict:
    from emu_embodied.errors import EmuEmbodiedError

    os.chdir(folder)
    sys.path.insert(0, "")

    def hear(event: str, arguments: tuple) -> None:
        if event in ACTS or event == "import" and str(arguments[0]).partition(".")[0] == "gift":
            _watched.append(f"{event} {arguments!r}"[:120])

    sys.addaudithook(hear)
    try:
        door(folder)
        kind, text = "done", ""
    except EmuEmbodiedError as error:
        kind, text = "typed", str(error)
    except BaseException as error:
        kind, text = "untyped", f"{type(error).__name__}: {error}"
    canary = [str(path) for path in (folder / "canary", Path.cwd() / "canary") if path.exists()]
    return {"kind": kind, "text": text, "acts": _watched + canary}


def load_and_dream(folder: Path) -> None:
    """What a user does with a checkpoint: loads it, and makes its dream."""
    model = load(folder, device="cpu")
    gymnasium.make("emu_embodied/Imagined-v0", world_model=model)


# Damage that the sums tell


@battery(
    "stale",
    fault="truncated, bit-flipped, duplicate-key, NaN weights",
    expected="typed error naming the file (safetensors alone accepts bit flips, duplicate keys and NaN: there is a SHA-256 "
    "manifest)",
    bar="500/500",
    n=500,
)
def stale(job: Job) -> Iterator[Trial]:
    """Damages a random file of a checkpoint at a random place, sums as they were."""
    intact = tiny_checkpoint(job.folder / "intact")
    opened(intact, load_and_dream)
    for index in range(job.n):
        copy = Path(shutil.copytree(intact, job.folder / "copy"))
        file = job.chance.choice(sorted(copy.iterdir()))
        kind = job.chance.choice(sorted(DAMAGES))
        if kind in ("duplicate key", "NaN weights") and file.name == MANIFEST:
            kind = "bit flip"
        data = DAMAGES[kind](bytearray(file.read_bytes()), job.chance)
        if data == file.read_bytes():
            data = data + b" "
        file.write_bytes(data)
        yield judge(f"#{index} {kind} in {file.name}", opened(copy, load_and_dream), str(copy))
        shutil.rmtree(copy)


def flip(data: bytearray, chance: random.Random) -> bytes:
    """Changes one bit."""
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def _duplicate(data: bytearray, chance: random.Random) -> bytes:
    """The first key of the JSON document or header once more."""
    at = data.index(b"{")
    return bytes(data[: at + 1] + b'"format": 1, "format": 2, ' + data[at + 1 :])


def _nan(data: bytearray, chance: random.Random) -> bytes:
    at = max(0, len(data) - 4 * chance.randrange(1, 100))
    return bytes(data[:at] + np.float32(np.nan).tobytes() + data[at + 4 :])


DAMAGES: dict[str, Callable[[bytearray, random.Random], bytes]] = {
    "bit flip": flip,
    "truncation": lambda data, chance: bytes(data[: chance.randrange(len(data))]),
    "duplicate key": _duplicate,
    "NaN weights": _nan,
    "bytes at the end": lambda data, chance: bytes(data) + chance.randbytes(chance.randrange(1, 100)),
    "zeros in the middle": lambda data, chance: bytes(data[: len(data) // 2]) + bytes(len(data) - len(data) // 2),
}


# Content that the sums do not tell


@battery(
    "mutations",
    fault="checkpoints under right sums whose content is not (configuration, text tokenizer, headers, files)",
    expected="loaded, or refused by a typed error naming the folder; within 5 s and 200 MB, nothing executed",
    bar="100%",
    n=400,
)
def mutations(job: Job) -> Iterator[Trial]:
    """tests/support/hostile.py's mutations, each loaded and dreamt in."""
    hostile = optional("hostile")
    intact, place = tiny_checkpoint(job.folder / "intact"), job.folder / "place"
    place.mkdir()
    for outcome in hostile.trials(intact, place, job.n, job.chance.randrange(2**31)):
        yield Trial(outcome.name, not outcome.fault, outcome.seconds, f"{outcome.fault}; {outcome.result}"[:400])


def _targets() -> dict[str, Callable[[dict], None]]:
    """Changes of config.json that name code."""
    call = {"_target_": "os.system", "command": "touch canary"}

    def put(*path: str, value: object) -> Callable[[dict], None]:
        def change(config: dict) -> None:
            for key in path[:-1]:
                config = config[key]
            config[path[-1]] = value

        return change

    return {
        "_target_ at the top": put("_target_", value="os.system"),
        "_target_ as the world": put("world", value=call),
        "_target_ as the model": put("model", value=call),
        "_target_ as the tokenizer": put("tokenizer", value=call),
        "_target_ in the transformer": put("model", "transformer", "_target_", value="os.system"),
        "auto_map": put("auto_map", value={"AutoModel": "gift--gift.Zork"}),
        "auto_map in the transformer": put("model", "transformer", "auto_map", value={"AutoConfig": "gift.Zork"}),
        "env id gift:Zork-v0": put("world", "env_id", value="gift:Zork-v0"),
        "env id gift:emu_embodied/TabletopPush-v0": put("world", "env_id", value="gift:emu_embodied/TabletopPush-v0"),
        "env id os:system": put("world", "env_id", value="os:system"),
        "eye gift:look": put("world", "eye", value="gift:look"),
        "eye of a module": put("world", "eye", value="gift.look"),
        "architectures": put("architectures", value=["gift.Zork"]),
        "landmarks of code": put("world", "landmarks", value={"__import__('gift')": "x"}),
        "a base to load": put("base", value={"path": "gift", "trust_remote_code": True}),
    }


def seal(folder: Path, files: dict[str, bytes]) -> None:
    """Writes files, and a manifest that agrees with all that is there."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    entries = {name: (folder / name).read_bytes() for name in names}
    sums = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in entries.items()}
    (folder / MANIFEST).write_text(json.dumps({"format": "emu-embodied-folder", "version": 1, "files": sums}))


@battery(
    "code",
    fault="pickle, object arrays, hostile `_target_` or `auto_map` in files",
    expected="refused or read as data, nothing executed; no `torch.load`, no pickle, no remote code (also "
    "tests/package/test_architecture.py)",
    bar=">= 30 files, 0 executions",
    n=57,
)
def code(job: Job) -> Iterator[Trial]:
    """Files that run code where a loader trusts them, each beside a module `gift` that leaves a canary when imported."""
    intact, cases = tiny_checkpoint(job.folder / "intact"), []
    opened(intact, load_and_dream)
    for kind, data in payloads().items():
        for name in ("token_model.safetensors", "frame_tokenizer.safetensors", "config.json", "text.json"):
            cases.append((f"{kind} as {name}", {name: data}, None, True))
        for name in ("pytorch_model.bin", "model.pt", "zz.npy", "modeling.py", "config.yaml"):
            cases.append((f"{kind} as {name} beside", {name: data}, None, False)) if job.chance.random() < 0.4 else None
    cases += [(f"config.json: {name}", {}, change, False) for name, change in _targets().items()]
    job.chance.shuffle(cases)
    for index in range(job.n):
        what, files, change, refused = cases[index % len(cases)]
        copy = Path(shutil.copytree(intact, job.folder / "copy"))
        for module in ("gift/__init__.py", "sitecustomize.py"):
            (copy / module).parent.mkdir(exist_ok=True)
            (copy / module).write_text("open('canary', 'w').close()\n")
        if change is not None:
            config = json.loads((copy / "config.json").read_text())
            change(config)
            files = {"config.json": json.dumps(config).encode()}
        seal(copy, files)
        yield judge(what, opened(copy, load_and_dream), str(copy), refused)
        shutil.rmtree(copy)


@battery(
    "traversal",
    fault="path traversal in archives and manifests",
    expected="refused: names with separators or dots, links out of the folder, devices and pipes",
    bar=">= 20, 0 escapes",
    n=40,
)
def traversal(job: Job) -> Iterator[Trial]:
    """Manifests that name what lies elsewhere, and folders whose files are links or no files."""
    intact, secret = tiny_checkpoint(job.folder / "intact"), job.folder / "secret.json"
    secret.write_text('{"secret": 1}')
    opened(intact, load_and_dream)
    far = f"../{secret.name}"
    named = (far, f"./{far}", str(secret), "/etc/passwd", "a/../../x.json", "..", "", ".", "config.json/", "~/x.json")
    named += ("a\0b", "..\\secret.json", "C:\\x.json", "%2e%2e/secret.json", "file:///etc/passwd", "config.json\n", "x" * 300)
    made: dict[str, Callable[[Path], object]] = {
        "a link out": lambda path: path.symlink_to(secret),
        "a link to /etc/passwd": lambda path: path.symlink_to("/etc/passwd"),
        "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
        "a link to itself": lambda path: path.symlink_to(path.name),
        "a pipe": os.mkfifo,
        "a folder": Path.mkdir,
        "a chain of links out": lambda path: ((path.parent / "zz").symlink_to(secret), path.symlink_to("zz")),
    }
    cases = [("name", name) for name in named]
    cases += [(kind, file) for kind in made for file in ("config.json", "token_model.safetensors", MANIFEST)]
    job.chance.shuffle(cases)
    for index in range(job.n):
        kind, name = cases[index % len(cases)]
        copy = Path(shutil.copytree(intact, job.folder / "copy"))
        if kind == "name":
            manifest = json.loads((copy / MANIFEST).read_text())
            data = secret.read_bytes()
            manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            (copy / MANIFEST).write_text(json.dumps(manifest))
        else:
            (copy / name).unlink()
            made[kind](copy / name)
        yield judge(f"{kind} {name[:40]!r}", opened(copy, load_and_dream), str(copy))
        shutil.rmtree(copy)


@battery(
    "bombs",
    fault="header and document bombs under right sums",
    expected=f"typed error in {SECONDS:.0f} s and {MEMORY >> 20} MiB",
    bar="100%",
    n=24,
)
def bombs(job: Job) -> Iterator[Trial]:
    """Headers and documents that are small on the disk and large in memory, or deep."""
    intact = tiny_checkpoint(job.folder / "intact")
    opened(intact, load_and_dream)
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}

    def header(document: object, data: bytes = b"") -> bytes:
        text = document if isinstance(document, bytes) else json.dumps(document).encode()
        return struct.pack("<Q", len(text)) + text + data

    tensors = {
        "length of 2**63": struct.pack("<Q", 2**63) + b"{}",
        "length of 2**30": struct.pack("<Q", 2**30) + b"{}",
        "200,000 empty tensors": header({f"t{i}": empty for i in range(200_000)}),
        "a shape of 2**62": header({"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 4]}}, b"\0" * 4),
        "100,000 sides": header({"a": {**empty, "shape": [0] + [1] * 100_000}}),
        "2,000,000 lists": header(b'{"a":[' + b"[]," * 2_000_000 + b"[]]}"),
        "100,000 deep": header(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "metadata of 30 MB": header({"__metadata__": {"a": "b" * 30_000_000}}),
    }
    documents = {
        "100,000 deep": b"[" * 100_000,
        "a number of a million digits": b'{"format": ' + b"9" * 1_000_000 + b"}",
        "3,000,000 keys": b"{" + b",".join(b'"%d":0' % i for i in range(3_000_000)) + b"}",
        "60 MB of text": b'{"format": "' + b"x" * 60_000_000 + b'"}',
    }
    places = ((tensors, ("token_model.safetensors", "frame_tokenizer.safetensors")), (documents, ("config.json", "text.json")))
    cases = [(name, data, file) for kinds, files in places for name, data in kinds.items() for file in files]
    job.chance.shuffle(cases)
    for index in range(job.n):
        name, data, file = cases[index % len(cases)]
        copy = Path(shutil.copytree(intact, job.folder / "copy"))
        seal(copy, {file: data})
        yield judge(f"{file}: {name}", opened(copy, load_and_dream), str(copy))
        shutil.rmtree(copy)


@battery(
    "datasets",
    fault="hostile and damaged datasets",
    expected="read, or refused by a typed error; in bounds of time and memory",
    bar="100%",
    n=300,
)
def datasets(job: Job) -> Iterator[Trial]:
    """tests/support/hostile_datasets.py's mutations, each read as training reads it."""
    hostile = optional("hostile_datasets")
    intact, place = job.folder / "intact", job.folder / "place"
    place.mkdir()
    written = in_child(lambda: str(hostile.write_intact(intact)), 120)  # Arrow has threads, which no fork after it would have
    if written.kind != "done":
        raise NotRun(f"no dataset could be written: {written}")
    for outcome in hostile.trials(intact, place, job.n, job.chance.randrange(2**31)):
        yield Trial(outcome.name, not outcome.fault, outcome.seconds, f"{outcome.fault}; {outcome.result}"[:400])
