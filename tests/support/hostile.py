"""Checkpoints whose sums are right and whose content is not: a seeded generator of them, and what becomes of each.

    for name, mutate in mutations(seed=0, count=400):  # any number; the same seed gives the same ones
        shutil.copytree(intact, copy), mutate(copy)    # `copy` is now hostile, under sums made anew

    for outcome in trials(intact, workplace, count=400, seed=0):
        assert outcome.fault == "", outcome

`trials` loads and uses each of them in a process of its own, and measures: a checkpoint is either refused by one typed error
that names its folder, or it is loaded and dreams a step; in less than `SECONDS`, with less than `MEGABYTES` more than the
intact one, and without running anything that lies beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SECONDS, MEGABYTES = 5.0, 200.0
LIMIT = 6 << 30  # bytes of address space of a trial, so that the worst hurts nobody else
MARK = "executed"  # a file that hostile code would make
Mutation = tuple[str, Callable[[Path], None]]

DEEP = json.loads("[" * 300 + "]" * 300)
VALUES = (
    *(None, True, False, "", "x", "8", "\0", "a\nb", "ä" * 70_000, "../../x", "os:system"),
    *(-1, 0, 1, 2, 3, 7, 255, 257, 4097, 10**6, 10**9, 2**31, 2**63, 2**64, -(10**9), 10**400),
    *(0.0, 0.5, -1.5, 1e-320, 1e300, 3.4e38, [], {}, [[]], [1], [0, 0], [1] * 5000, {"x": 1}, DEEP),
)
ENV_IDS = (
    "gift:Zork-v0",
    "gift:x/Zork-v0",
    ":Zork-v0",
    "os:system",
    "nosuch/Env-v0",
    "Zork",
    "a" * 5000,
    "a b",
    "-v0",
    "/",
)
CODE = f"import os, pathlib; pathlib.Path(os.environ['HOSTILE_MARK']).write_text('{MARK}')\n"


# Files


def seal(folder: Path) -> None:
    """Makes the manifest's sums anew, of the regular files that it names and of new ones in the folder."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    files = {file.name: file for file in folder.iterdir() if file.is_file() and not file.is_symlink()}
    files.pop("manifest.json")
    manifest["files"] = {name: _entry(file) for name, file in sorted(files.items())}
    path.write_text(json.dumps(manifest))


def _entry(file: Path) -> dict:
    with file.open("rb") as opened:
        return {"sha256": hashlib.file_digest(opened, "sha256").hexdigest(), "bytes": file.stat().st_size}


def edit_json(folder: Path, name: str, change: Callable[[dict], object]) -> None:
    """Changes a document in place, or replaces it with what `change` returns."""
    document = json.loads((folder / name).read_text())
    found = change(document)
    text = json.dumps(document if found is None else found)
    (folder / name).write_text(text)
    seal(folder)


def edit_header(folder: Path, name: str, change: Callable[[dict, bytes], tuple[object, bytes] | bytes | None]) -> None:
    """Changes a safetensors file: its header in place, or header and data, or all of its bytes."""
    data = (folder / name).read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8:end]), data[end:]
    found = change(header, body)
    if not isinstance(found, bytes):
        header, body = (header, body) if found is None else found
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        found = struct.pack("<Q", len(text)) + text + body
    (folder / name).write_bytes(found)
    seal(folder)


def edit_text(folder: Path, change: Callable[[dict], object]) -> None:
    """Changes the text tokenizer's own document, which is a text within `text.json`."""

    def within(document: dict) -> None:
        inner = json.loads(document["tokenizer"])
        found = change(inner)
        document["tokenizer"] = found if isinstance(found, str) else json.dumps(inner if found is None else found)

    edit_json(folder, "text.json", within)


def places_of(document: object, path: tuple = ()) -> Iterator[tuple]:
    """Every place in a JSON document, as keys and indices; facts of training and versions are anybody's."""
    if isinstance(document, dict):
        items = [(key, value) for key, value in document.items() if path or key not in ("training", "versions")]
    else:
        items = list(enumerate(document[:2])) if isinstance(document, list) else []
    for key, value in items:
        yield (*path, key)
        yield from places_of(value, (*path, key))


def put(document: dict, path: tuple, value: object) -> None:
    """Puts a value where `places_of` found one."""
    for key in path[:-1]:
        document = document[key]
    document[path[-1]] = value


# Mutations


def _setting(path: tuple, value: object) -> Mutation:
    shown = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else f"10**{len(str(value)) - 1}"
    name = f"config {'.'.join(map(str, path))} = {shown[:40]}"
    return name, lambda folder: edit_json(folder, "config.json", lambda document: put(document, path, value))


def _random_setting(rng: random.Random, number: int) -> Mutation:
    """Any place of the configuration, with any value, or left out, or with an unknown neighbour."""
    kind, pick = rng.choice(("set", "set", "set", "set", "drop", "add", "scale")), rng.random()
    value = deepcopy(rng.choice(VALUES))

    def change(document: dict) -> None:
        places = list(places_of(document))
        path = places[int(pick * len(places))]
        owner = document
        for key in path[:-1]:
            owner = owner[key]
        if kind == "drop":
            del owner[path[-1]]
        elif kind == "add" and isinstance(owner, dict):
            owner[f"unknown {number}"] = value
        elif kind == "scale" and type(owner[path[-1]]) in (int, float):
            owner[path[-1]] = owner[path[-1]] * rng.choice((-1, 2, 3, 1000, 10**6)) + rng.choice((0, 1))
        else:
            owner[path[-1]] = value

    return (
        f"config, at random #{number} ({kind} {str(value)[:20]!r})",
        lambda folder: edit_json(folder, "config.json", change),
    )


def _texts() -> Iterator[Mutation]:
    """Of the text tokenizer's document, and of the library's document in it."""
    for value in (None, 5, [], {}, "", "{", "[" * 100_000, "null", "[]", "{}", '{"version": "1.0"}', "\ud800"):
        yield (
            f"text.json tokenizer = {repr(value)[:20]}",
            lambda folder, value=value: edit_json(folder, "text.json", lambda d: d.update(tokenizer=value)),
        )
    yield "text.json empty", lambda folder: edit_json(folder, "text.json", lambda d: d.clear())
    regex = {"type": "Split", "pattern": {"Regex": "(a|a|aa)+$"}, "behavior": "Isolated", "invert": False}
    growth = {"type": "Replace", "pattern": {"String": "e"}, "content": "ee" * 50}
    parts: dict[str, list] = {
        "normalizer": [None, 5, {"type": "NoSuch"}, {"type": "Sequence", "normalizers": [growth] * 12}],
        "pre_tokenizer": [None, [], regex, {"type": "ByteLevel"}, {"type": "Sequence", "pretokenizers": []}],
        "decoder": [None, {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10**6}, "x"],
        "post_processor": [{"type": "ByteLevel"}, {"type": "TemplateProcessing"}, 7],
        "added_tokens": [None, [5], [{"id": 10**9, "content": "x", "special": True}], {}],
        "truncation": [{"max_length": 1, "strategy": "LongestFirst", "stride": 7, "direction": "Right"}, 3],
        "padding": [
            {"strategy": {"Fixed": 2**31}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
        ],
        "model": [None, {}, {"type": "WordPiece", "vocab": {"a": 0}}, {"type": "Unigram", "vocab": [["a", 0.0]]}],
        "version": [None, "9.9", 1],
        "unknown": [1],
    }
    for part, values in parts.items():
        for value in values:
            yield (
                f"tokenizer's {part} = {str(value)[:40]}",
                lambda folder, part=part, value=value: edit_text(folder, lambda d: d.update({part: value})),
            )
    inside: dict[str, list] = {
        "vocab": [
            None,
            [],
            {},
            {"a": 0},
            {"a": -1},
            {"a": 2**40},
            {"a": "0"},
            {"a": 0, "b": 0},
            {str(i): i for i in range(90_000)},
        ],
        "merges": [None, {}, [], ["a"], [["a"]], [["a", "b", "c"]], [["zz", "yy"]], [[1, 2]], [["Ä", "q"]] * 70_000],
        "dropout": [1.0, 2.0, "x"],
        "unk_token": ["x", 5],
        "byte_fallback": [True, 5],
        "continuing_subword_prefix": ["##", "x" * 10**6],
        "ignore_merges": [True],
    }
    for key, values in inside.items():
        for value in values:
            yield (
                f"tokenizer's model.{key} = {str(value)[:40]}",
                lambda folder, key=key, value=value: edit_text(folder, lambda d: d["model"].update({key: value})),
            )
    yield (
        "tokenizer's ids far apart",
        lambda folder: edit_text(
            folder, lambda d: d["model"].update(vocab={token: 1000 * i for token, i in d["model"]["vocab"].items()})
        ),
    )


def _headers(file: str) -> Iterator[Mutation]:
    """Of a safetensors file: the header, and the numbers."""

    def of(name: str, change) -> Mutation:
        return f"{file}: {name}", lambda folder: edit_header(folder, file, change)

    def first(header: dict) -> tuple[str, dict]:
        return next((name, entry) for name, entry in header.items() if len(entry.get("shape", ())) > 1)

    def entry(change) -> Callable:
        return lambda header, body: change(first(header)[1])

    def empties(count: int, more: dict) -> Callable:
        return lambda header, body: header.update(
            {f"e{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0], **more} for i in range(count)}
        )

    yield of("200,000 empty tensors", empties(200_000, {}))
    yield of("1,000 empty tensors", empties(1_000, {}))
    yield of("an empty tensor of a huge side", empties(1, {"shape": [0, 2**62, 2**62]}))
    yield of("a tensor of 100,000 sides", empties(1, {"shape": [0] + [1] * 100_000}))
    yield of("none", lambda header, body: ({}, b""))
    yield of("no header", lambda header, body: b"")
    yield of("zeros", lambda header, body: b"\0" * 64)
    yield of("deep", lambda header, body: (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b""))
    yield of("a list", lambda header, body: ([1], b""))
    yield of("metadata of 8 MB", lambda header, body: header.update(__metadata__={"x": "y" * (8 << 20)}))
    yield of("metadata of another kind", lambda header, body: header.update(__metadata__=[1]))
    yield of("2,000,000 lists", lambda header, body: (b'{"a":[' + b"[]," * 2_000_000 + b"[]]}", b""))
    yield of("one left out", lambda header, body: header.pop(first(header)[0]) and None)
    yield of("one renamed", lambda header, body: header.update({"other": header.pop(first(header)[0])}))
    yield of("cut off", lambda header, body: (header, body[:-8]))
    yield of("too long", lambda header, body: (header, body + b"\0" * 8))
    for dtype in ("F64", "F16", "BF16", "I32", "U8", "BOOL", "C64", "F8_E4M3", "F4", "X", 5, None):
        yield of(f"dtype {dtype}", entry(lambda e, dtype=dtype: e.update(dtype=dtype)))
    for shape in ([], [1], [2**31, 2**31], [-1, -1], [0], [1.5], ["2"], None, [2**64], [1] * 9000):
        yield of(f"shape {str(shape)[:30]}", entry(lambda e, shape=shape: e.update(shape=shape)))
    yield of("a shape turned round", entry(lambda e: e["shape"].reverse() or e["shape"].append(1)))
    for offsets in ([0, 0], [4, 0], [-4, 4], [0, 2**62], [0], None, "x", [0.5, 4]):
        yield of(f"offsets {offsets}", entry(lambda e, offsets=offsets: e.update(data_offsets=offsets)))
    yield of(
        "as integers",
        lambda header, body: [e.update(dtype="I32") for e in header.values() if e["dtype"] == "F32"] and None,
    )
    for value in (3e38, -3e38, 1e30, float("nan"), float("inf"), 0.0, 1e-45):
        yield of(f"all numbers {value}", lambda header, body, value=value: (header, _filled(header, body, value)))


def _filled(header: dict, body: bytes, value: float) -> bytes:
    """The data with this number in every float32 tensor."""
    data = bytearray(body)
    for entry in header.values():
        if entry.get("dtype") == "F32":
            begin, end = entry["data_offsets"]
            data[begin:end] = np.full((end - begin) // 4, value, "<f4").tobytes()
    return bytes(data)


def _folders() -> Iterator[Mutation]:
    """Of the folder: files that are none, and files that nobody asked for."""

    def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
        def mutate(folder: Path) -> None:
            (folder / name).unlink(missing_ok=True)
            make(folder / name)

        return mutate

    def sparse(path: Path) -> None:
        """A file of 8 GB that takes no space, in the manifest under sums that nobody has computed."""
        size = 8 << 30
        with path.open("wb") as file:
            file.truncate(size)
        manifest = json.loads((path.parent / "manifest.json").read_text())
        manifest["files"][path.name] = {"sha256": "0" * 64, "bytes": size}
        (path.parent / "manifest.json").write_text(json.dumps(manifest))

    kinds = {
        "a FIFO": os.mkfifo,
        "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
        "a link to a FIFO": lambda path: (os.mkfifo(path.with_name("pipe")), path.symlink_to("pipe")),
        "a folder": Path.mkdir,
        "a link outside": lambda path: path.symlink_to("/etc/hostname"),
        "8 GB": sparse,
    }
    for name in ("zz.safetensors", "config.json", "text.json", "token_model.safetensors", "README.md", "manifest.json"):
        for kind, make in kinds.items():
            if (name, kind) != ("manifest.json", "8 GB"):
                yield f"{name} is {kind}", replaced(name, make)


def fixed_mutations() -> Iterator[Mutation]:
    """Those that are always tried: each has been a fault, or is next to one."""
    model, transformer, frames = ("model",), ("model", "transformer"), ("tokenizer",)
    huge = (0, -1, 10**6, 10**9, 2**63)
    for path in (
        *((*transformer, key) for key in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")),
        *((*transformer, key) for key in ("num_attention_heads", "num_key_value_heads", "head_dim")),
        *((*model, key) for key in ("text_length", "grid", "action_dim", "context_frames", "instruction_length")),
        *((*model, "vocabulary", key) for key in ("text_size", "codebook_size", "action_bins")),
        *((*frames, key) for key in ("image_size", "patch", "margin", "width", "encoder_layers", "blocks")),
    ):
        yield from (_setting(path, value) for value in huge)
    for levels in (
        [],
        [1],
        [1, 1, 1],
        [8, 8, 1],
        [0, 8],
        [-8, -8],
        [2] * 64,
        [10**9] * 3,
        [8.0, 8],
        "888",
        [8] * 90_000,
    ):
        yield _setting((*frames, "levels"), levels)
    for key in ("rms_norm_eps", "rope_theta", "rope_factor"):
        yield from (_setting((*transformer, key), value) for value in (0, -1.0, 1e308, "x", None))
    for kind in ("linear", "dynamic", "yarn", 5):
        yield _setting((*transformer, "rope_scaling"), kind)
    for path in ((*model, "position_scale"), ("world", "position_scale")):
        yield from (_setting(path, value) for value in ([1e308, 1e308], [0, 0], [], [1], [1, 2, 3], "xy", [True, True]))
    for objects in (
        {},
        [],
        {"x": [0, 0, 0]},
        {"x": "red"},
        {"": [1, 2]},
        {"x": [1e300, 0, 0]},
        {"x" * 10**5: [0, 0, 0]},
    ):
        yield _setting(("world", "objects"), objects)
    for names in (["x"], ["x", "x"], ["x", 5], "xy", [["x", "y"]], ["x"] * 10**5, ["\0", "\n"]):
        yield _setting(("world", "action_names"), names)
    for scale in (
        [[1, 1]],
        [[[0, 0], [0, 0]]],
        [[[0], [1]]],
        [[[0, 0], [1e308, 1e308]]],
        [[[0, 0], [-1, 1]]],
        "x",
        [[["a", "b"], [1, 1]]],
    ):
        yield _setting(("world", "action_scale"), scale)
    for landmarks in ([], {"x": "y"}, {"red": 5}, {"red": "red"}):
        yield _setting(("world", "landmarks"), landmarks)
    for eye in ("no such eye", "", 5, "os:system", ["colours"]):
        yield _setting(("world", "eye"), eye)
    yield from (_setting(("world", "env_id"), name) for name in ENV_IDS)
    for noise in ("uniform", "metric", "none", 5):
        yield _setting((*model, "noise"), noise)
    for key in ("previous_frame_source", "next_token_shift"):
        yield from (_setting((*model, key), value) for value in (True, False, 1, "yes", None))
    for section in ("tokenizer", "model", "world", "training", "format", "version"):
        yield from (_setting((section,), value) for value in (None, [], {}, "x", 5, DEEP))
    for document in ([], {}, None, 5, {"format": "emu-embodied-world-model", "version": 1, "base": {}}):
        yield (
            f"config.json is {str(document)[:30]}",
            lambda folder, document=document: (
                (folder / "config.json").write_text(json.dumps(document)),
                seal(folder),
            ),
        )
    yield from _texts()
    for file in ("token_model.safetensors", "frame_tokenizer.safetensors"):
        yield from _headers(file)
    yield from _folders()


def mutations(seed: int = 0, count: int = 400) -> Iterator[Mutation]:
    """So many ways to spoil a checkpoint, drawn by the seed: from the fixed ones, as long as there are any, then at random.

    Yields:
        a name, and what changes a copy of an intact checkpoint in place, its sums included.
    """
    rng = random.Random(seed)
    known = list(fixed_mutations())
    rng.shuffle(known)
    known = known[: max(count * 3 // 4, 1)]
    yield from known[:count]
    for number in range(count - len(known)):
        yield _random_setting(random.Random(f"{seed} {number}"), number)


# Trials


@dataclass(frozen=True)
class Outcome:
    """What became of one hostile checkpoint.

    Attributes:
        name: of the mutation.
        result: "loaded", or the error's class and message.
        fault: what is wrong with that; empty where nothing is.
        seconds, megabytes: it took, and how much more memory at its worst.
    """

    name: str
    result: str
    fault: str
    seconds: float
    megabytes: float


def use(folder: Path) -> None:
    """Loads a checkpoint as a user does, and dreams one step in it."""
    import emu_embodied
    from emu_embodied.types import Observation

    model = emu_embodied.load(folder, device="cpu")
    pixels = np.zeros((model.image_size, model.image_size, 3), np.uint8)
    history = model.encode([Observation(pixels, np.zeros(model.agent_dim, np.float32), "")])
    model.step(history, np.zeros((1, model.action_dim), np.float32))


def trials(
    intact: Path, workplace: Path, count: int = 400, seed: int = 0, try_it: Callable[[Path], None] = use
) -> Iterator[Outcome]:
    """Spoils copies of an intact checkpoint and tries each in a child of this process (Linux).

    Args:
        intact: a checkpoint's folder.
        workplace: where copies are made and removed.
        count, seed: of `mutations`.
        try_it: what is done with the copy.
    """
    try_it(intact)  # everything is imported now; what an intact one needs is known
    for number, (name, mutate) in enumerate(mutations(seed, count)):
        copy = workplace / f"hostile-{number}"
        shutil.copytree(intact, copy)
        (copy / "gift").mkdir()
        (copy / "gift" / "__init__.py").write_text(CODE)
        mutate(copy)
        yield _trial(name, copy, workplace, try_it)
        shutil.rmtree(copy)


def _trial(name: str, copy: Path, workplace: Path, try_it: Callable[[Path], None]) -> Outcome:
    mark, answer = workplace / "mark", workplace / "answer"
    for path in (mark, answer):
        path.unlink(missing_ok=True)
    begun, pid = time.monotonic(), os.fork()
    if pid == 0:
        _child(copy, mark, answer, try_it)
    deadline, status = begun + 6 * SECONDS, None
    while status is None and time.monotonic() < deadline:
        done, found = os.waitpid(pid, os.WNOHANG)
        status = found if done else None
        time.sleep(0 if done else 0.005)
    if status is None:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    spent = time.monotonic() - begun
    found = json.loads(answer.read_text()) if answer.exists() else {"result": "", "fault": f"died: {status}", "mb": 0.0}
    fault = "hangs" if status is None or found.get("seconds", 0) > SECONDS else found["fault"]
    fault = "takes much memory" if not fault and found["mb"] > MEGABYTES else fault
    fault = "runs code" if mark.exists() else fault
    return Outcome(name, found["result"], fault, found.get("seconds", spent), found["mb"])


def _child(copy: Path, mark: Path, answer: Path, try_it: Callable[[Path], None]) -> None:
    """Tries one checkpoint, standing in its folder, writes down what came of it, and ends."""
    from emu_embodied.errors import EmuEmbodiedError

    os.environ["HOSTILE_MARK"] = str(mark)
    os.chdir(copy)
    sys.path.insert(0, "")
    sys.stderr = open(os.devnull, "w")
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + LIMIT, pages + LIMIT))
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    result, fault = "loaded", ""
    try:
        try_it(copy)
    except EmuEmbodiedError as error:
        result = f"{type(error).__name__}: {error}"
        fault = "" if str(copy) in str(error) and "\n" not in str(error) else "the message names no file"
    except BaseException as error:
        result = f"{type(error).__name__}: {error}"[:500]
        fault = (
            "untyped: "
            + " < ".join(f"{f.name}:{f.lineno}" for f in reversed(traceback.extract_tb(error.__traceback__)))[:300]
        )
    seconds = time.process_time() - begun
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    answer.write_text(json.dumps({"result": result, "fault": fault, "seconds": seconds, "mb": grown}))
    os._exit(0)
