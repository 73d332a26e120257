"""Files whose sizes are lies or holes: memory holds what is read once, and what it has no room for is not read."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import cv2
import hostile
import numpy as np
import pytest
import torch
from known_quality import held_out

from benchmarks.torture.processes import in_child
from emu_embodied.commands import main
from emu_embodied.data.frame_cache import load_frame_cache, save_frame_cache
from emu_embodied.errors import CheckpointError, DatasetError
from emu_embodied.rollouts.viewer import episode_record
from emu_embodied.rollouts.viewer.html_report import read_run
from emu_embodied.rollouts.viewer.page_builder import SHEET_PIXELS, film
from emu_embodied.storage import regular
from emu_embodied.storage.files import Folder, load_folder, save_folder

BYTES = 192 << 20


def of_holes(folder: Path, name: str, tensors: dict[str, tuple[str, list[int], int]]) -> None:
    """Gives a folder's tensor file such tensors (dtype, shape, bytes) of zeros, which take no space on the disk."""
    header, last = {}, 0
    for key, (dtype, shape, size) in tensors.items():
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [last, last := last + size]}
    data = json.dumps(header).encode()
    with (folder / name).open("wb") as file:
        file.write(struct.pack("<Q", len(data)) + data)
        file.truncate(size := 8 + len(data) + last)
    if size < 2 * BYTES:
        return hostile.seal(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name]["bytes"] = size  # nobody comes to compare the sum
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_tensors_are_in_memory_once(tmp_path):
    save_folder(tmp_path / "x", {"frames": {"a": torch.zeros(1)}}, {})
    of_holes(tmp_path / "x", "frames.safetensors", {"a": ("U8", [BYTES], BYTES)})
    ending = in_child(lambda: int(load_folder(tmp_path / "x")[0]["frames"]["a"].numel()), 60)
    assert (ending.kind, ending.value) == ("done", BYTES), str(ending)
    assert ending.grown < 1.3 * BYTES, str(ending)


def test_tensors_are_what_was_saved_whatever_their_kind(tmp_path):
    kinds = [
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.complex64,
        torch.uint64,
        torch.bool,
    ]
    tensors = {str(kind): torch.arange(6).reshape(2, 3).to(kind) for kind in kinds}
    tensors |= {"none": torch.zeros(0, 3), "one": torch.tensor(2)}
    save_folder(tmp_path / "x", {"all": tensors}, {})
    found = load_folder(tmp_path / "x")[0]["all"]
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(found[name].to(torch.complex128), tensor.to(torch.complex128))
        found[name].zero_()  # each has memory of its own, which can be written


@pytest.mark.parametrize("name", ["token_model", "frames"])
def test_what_the_memory_has_no_room_for_is_not_read(tmp_path, monkeypatch, name):
    save_folder(tmp_path / "x", {name: {"a": torch.zeros(1)}}, {})
    of_holes(tmp_path / "x", f"{name}.safetensors", {"a": ("F32", [BYTES // 4], BYTES)})
    monkeypatch.setattr(regular, "_free_memory", lambda: 1.9 * BYTES)
    with pytest.raises(CheckpointError, match="more than half of the memory that is free"):
        Folder(tmp_path / "x").tensors(name)
    monkeypatch.setattr(regular, "_free_memory", lambda: 2.1 * BYTES)
    assert Folder(tmp_path / "x").tensors(name)["a"].shape == (BYTES // 4,)


def test_shards_are_counted_together(tmp_path, monkeypatch):
    shards = {f"{i}": torch.zeros(1) for i in range(3)}
    save_folder(tmp_path / "x", {"frames": shards}, {}, max_shard_bytes=4)
    for i, name in enumerate(sorted(path.name for path in (tmp_path / "x").glob("*.safetensors"))):
        of_holes(tmp_path / "x", name, {f"{i}": ("U8", [BYTES], BYTES)})
    monkeypatch.setattr(regular, "_free_memory", lambda: 5 * BYTES)  # for each of them, and not for all
    with pytest.raises(CheckpointError, match="0.6 GB; more than half"):
        load_folder(tmp_path / "x")


def test_free_memory_is_known_where_linux_tells_it():
    assert regular._free_memory() > 1e6


def test_a_cache_is_refused_by_what_it_says_it_holds(tmp_path, monkeypatch):
    save_frame_cache(tmp_path / "cache", held_out())
    told = Folder(tmp_path / "cache").described("frames")
    kinds = {torch.uint8: "U8", torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}
    entries = {name: (kinds[e.dtype], list(e.shape), e.end - e.begin) for name, e in told.items()}
    of_holes(
        tmp_path / "cache", "frames.safetensors", entries | {"pixels": ("U8", [84, 2**13, 2**13, 3], 84 * 3 << 26)}
    )
    monkeypatch.setattr(Folder, "tensors", lambda *job, **options: pytest.fail("read"))
    with pytest.raises(DatasetError, match="pixels: frames of 8192 x 8192"):
        load_frame_cache(tmp_path / "cache")
    of_holes(
        tmp_path / "cache", "frames.safetensors", entries | {"pixels": ("U8", [10**6, 64, 64, 3], 10**6 * 3 << 12)}
    )
    with pytest.raises(DatasetError, match="agent_pos: .*84, 2.*, not .*1000000, 2"):
        load_frame_cache(tmp_path / "cache")


def write_run(folder: Path, shape: list[int]) -> Path:
    """A planned run whose one recorded episode has frames of holes."""
    rate = {"wilson_95": [0.1, 1.0], "successes": 1, "n": 1, "rate": 1.0}
    facts = {"seed": 7, "end_cm": None, "success": True, "instruction": "x", "plan_costs": []}
    steps, size = shape[0] - 1, int(np.prod(shape))
    document = {"facts": facts, "actions": [[0.0]] * steps, "distances": [None] * (steps + 1), "thoughts": None}
    save_folder(folder / "episode-7", {"frames": {"real": torch.zeros(1)}}, {"episode": document})
    (folder / "result.json").write_text(json.dumps({**rate, "episodes": [{"seed": 7}]}))
    of_holes(folder / "episode-7", "frames.safetensors", {key: ("U8", shape, size) for key in ("real", "imagined")})
    return folder


def test_a_run_shows_so_much_and_no_more(tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "run", [31, 2400, 2400, 3])
    monkeypatch.setattr(episode_record, "load_record", lambda path: pytest.fail("read"))
    with pytest.raises(DatasetError, match="recorded episodes: 1.1 GB; at most 0.5 GB are shown"):
        read_run(run)
    assert main(["report", str(run)]) == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_report_of_large_frames_takes_little_more_than_they_do(tmp_path):
    run, size = write_run(tmp_path / "run", [5, 1920, 1920, 3]), 10 * 1920 * 1920 * 3
    ending = in_child(lambda: main(["report", str(run)]), 60)
    assert (ending.kind, ending.value) == ("done", 0) and ending.grown < 4 * size, str(ending)


def test_large_frames_are_shown_smaller_and_small_ones_as_they_are():
    frames = np.random.default_rng(0).integers(0, 256, (7, 24, 32, 3), np.uint8)
    shown = film(frames)
    assert shown is not None and (shown["width"], shown["height"], shown["count"]) == (32, 24, 7)
    for shape in ((3, 3000, 2000, 3), (2, 400, 20_000, 3)):
        shown = film(np.zeros(shape, np.uint8))
        assert shown is not None
        sheet = cv2.imdecode(np.frombuffer(_bytes_of(shown["sheet"]), np.uint8), cv2.IMREAD_COLOR)
        assert sheet.size <= 3 * SHEET_PIXELS and shown["count"] == shape[0]
        assert shown["width"] / shown["height"] == pytest.approx(shape[2] / shape[1], rel=0.1)


def _bytes_of(uri: str) -> bytes:
    import base64

    return base64.b64decode(uri.partition(",")[2])
