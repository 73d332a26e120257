"""Datasets that mean harm or are damaged: a seeded generator of them, and what becomes of each.

    for name, mutate in mutations(seed=0, count=300):  # any number; the same seed gives the same ones
        shutil.copytree(intact, copy), mutate(copy)    # `copy` is now hostile

    for outcome in trials(intact, workplace, count=300, seed=0):
        assert outcome.fault == "", outcome

`write_intact` records what is spoilt. A dataset is either refused by one typed error that names its folder, or read: then
frames, actions and texts are what they are to be. `hostile.py` says what else is measured.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from foreign import JOINTS, TOP, WRIST, picture, recorded_actions
from hostile import VALUES, Mutation, Outcome, places_of, put

ROWS = 16
TEXTS = ("meta/info.json", "meta/stats.json", "meta/emu_embodied.json")
DATA, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
TASKS, VIDEO = "meta/tasks.parquet", f"videos/{WRIST}/chunk-000/file-000.mp4"


def write_intact(root: Path) -> Path:
    """Records two episodes of a camera of pictures and one of videos, with labels, and a note as our own datasets have."""
    from benchmarks.priority import ordinary_priority
    from emu_embodied.data.lerobot_format import _quiet_lerobot

    with ordinary_priority(), _quiet_lerobot():
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        shape, one = {"shape": (24, 32, 3), "names": ["height", "width", "channels"]}, {"shape": (1,), "names": None}
        features = {
            TOP: {"dtype": "image", **shape},
            WRIST: {"dtype": "video", **shape},
            "action": {"dtype": "float32", "shape": (7,), "names": list(JOINTS)},
            "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
            "next.reward": {"dtype": "float32", **one},
            "next.success": {"dtype": "bool", **one},
        }
        dataset = LeRobotDataset.create("someone/arm", 15, features, root=root, use_videos=True)
        for seed in range(2):
            actions = recorded_actions(seed, ROWS // 2) / 1000
            for t, action in enumerate(actions):
                shown = {camera: picture(seed, t, camera) for camera in (TOP, WRIST)}
                labels = {"next.reward": np.float32([0.1]), "next.success": np.array([t > 4])}
                state = np.float32([t, seed])
                dataset.add_frame(
                    {**shown, "action": action, "observation.state": state, **labels, "task": f"task {seed}"}
                )
            dataset.save_episode()
        dataset.finalize()
    (root / "meta" / "emu_embodied.json").write_text(
        '{"settings": {"seed": 0}, "summary": {"episodes": 2, "frames": 16}}'
    )
    return root


def use(folder: Path) -> None:
    """Reads a dataset as training does, twice: built, and from its cache; what it gives must be fit to train on."""
    from emu_embodied.data.frame_cache import frames_for
    from emu_embodied.data.reader import ReadOptions

    for _ in range(2):
        cache = frames_for(folder, ReadOptions(camera=(TOP, WRIST), image_size=16))
        lengths = np.diff(cache.episode_starts)
        assert cache.pixels.shape == (len(cache), 16, 16, 3) and len(cache) <= 2 * ROWS, "frames"
        assert (lengths >= 2).all() and len(lengths) == cache.episodes and lengths.sum() == len(cache), "episodes"
        assert np.isfinite(cache.actions).all() and np.abs(cache.actions).max() <= 1.000001, "actions"
        assert np.isfinite(cache.action_scale).all() and (cache.action_scale[:, 1] >= 0).all(), "scale"
        for values in (cache.agent_pos, cache.rewards, cache.states):
            assert np.isfinite(values).all() and (np.abs(values) <= 1e18).all(), "labels"
        assert all(isinstance(text, str) for text in cache.instructions), "texts"


# Documents


def edit(folder: Path, name: str, change: Callable[[Any], object]) -> None:
    """Changes a JSON document in place, or replaces it with what `change` returns."""
    import json

    document = json.loads((folder / name).read_text())
    found = change(document)
    (folder / name).write_text(json.dumps(document if found is None else found))


def _document(rng: random.Random) -> Mutation:
    """Any place of a document with any value, or left out, or with a neighbour."""
    name, kind, pick = (
        rng.choice((*TEXTS[:1] * 4, *TEXTS)),
        rng.choice(("set", "set", "set", "drop", "add")),
        rng.random(),
    )
    value = rng.choice(VALUES)

    def change(document: dict) -> object:
        places = list(places_of(document))
        path = places[int(pick * len(places))]
        if kind == "set":
            put(document, path, value)
        elif kind == "add":
            put(document, (*path[:-1], "x") if isinstance(path[-1], str) else path, value)
        else:
            owner = document
            for key in path[:-1]:
                owner = owner[key]
            del owner[path[-1]]
        return None

    return f"{name}: {kind} at {pick:.4f} {str(value)[:30]!r}", lambda folder: edit(folder, name, change)


# Tables


def edit_table(folder: Path, name: str, change: Callable[[pa.Table], pa.Table], **options) -> None:
    """Writes a parquet file anew."""
    parquet.write_table(change(parquet.read_table(folder / name)), folder / name, **options)


def replaced(table: pa.Table, name: str, values: Any) -> pa.Table:
    """The table with another column of that name."""
    at = table.schema.get_field_index(name)
    return table.drop_columns([name]).add_column(at, name, values if isinstance(values, pa.Array) else pa.array(values))


CELLS: dict[str, Callable[[int], Any]] = {
    "nulls": lambda n: pa.nulls(n),
    "null floats": lambda n: pa.array([None] * n, pa.float32()),
    "texts": lambda n: ["x"] * n,
    "numbers": lambda n: list(range(n)),
    "negative": lambda n: [-1] * n,
    "huge": lambda n: [2**62] * n,
    "unsigned": lambda n: pa.array([2**64 - 1] * n, pa.uint64()),
    "1e30": lambda n: pa.array([[1e30] * 7] * n, pa.list_(pa.float32(), 7)),
    "nan": lambda n: pa.array([[float("nan")] * 7] * n, pa.list_(pa.float32(), 7)),
    "double": lambda n: pa.array([[1e300] * 7] * n, pa.list_(pa.float64(), 7)),
    "some nan": lambda n: [float("nan") if i % 2 else 1.0 for i in range(n)],
    "infinite": lambda n: [float("inf")] * n,
    "ragged": lambda n: [[1.0] * (i % 3) for i in range(n)],
    "uneven": lambda n: pa.array([[1.0] * (6 + 2 * (i % 2)) for i in range(n)], pa.list_(pa.float32())),
    "holes": lambda n: pa.array([[1.0] * 6 + [None]] * n, pa.list_(pa.float32())),
    "nested": lambda n: [[[1.0], [2.0]]] * n,
    "deep": lambda n: [[[[[[1.0] * 7]]]]] * n,
    "wide": lambda n: pa.array([np.zeros(10**5, np.float32)] * n, pa.list_(pa.float32())),
    "empty": lambda n: [[]] * n,
    "structs": lambda n: [{"bytes": b"x", "path": "../../x"}] * n,
    "no bytes": lambda n: [{"bytes": None, "path": "/etc/hostname"}] * n,
    "other structs": lambda n: [{"a": 1}] * n,
    "bytes": lambda n: [b"\xff\xfe"] * n,
    "lists": lambda n: [["x", "y"]] * n,
    "maps": lambda n: pa.array([[("a", 1)]] * n, pa.map_(pa.string(), pa.int64())),
    "dates": lambda n: pa.array([0] * n, pa.timestamp("us")),
    "decimals": lambda n: pa.array(["1.5"] * n).cast(pa.decimal128(5, 1)),
    "booleans": lambda n: [True] * n,
    "long texts": lambda n: ["ä" * 10**6] * n,
    "words": lambda n: pa.array(["a"] * n).dictionary_encode(),
}


def _cells(name: str, column: str | None, kind: str, pick: float) -> Mutation:
    def change(table: pa.Table) -> pa.Table:
        chosen = column or table.schema.names[int(pick * len(table.schema.names))]
        return replaced(table, chosen, CELLS[kind](len(table)))

    return f"{name}: {column or f'{pick:.4f}'} {kind}", lambda folder: edit_table(folder, name, change)


ROWS_OF: dict[str, Callable[[pa.Table], pa.Table]] = {
    "none": lambda table: table.slice(0, 0),
    "the first": lambda table: table.slice(0, 1),
    "twice": lambda table: pa.concat_tables([table, table]),
    "backwards": lambda table: table.take(list(range(len(table)))[::-1]),
    "without the last": lambda table: table.slice(0, len(table) - 1),
    "a million": lambda table: pa.concat_tables([table.slice(0, 1)] * 1000).take([0] * 10**6),
    "no columns": lambda table: table.select([]),
    "renamed": lambda table: table.rename_columns([f"{name}.x" for name in table.schema.names]),
    "one column": lambda table: table.select(table.schema.names[:1]),
}


def _rows(name: str, kind: str) -> Mutation:
    if kind == "a million" and name == DATA:  # without its pictures, which would take a GB to write

        def change(table: pa.Table) -> pa.Table:
            empty = pa.array([{"bytes": b"", "path": ""}]).take(pa.array([0] * 10**6))
            return replaced(ROWS_OF[kind](table.drop_columns([TOP])).append_column(TOP, empty), TOP, empty)
    else:
        change = ROWS_OF[kind]
    return f"{name}: rows {kind}", lambda folder: edit_table(folder, name, change)


# Pictures and videos


def png(height: int, width: int, rows: int | None = None, depth: int = 8) -> bytes:
    """A black PNG that tells of one size and holds so many rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    row, packer = b"\0" * min(10**6, 1 + 3 * width * depth // 8), zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(height if rows is None else rows)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def with_chunks(picture: bytes, kind: bytes, data: bytes, count: int) -> bytes:
    """A PNG with so many more chunks of a kind behind its header."""
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return picture[:33] + chunk * count + picture[33:]


def scans(height: int, width: int, count: int) -> bytes:
    """A progressive JPEG whose last scan is there so many times more."""
    import cv2

    picture = np.zeros((height, width, 3), np.uint8)
    data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


def _jpeg(height: int, width: int) -> bytes:
    import cv2

    return cv2.imencode(".jpg", np.zeros((height, width, 3), np.uint8))[1].tobytes()


def _patched(data: bytes, height: int, width: int) -> bytes:
    """A JPEG whose header tells another size."""
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


PICTURES: dict[str, Callable[[], bytes]] = {
    "16,000 x 16,000 PNG": lambda: png(16_000, 16_000),
    "PNG that tells of 2**31": lambda: png(2**31 - 1, 2**31 - 1, rows=1),
    "PNG that tells of 65,000 rows": lambda: png(65_000, 65_000, rows=2),
    "PNG of 16 bit": lambda: png(24, 32, depth=16),
    "PNG of two rows": lambda: png(24, 32, rows=2),
    "PNG of no rows": lambda: png(0, 0),
    "PNG turned": lambda: png(32, 24),
    "PNG header alone": lambda: png(24, 32)[:33],
    "PNG of texts that grow": lambda: with_chunks(
        png(24, 32), b"zTXt", b"k\0\0" + zlib.compress(b"a" * 7_900_000, 9), 60
    ),
    "PNG of a profile that grows": lambda: with_chunks(
        png(24, 32), b"iCCP", b"k\0\0" + zlib.compress(b"a" * 10**8, 9), 1
    ),
    "PNG of 40,000 chunks": lambda: with_chunks(png(24, 32), b"tEXt", b"k\0x", 40_000),
    "JPEG": lambda: _jpeg(24, 32),
    "JPEG of 3,000 scans": lambda: scans(24, 32, 3000),
    "JPEG of 50,000 segments": lambda: b"\xff\xd8" + b"\xff\xe1\x00\x02" * 50_000 + _jpeg(24, 32)[2:],
    "JPEG of 5000 px": lambda: _jpeg(5000, 5000),
    "JPEG that tells of 65,000": lambda: _patched(_jpeg(24, 32), 65_000, 65_000),
    "JPEG without a frame": lambda: b"\xff\xd8" + b"\xff\xe0\x00\x02" * 2000,
    "JPEG of fill bytes": lambda: b"\xff\xd8" + b"\xff" * 100_000,
    "BMP of 30,000 px": lambda: (
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0)
    ),
    "TIFF": lambda: b"II*\0" + b"\0" * 64,
    "GIF": lambda: b"GIF89a" + b"\xff" * 64,
    "EXR": lambda: b"\x76\x2f\x31\x01" + b"\0" * 64,
    "SVG": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "nothing": lambda: b"",
    "a MB of zeros": lambda: bytes(10**6),
}


def _picture(kind: str, all_rows: bool) -> Mutation:
    def change(table: pa.Table) -> pa.Table:
        rows, made = table.column(TOP).to_pylist(), PICTURES[kind]()
        rows = [{**row, "bytes": made} if all_rows or i == 3 else row for i, row in enumerate(rows)]
        return replaced(table, TOP, pa.array(rows))

    name = f"picture: {kind}, {'all rows' if all_rows else 'one row'}"
    return name, lambda folder: edit_table(folder, DATA, change)


def video(path: Path, height: int, width: int, frames: int, codec: str = "mpeg4") -> None:
    """Writes a black video."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=15)
        stream.height, stream.width, stream.pix_fmt = height, width, "rgb24" if codec == "png" else "yuv420p"
        for _ in range(frames):
            frame = av.VideoFrame(width, height, stream.pix_fmt)
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _text(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


VIDEOS: dict[str, Callable[[Path], object]] = {
    "12,000 px": lambda path: video(path, 12_000, 12_000, 1, "png"),
    "4,000 px": lambda path: video(path, 4_000, 4_000, 2),
    "one frame": lambda path: video(path, 24, 32, 1),
    "no frames": lambda path: video(path, 24, 32, 0),
    "of another size": lambda path: video(path, 48, 64, 20),
    "a playlist": _text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n"),
    "a list of files": _text("ffconcat version 1.0\nfile /etc/hostname\n"),
    "SDP": _text("v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n"),
    "a picture": lambda path: path.write_bytes(png(24, 32)),
    "atoms that end nowhere": lambda path: path.write_bytes(b"\0\0\0\x08ftyp" + b"\xff" * 4096),
}


# Files


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's name may not be long
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(8 << 30)


FILES: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a socket": _socket,
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to a FIFO": lambda path: (os.mkfifo(path.with_name("pipe")), path.symlink_to("pipe")),
    "a folder": Path.mkdir,
    "a link outside": lambda path: path.symlink_to("/etc/hostname"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "8 GB of holes": _sparse,
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(random.Random(0).randbytes(4096)),
    "gone": lambda path: None,
}


def _file(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def mutate(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        make(path)

    return mutate


def _bytes(rng: random.Random) -> Mutation:
    """Some bytes of a file changed, or its end cut off."""
    name, kind, pick = (
        rng.choice((DATA, EPISODES, TASKS, VIDEO, *TEXTS)),
        rng.choice(("flip", "cut", "fill")),
        rng.random(),
    )
    value = rng.randrange(256)

    def mutate(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        at = int(pick * len(data))
        if kind == "flip":
            data[at] ^= value or 1
        elif kind == "cut":
            del data[at:]
        else:
            data[at : at + 64] = bytes([value]) * len(data[at : at + 64])
        (folder / name).write_bytes(bytes(data))

    return f"{name}: {kind} at {pick:.4f}, {value}", mutate


# All of them


def fixed_mutations() -> Iterator[Mutation]:
    """Those that are always tried: each has been a fault, or is next to one."""
    for name in (DATA, EPISODES, TASKS, VIDEO, *TEXTS, f"videos/{WRIST}/chunk-000/zz.mp4", "data/chunk-000/zz.parquet"):
        yield from ((f"{name} is {kind}", _file(name, make)) for kind, make in FILES.items())
    yield from (_picture(kind, all_rows) for kind in PICTURES for all_rows in (True, False))
    yield from ((f"video: {kind}", _file(VIDEO, make)) for kind, make in VIDEOS.items())
    for kind in CELLS:
        for column in ("action", "observation.state", "task_index", "episode_index", "timestamp", "next.success", TOP):
            yield _cells(DATA, column, kind, 0.0)
        yield from (_cells(TASKS, column, kind, 0.0) for column in ("task_index", "task"))
    yield from (_rows(name, kind) for name in (DATA, EPISODES, TASKS) for kind in ROWS_OF)
    known = (None, [], 1, "x", [[]], [[[0] * 7]], [[[0] * 7, [-1] * 7]], [[[3e38] * 7, [3e38] * 7]], [[[0] * 7] * 2])
    for scale in (*known, {"0": 1}, [[[1e300] * 7, [1] * 7]], [[[0, "x"], [1, 1]]], [[[0] * 6, [1] * 6]]):
        note = {"actions": "robot", "action_scale": scale}
        yield f"a note of scale {str(scale)[:30]}", lambda folder, note=note: edit(folder, TEXTS[2], lambda _: note)
    yield (
        "two tasks of one number",
        lambda folder: edit_table(folder, TASKS, lambda t: replaced(t, "task_index", [0, 0])),
    )


def mutations(seed: int = 0, count: int = 300) -> Iterator[Mutation]:
    """So many ways to spoil what `write_intact` made, drawn by the seed: half of the fixed ones, the others at random.

    Yields:
        a name, and what changes a copy in place.
    """
    rng = random.Random(seed)
    known = list(fixed_mutations())
    rng.shuffle(known)
    yield from known[: (count + 1) // 2]
    for number in range(count - min(len(known), (count + 1) // 2)):
        own = random.Random(f"{seed} {number}")
        kind = own.choice(("document", "document", "bytes", "cells"))
        if kind == "cells":
            yield _cells(own.choice((DATA, DATA, EPISODES, TASKS)), None, own.choice(list(CELLS)), own.random())
        else:
            yield _document(own) if kind == "document" else _bytes(own)


def trials(intact: Path, workplace: Path, count: int = 300, seed: int = 0) -> Iterator[Outcome]:
    """Spoils copies of an intact dataset and reads each in a child of this process (Linux).

    Args:
        intact: what `write_intact` recorded.
        workplace: where copies are made and removed.
        count, seed: of `mutations`.
    """
    shutil.copytree(intact, workplace / "first")
    use(workplace / "first")  # everything is imported now
    for number, (name, mutate) in enumerate(mutations(seed, count)):
        home = workplace / f"hostile-{number}"
        copy = Path(shutil.copytree(intact, home / "dataset"))
        mutate(copy)
        yield hostile._trial(name, copy, workplace, use)
        shutil.rmtree(home)
