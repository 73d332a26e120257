"""Datasets that anybody may have made: each is read, or refused by one typed error, in little time and memory."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import hostile_datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from foreign import TOP, WRIST
from hostile_datasets import (
    DATA,
    FILES,
    PICTURES,
    TASKS,
    VIDEO,
    VIDEOS,
    edit,
    edit_table,
    png,
    replaced,
    trials,
    with_chunks,
    write_intact,
)
from hub_cache import snapshot

from benchmarks.torture.processes import in_child
from emu_embodied.data.frame_cache import build_frame_cache, frames_for
from emu_embodied.data.images import load_picture, picture_size, read_picture
from emu_embodied.data.lerobot_files import read_tasks
from emu_embodied.data.quality import QualityConfig
from emu_embodied.data.reader import ReadOptions
from emu_embodied.errors import DatasetError, InputError

BOTH = ReadOptions(camera=(TOP, WRIST), image_size=16)
READ = ("JPEG", "PNG of 16 bit", "PNG of two rows")  # the other rows are black
SPECIAL = [kind for kind in FILES if kind not in ("empty", "garbage", "gone", "8 GB of holes")]


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    return write_intact(tmp_path_factory.mktemp("intact") / "dataset")


@pytest.fixture
def dataset(intact, tmp_path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "dataset"))


def spoil(root: Path, column: str, values: list, name: str = DATA) -> None:
    edit_table(root, name, lambda table: replaced(table, column, pa.array(values)))


@pytest.mark.parametrize("seed", [0, 1])
def test_spoilt_at_random_it_is_read_or_refused(intact, tmp_path, seed: int):
    outcomes = list(trials(intact, tmp_path, count=25, seed=seed))
    assert len(outcomes) == 25 and [outcome for outcome in outcomes if outcome.fault] == []
    assert 0 < sum(outcome.result == "loaded" for outcome in outcomes) < 25


@pytest.mark.parametrize("name", ["videos/x/zz.mp4", VIDEO, DATA, "data/chunk-000/zz.parquet", TASKS, "meta/info.json"])
def test_only_regular_files_are_opened(dataset, name: str):
    for kind in SPECIAL:
        hostile_datasets._file(name, FILES[kind])(dataset)
        with pytest.raises(DatasetError, match=Path(name).name):
            frames_for(dataset, BOTH)
        path = dataset / name
        path.rmdir() if kind == "a folder" else path.unlink()
        path.with_name("pipe").unlink(missing_ok=True)


def test_a_pipe_for_a_video_costs_no_more_than_its_episodes(dataset):
    hostile_datasets._file(VIDEO, FILES["a FIFO"])(dataset)
    with pytest.raises(DatasetError, match=f"episode 0, {WRIST}: unreadable: .*mp4: leads to"):
        build_frame_cache(dataset, BOTH)
    assert build_frame_cache(dataset, ReadOptions(camera=("top",))).episodes == 2


def test_a_snapshot_of_the_hubs_cache_is_a_dataset(intact, tmp_path):
    root = snapshot(intact, tmp_path / "datasets--me--arm")
    assert np.array_equal(frames_for(root, BOTH).pixels, build_frame_cache(intact, BOTH).pixels)
    for name in (DATA, VIDEO, "meta/info.json"):
        (tmp_path / "elsewhere").write_bytes((root / name).read_bytes())
        link = (root / name).readlink()
        (root / name).unlink()
        (root / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(DatasetError, match="only regular files inside the folder are read|none of the 2 episodes"):
            build_frame_cache(root, BOTH)
        (root / name).unlink()
        (root / name).symlink_to(link)


@pytest.mark.parametrize("kind", [kind for kind in PICTURES if kind not in READ])
def test_a_hostile_picture_costs_its_episode(dataset, kind: str):
    hostile_datasets._picture(kind, all_rows=False)[1](dataset)
    (fault,) = build_frame_cache(dataset, BOTH).dropped
    assert (fault.episode, fault.key, fault.reason) == (0, TOP, "unreadable") and "row 3, picture" in fault.detail


def test_a_picture_is_measured_before_it_is_decoded(dataset):
    import cv2

    assert picture_size(png(16_000, 12_000, rows=1)) == (16_000, 12_000)
    for quality in (["-1"], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]):
        options = [] if quality == ["-1"] else quality
        made = cv2.imencode(".jpg", np.zeros((30, 50, 3), np.uint8), options)[1].tobytes()
        assert picture_size(made) == (30, 50)
        assert all(picture_size(made[:end]) in (None, (30, 50)) for end in range(len(made)))
    for channels, quality in ((3, 80), (3, 101), (4, 80), (4, 101)):  # lossy, lossless (VP8L), with transparency (VP8X)
        picture = np.full((30, 50, channels), 100, np.uint8)
        made = cv2.imencode(".webp", picture, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()
        assert picture_size(made) == (30, 50)
        assert all(picture_size(made[:end]) in (None, (30, 50)) for end in range(len(made)))


def test_a_picture_has_no_more_parts_than_pictures_have(tmp_path, capfd):
    import cv2

    shown = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8), (0, 0), 3)
    for ending, options in ((".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]), (".jpg", []), (".png", []), (".webp", [])):
        made = cv2.imencode(ending, shown, options)[1].tobytes()
        (tmp_path / "good").write_bytes(made)
        decoded = cv2.imdecode(np.frombuffer(made, np.uint8), cv2.IMREAD_COLOR)
        assert np.array_equal(load_picture(tmp_path / "good"), decoded[..., ::-1])
    texts = with_chunks(png(24, 32), b"tEXt", b"Author\0Somebody", 100)
    (tmp_path / "good").write_bytes(texts)
    assert load_picture(tmp_path / "good").shape == (24, 32, 3)
    for kind in ("JPEG of 3,000 scans", "JPEG of 50,000 segments", "PNG of texts that grow", "PNG of 40,000 chunks"):
        (tmp_path / "bad").write_bytes(PICTURES[kind]())
        with pytest.raises(InputError, match="^image: .*bad; "):
            read_picture(tmp_path / "bad", 64)
    assert capfd.readouterr() == ("", "")


def test_who_decodes_pictures_writes_no_lines_of_its_own(tmp_path, capfd):
    import cv2

    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 64, 3), np.uint8)
    for ending in (".png", ".jpg", ".webp"):
        whole = bytearray(cv2.imencode(ending, noise)[1].tobytes())
        for trial in range(40):
            spoilt = bytearray(whole)
            if trial % 2:
                del spoilt[rng.integers(20, len(spoilt)) :]
            else:
                spoilt[rng.integers(20, len(spoilt))] ^= int(rng.integers(1, 256))
            (tmp_path / "x").write_bytes(spoilt)
            with suppress(InputError):
                load_picture(tmp_path / "x")
    assert capfd.readouterr() == ("", "")


def test_a_photo_is_shown_the_way_up_that_it_says(tmp_path):
    from PIL import Image

    sides, exif = np.zeros((20, 30, 3), np.uint8), Image.Exif()
    sides[:, :15] = 250
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    Image.fromarray(sides).save(tmp_path / "x.jpg", exif=exif, quality=100)
    found = load_picture(tmp_path / "x.jpg")
    assert found.shape == (30, 20, 3) and found[:13].min() > 200 and found[17:].max() < 50


def test_a_picture_that_a_user_names_is_a_regular_file_of_bounded_size(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "bomb.png").write_bytes(png(16_000, 12_000, rows=1))
    (tmp_path / "sparse.png").touch()
    os.truncate(tmp_path / "sparse.png", 2**40)
    for path in ("/dev/zero", *(tmp_path / name for name in ("pipe", "link", "bomb.png", "sparse.png", "", "none"))):
        with pytest.raises(InputError, match="^image: "):
            read_picture(path, 64)


@pytest.mark.parametrize("kind", VIDEOS)
def test_a_hostile_video_costs_its_episodes(dataset, kind: str):
    hostile_datasets._file(VIDEO, VIDEOS[kind])(dataset)
    if kind == "of another size":  # not much larger: letterboxed
        assert build_frame_cache(dataset, BOTH).episodes == 2
        return
    with pytest.raises(DatasetError, match=f"episode 0, {WRIST}: unreadable"):
        build_frame_cache(dataset, BOTH)


@pytest.mark.parametrize("value", [1e30, float("nan"), float("inf"), 1.5, -1.01])
def test_our_own_note_switches_no_check_off(dataset, value: float):
    def change(table: pa.Table) -> pa.Table:
        actions = table.column("action").to_pylist()
        actions[9][2] = value
        return replaced(table, "action", pa.array(actions, pa.list_(pa.float32(), 7)))

    edit_table(dataset, DATA, change)
    cache = build_frame_cache(dataset, BOTH)
    assert [(fault.episode, fault.key) for fault in cache.dropped] == [(1, "action")] and cache.episodes == 1
    assert "at frame 1" in cache.dropped[0].detail


def test_the_actions_of_others_may_be_large(dataset):
    (dataset / "meta" / "emu_embodied.json").unlink()
    for large, told in ((1e30, ""), (1e38, "action: out of range: beyond 1e\\+37")):
        rows = [[large * (i % 3 - 1)] * 7 for i in range(16)]
        edit_table(dataset, DATA, lambda t, rows=rows: replaced(t, "action", pa.array(rows, pa.list_(pa.float32(), 7))))
        (dataset / "meta" / "stats.json").unlink(missing_ok=True)
        if told:
            with pytest.raises(DatasetError, match=told):
                build_frame_cache(dataset, BOTH)
        else:
            lax = replace(BOTH, quality=QualityConfig(clipped=1, duplicates=False))
            cache = build_frame_cache(dataset, lax)
            assert set(np.unique(cache.actions)) == {-1, 0, 1} and np.allclose(cache.action_scale[0, 1], 1e30)


@pytest.mark.parametrize(
    ("column", "values", "named"),
    [
        ("task", [None, "x"], "task 0: None"),
        ("task", [["a"], ["b"]], "expected texts"),
        ("task", [1, 2], "expected texts"),
        ("task", ["x" * 20_000, "y"], "task 0"),
        ("task_index", [0, 0], "task_index: a number twice"),
        ("task_index", [0.0, 1.0], "double in task_index"),
        ("task_index", [None, 1], "empty cells in task_index"),
        ("task_index", [-5, 0], "task -5"),
    ],
)
def test_tasks_are_texts_of_different_numbers(dataset, column: str, values: list, named: str):
    spoil(dataset, column, values, TASKS)
    with pytest.raises(DatasetError, match=named):
        build_frame_cache(dataset, BOTH)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("total_frames", value) for value in (0, True, "16", 16.0, 10**12, None)),
        *(("total_episodes", value) for value in (0, 17, [2])),
        *(("fps", value) for value in (0, "15", True, 1e9, -15)),
        *(("codebase_version", value) for value in (None, 3.0, "v4.0", "v2.0")),
        *(
            ("features", value)
            for value in (None, [], {}, {"action": 1}, {"action": {"dtype": "float32", "shape": [7]}})
        ),
    ],
)
def test_a_description_out_of_range_is_named(dataset, key: str, value):
    edit(dataset, "meta/info.json", lambda info: info.update({key: value}))
    with pytest.raises(DatasetError, match="info.json: features|camera: none" if key == "features" else f"json: {key}"):
        build_frame_cache(dataset, BOTH)


@pytest.mark.parametrize(
    ("column", "key", "value"),
    [
        ("action", "dtype", "string"),
        ("action", "dtype", 7),
        ("action", "shape", [0]),
        ("action", "shape", [10**9]),
        ("action", "shape", "7"),
        ("action", "names", 5),
        ("next.reward", "shape", [3]),
        (TOP, "shape", [16_000, 16_000, 3]),
    ],
)
def test_a_column_that_cannot_be_is_named(dataset, column: str, key: str, value):
    edit(dataset, "meta/info.json", lambda info: info["features"][column].update({key: value}))
    with pytest.raises(DatasetError, match=f"info.json: features.{column}.{key}"):
        build_frame_cache(dataset, BOTH)


def test_a_table_larger_than_described_is_not_read(dataset, monkeypatch):
    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", lambda *job, **options: pytest.fail("read"))
    hostile_datasets._rows(DATA, "a million")[1](dataset)
    with pytest.raises(DatasetError, match="more rows: 1000000; info.json tells of 16"):
        build_frame_cache(dataset, BOTH)


def test_episodes_that_are_only_told_of_are_not_listed_without_end(dataset):
    edit(dataset, "meta/info.json", lambda info: info.update(total_frames=10**9, total_episodes=10**9))
    with pytest.raises(DatasetError, match="2 of 1000000000 episodes found"):
        build_frame_cache(dataset, BOTH)


def test_statistics_that_are_none_are_not_used(dataset):
    (dataset / "meta" / "emu_embodied.json").unlink()
    told = build_frame_cache(dataset, BOTH).action_scale
    for value in ("x", [["a"]], [1e38] * 7, [None] * 7, {"a": 1}, [[1, 2], [3]], 10**400):
        edit(dataset, "meta/stats.json", lambda stats, value=value: stats["action"].update(min=value))
        assert np.allclose(build_frame_cache(dataset, BOTH).action_scale, told, atol=1e-6)
    (dataset / "meta" / "stats.json").write_text(json.dumps({"action": [1, 2]}))
    assert np.allclose(build_frame_cache(dataset, BOTH).action_scale, told, atol=1e-6)


def of_equal_rows(root: Path, rows: int, side: int) -> None:
    """Makes the dataset one of so many equal rows, whose pictures have such sides; its file stays as small as it was."""
    same = png(side, side)
    edit(root, "meta/info.json", lambda info: info["features"][TOP].update(shape=[side, side, 3]))
    edit(root, "meta/info.json", lambda info: info.update(total_frames=rows))

    def change(table: pa.Table) -> pa.Table:
        table = table.drop_columns([TOP]).slice(0, 1).take([0] * rows)
        return table.append_column(TOP, pa.array([{"bytes": same, "path": ""}]).take(pa.array([0] * rows)))

    edit_table(root, DATA, change, compression="zstd")


@pytest.mark.parametrize(("rows", "side"), [(300, 1000), (20_000_000, 0)])
def test_equal_rows_do_not_become_much_more_than_their_file(dataset, rows: int, side: int):
    if side:
        of_equal_rows(dataset, rows, side)
    else:  # numbers alone; only the footer is read
        empty = pa.array([{"bytes": b"", "path": ""}])
        edit(dataset, "meta/info.json", lambda info: info.update(total_frames=rows))
        edit_table(
            dataset,
            DATA,
            lambda t: pa.table({name: [0] for name in t.schema.names if name != TOP} | {TOP: empty}).take([0] * rows),
            compression="zstd",
        )
    with pytest.raises(DatasetError, match="GB in files of .* MB; more than 1000 times as much"):
        build_frame_cache(dataset, ReadOptions(camera=(TOP,), image_size=16))


def test_a_few_equal_rows_are_read(dataset):
    of_equal_rows(dataset, 100, 64)
    with pytest.raises(DatasetError, match="frame_index: incomplete"):  # one row a hundred times
        build_frame_cache(dataset, ReadOptions(camera=(TOP,), image_size=16))


def test_a_long_task_of_many_rows_is_in_memory_once(dataset):
    rows, text = 200_000, "x" * 9000  # 1.8 GB, if each row had its own
    tasks = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))
    parquet.write_table(pa.table({"task_index": range(rows), "task": tasks}), dataset / TASKS, store_schema=False)
    edit(dataset, "meta/info.json", lambda info: info.update(total_frames=rows))
    ending = in_child(lambda: len(read_tasks(dataset, rows)), 60)
    assert (ending.kind, ending.value) == ("done", rows) and ending.grown < 300 << 20, str(ending)
    with pytest.raises(DatasetError, match="200000 rows"):
        read_tasks(dataset, rows - 1)


def test_what_a_link_beside_a_dataset_leads_to_is_not_replaced(dataset, tmp_path):
    from emu_embodied.storage.files import save_folder

    save_folder(tmp_path / "precious", {}, {"mine": {"a": 1}})
    frames_for(dataset, BOTH)
    (kept,) = tmp_path.glob("dataset.frames-*")
    shutil.rmtree(kept)
    for target in (tmp_path / "precious", tmp_path / "nowhere"):
        kept.symlink_to(target)
        assert frames_for(dataset, BOTH).episodes == 2
        kept.unlink()
    assert (tmp_path / "precious" / "mine.json").exists() and not (tmp_path / "nowhere").exists()
    assert frames_for(dataset, BOTH, spare=tmp_path / "spare").episodes == 2 and kept.is_dir()
