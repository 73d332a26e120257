"""Datasets and frame caches on disk: what goes in comes out, and every kind of damage has its error."""

from __future__ import annotations

import errno
import gc
import json
import logging
import resource
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from recorded_episodes import NAMES, episode

from emu_embodied.data import frame_cache
from emu_embodied.data.frame_cache import (
    FrameCache,
    build_frame_cache,
    frames_for,
    load_frame_cache,
    save_frame_cache,
)
from emu_embodied.data.lerobot_files import SIDECAR
from emu_embodied.data.lerobot_format import merge_datasets, write_dataset, write_notes
from emu_embodied.errors import CheckpointError, DatasetError
from emu_embodied.rollouts.collection.shards import Shard, write_shard
from emu_embodied.types import ACTION, OBS_ENVIRONMENT_STATE, OBS_IMAGE, OBS_STATE, REWARD, SUCCESS


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """Two parts of three and two episodes, joined; the second part knows its texts in the other order."""
    folder = tmp_path_factory.mktemp("datasets")
    write_dataset(folder / "a", (episode(seed) for seed in (0, 1, 2)), NAMES, 4)
    write_dataset(folder / "b", (episode(seed, 7) for seed in (3, 4)), NAMES, 4)
    merge_datasets([folder / "a", folder / "b"], folder / "joined")
    write_notes(folder / "joined" / SIDECAR, {})  # one of our own: its actions are as they are to be
    return folder / "joined"


@pytest.fixture
def dataset(original, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(original, tmp_path / "dataset"))


def data_file(root: Path) -> Path:
    return next((root / "data").glob("*/*.parquet"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x55
    path.write_bytes(bytes(data))


def same(one: FrameCache, other: FrameCache) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(FrameCache)]
    return all(np.array_equal(a, b) and a.dtype == b.dtype if isinstance(a, np.ndarray) else a == b for a, b in pairs)


def small_cache() -> FrameCache:
    rng = np.random.default_rng(0)
    return FrameCache(
        rng.integers(0, 256, (9, 8, 8, 3), np.uint8),
        *(rng.normal(size=(9, size)).astype(np.float32) for size in (2, 3)),
        rng.uniform(-1, 1, (9, 2)).astype(np.float32),
        rng.normal(size=9).astype(np.float32),
        rng.random(9) < 0.5,
        np.array([0, 2, 5, 9]),
        ("one", "zwei", "drei ✓"),
        {"agent_pos": ["x", "y"], "state": ["a", "b", "c"], "action": ["dx", "dy"]},
        4,
    )


# Datasets


def test_a_dataset_holds_its_episodes(original):
    cache, starts = build_frame_cache(original), [0, 6, 12, 18, 26, 34]
    assert cache.episode_starts.tolist() == starts and cache.episodes == 5 and len(cache) == 34 and cache.fps == 4
    assert cache.names == {"agent_pos": ["x", "y"], "state": ["a.x", "a.y", "a.yaw"], "action": ["dx", "dy"]}
    for i in range(5):
        made, part = episode(i, 5 if i < 3 else 7), cache.select(range(i, i + 1))
        assert part.instructions == (made.instruction,)
        for name in ("pixels", "agent_pos", "states"):
            assert np.array_equal(getattr(part, name), getattr(made, name))
        for name in ("actions", "rewards", "successes"):
            assert np.array_equal(getattr(part, name)[:-1], getattr(made, name))
        assert not part.actions[-1].any() and part.rewards[-1] == 0 and part.successes[-1] == made.successes[-1]


def test_lerobot_reads_the_joined_dataset(original, tmp_path, monkeypatch):
    import datasets
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    dataset = LeRobotDataset("joined", root=original)
    assert (dataset.num_episodes, len(dataset), dataset.fps) == (5, 34, 4)
    made, row = episode(3, 7), dataset[18 + 2]
    assert np.allclose(row[OBS_IMAGE].permute(1, 2, 0).numpy() * 255, made.pixels[2])
    assert np.array_equal(row[ACTION].numpy(), made.actions[2]) and row["task"] == made.instruction
    assert row[REWARD].item() == made.rewards[2] and row[SUCCESS].item() == made.successes[2]
    assert (row["index"].item(), row["episode_index"].item(), row["frame_index"].item()) == (20, 3, 2)
    assert [dataset.meta.episodes[i]["dataset_from_index"] for i in range(5)] == [0, 6, 12, 18, 26]
    assert dataset.meta.stats[ACTION]["max"].max() <= 1


def test_joining_keeps_to_the_size_of_files(original, tmp_path, monkeypatch):
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    monkeypatch.setattr(LeRobotDatasetMetadata, "data_files_size_in_mb", property(lambda self: 0))
    merge_datasets([original, original], tmp_path / "twice")
    write_notes(tmp_path / "twice" / SIDECAR, {})
    assert len(list((tmp_path / "twice" / "data").glob("*/*.parquet"))) == 2
    cache = build_frame_cache(tmp_path / "twice")
    halves = [cache.select(range(5)), cache.select(range(5, 10))]
    assert same(halves[0], halves[1]) and same(halves[0], build_frame_cache(original))


def test_only_alike_datasets_are_joined(original, tmp_path):
    write_dataset(tmp_path / "c", [episode(0)], {**NAMES, ACTION: ("up", "down")}, 4)
    with pytest.raises(DatasetError, match="other features"):
        merge_datasets([original, tmp_path / "c"], tmp_path / "joined")
    assert not (tmp_path / "joined").exists()
    with pytest.raises(DatasetError, match="does not exist yet"):
        merge_datasets([original], original)


def test_writing_refuses_what_it_cannot_describe(tmp_path):
    with pytest.raises(DatasetError, match="2 numbers"):
        write_dataset(tmp_path / "a", [episode(0)], {**NAMES, ACTION: ("dx",)}, 4)
    with pytest.raises(DatasetError, match="none"):
        write_dataset(tmp_path / "b", [], NAMES, 4)
    with pytest.raises(DatasetError, match="does not exist yet"):
        write_dataset(tmp_path, [episode(0)], NAMES, 4)


def test_a_missing_dataset(tmp_path):
    for root in (tmp_path / "nowhere", tmp_path, tmp_path / ("n" * 300)):
        with pytest.raises(DatasetError, match=str(root)):
            build_frame_cache(root)


@pytest.mark.parametrize("key", [OBS_IMAGE, ACTION])
def test_a_missing_column_is_named(dataset, key: str):
    path = dataset / "meta" / "info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({**info, "features": {k: v for k, v in info["features"].items() if k != key}}))
    with pytest.raises(DatasetError, match="action" if key == ACTION else key):
        build_frame_cache(dataset)


@pytest.mark.parametrize(("key", "label"), [(REWARD, 0), (SUCCESS, 1), (OBS_ENVIRONMENT_STATE, 2), (OBS_STATE, None)])
def test_labels_that_were_not_recorded_are_unknown(dataset, original, key: str, label: int | None):
    path = dataset / "meta" / "info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({**info, "features": {k: v for k, v in info["features"].items() if k != key}}))
    cache, whole = build_frame_cache(dataset), build_frame_cache(original)
    assert whole.known.all() and np.array_equal(cache.pixels, whole.pixels)
    assert cache.known.tolist() == [[i != label for i in range(3)]] * 5
    for name, wanted in ((REWARD, "rewards"), (SUCCESS, "successes")):
        assert np.array_equal(getattr(cache, wanted), getattr(whole, wanted) * (name != key))
    assert (cache.agent_pos.shape[1], cache.states.shape[1]) == (
        (0, 3) if label is None else (2, 0 if label == 2 else 3)
    )


def test_a_dataset_without_true_states_has_none(dataset):
    path = dataset / "meta" / "info.json"
    info = json.loads(path.read_text())
    del info["features"][OBS_ENVIRONMENT_STATE]
    path.write_text(json.dumps(info))
    cache = build_frame_cache(dataset)
    assert cache.states.shape == (34, 0) and cache.names["state"] == []


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_named(dataset, share: float):
    path = data_file(dataset)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DatasetError, match=path.name):
        build_frame_cache(dataset)


@pytest.mark.parametrize("share", np.linspace(0.05, 0.95, 10))
def test_a_flipped_bit_is_found(dataset, share: float, original):
    path = data_file(dataset)
    flip(path, int(share * path.stat().st_size))
    try:
        cache = build_frame_cache(dataset)
    except DatasetError as error:  # in the footer: nothing can be read
        assert path.name in str(error)
        return
    lost, whole = [fault.episode for fault in cache.dropped], build_frame_cache(original)
    assert all(path.name in str(fault) for fault in cache.dropped)
    kept = [whole.select(range(i, i + 1)) for i in range(5) if i not in lost]  # all, where nobody reads what was hit
    assert cache.episodes == len(kept)
    for i, wanted in enumerate(kept):
        assert same(replace(cache, dropped=()).select(range(i, i + 1)), wanted)


def test_missing_files_are_counted(dataset):
    path = dataset / "meta" / "info.json"
    path.write_text(path.read_text().replace('"total_frames": 34', '"total_frames": 40'))
    with pytest.raises(DatasetError, match="34 of 40 frames"):
        build_frame_cache(dataset)
    data_file(dataset).unlink()
    with pytest.raises(DatasetError, match="no parquet files"):
        build_frame_cache(dataset)


def test_missing_and_damaged_tasks(dataset):
    path = dataset / "meta" / "tasks.parquet"
    table = parquet.read_table(path)
    parquet.write_table(table.slice(0, 1), path)
    with pytest.raises(DatasetError, match="no text for task 1"):
        build_frame_cache(dataset)
    path.write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match="tasks.parquet"):
        build_frame_cache(dataset)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # LeRobot's statistics of them
@pytest.mark.parametrize(
    ("key", "name", "value"),
    [
        (ACTION, "actions", np.nan),
        (OBS_STATE, "agent_pos", np.inf),
        (OBS_ENVIRONMENT_STATE, "states", np.nan),
        (REWARD, "rewards", -np.inf),
    ],
)
def test_numbers_that_are_none_name_episode_and_key(tmp_path, key: str, name: str, value: float):
    values = getattr(episode(1), name).copy()
    values[3, ...] = value
    write_dataset(tmp_path / "d", [episode(0), episode(1, **{name: values}), episode(2)], NAMES, 4)
    cache = build_frame_cache(tmp_path / "d")
    assert [str(fault) for fault in cache.dropped] == [f"episode 1, {key}: not finite, NaN or infinite at frame 3"]
    assert np.array_equal(cache.pixels, np.concatenate([episode(0).pixels, episode(2).pixels]))
    write_dataset(tmp_path / "e", [episode(1, **{name: values})], NAMES, 4)
    with pytest.raises(DatasetError, match=f"episode 0, {key}: not finite"):
        build_frame_cache(tmp_path / "e")


# Caches


def test_a_cache_comes_back_as_it_was(tmp_path):
    save_frame_cache(tmp_path / "cache", small_cache())
    assert same(load_frame_cache(tmp_path / "cache"), small_cache())


def test_a_selection_is_a_cache_of_its_own(tmp_path):
    part = small_cache().select(range(1, 3))
    assert part.episode_starts.tolist() == [0, 3, 7] and part.instructions == ("zwei", "drei ✓") and len(part) == 7
    assert np.array_equal(part.pixels, small_cache().pixels[2:9])
    save_frame_cache(tmp_path / "part", part)
    assert same(load_frame_cache(tmp_path / "part"), part)
    for episodes in (range(0), range(2, 5), range(0, 3, 2), range(-1, 2), range(2, 0, -1)):
        with pytest.raises(DatasetError, match="episodes"):
            small_cache().select(episodes)


@pytest.mark.parametrize("name", ["frames.safetensors", "cache.json", "manifest.json"])
def test_a_damaged_cache_is_refused(tmp_path, name: str):
    save_frame_cache(tmp_path / "cache", small_cache())
    path = tmp_path / "cache" / name
    whole = path.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", whole.replace(b"a", b"b"), None):
        path.unlink() if damage is None else path.write_bytes(damage)
        with pytest.raises(DatasetError, match=name):
            load_frame_cache(tmp_path / "cache")


def test_a_cache_of_another_format_is_refused(tmp_path):
    from emu_embodied.storage.files import save_folder

    save_folder(tmp_path / "other", {}, {"cache": {"format": "something"}})
    with pytest.raises(DatasetError, match="something"):
        load_frame_cache(tmp_path / "other")


@pytest.mark.parametrize(
    "changes",
    [
        {"actions": np.full((9, 2), 1e30, np.float32)},
        {"actions": np.zeros((8, 2), np.float32)},
        {"rewards": np.zeros((9, 1), np.float32)},
        {"successes": np.zeros(9, np.float32)},
        {"pixels": np.zeros((9, 8, 8), np.uint8)},
        {"episode_starts": np.array([0, 5, 2, 9])},
        {"episode_starts": np.array([0, 2, 5, 8])},
        {"sources": np.array([0, 1, 0])},
        {"known": np.ones((2, 3), bool)},
        {"action_scale": np.ones((1, 2, 3), np.float32)},
        {"instructions": (None, "a", "b")},
        {"instructions": ("a", "b")},
        {"names": {"agent_pos": [], "state": [1], "action": []}},
        {"names": []},
        {"fps": 0},
        {"fps": "4"},
        {"shares": (0.5, 0.5)},
    ],
)
def test_a_cache_that_cannot_be_is_refused(tmp_path, changes: dict):
    save_frame_cache(tmp_path / "cache", replace(small_cache(), **changes))
    with pytest.raises(DatasetError, match="cache: .*it is no cache that this release wrote"):
        load_frame_cache(tmp_path / "cache")


@pytest.mark.parametrize("blocked", ["beside", "cache"])
def test_where_the_datasets_place_cannot_be_written(dataset, tmp_path, monkeypatch, caplog, blocked: str):
    wanted, spare = build_frame_cache(dataset), tmp_path / "out"
    if blocked == "cache":  # what was asked for is not where something else is
        (tmp_path / "file").write_text("")
        with pytest.raises(DatasetError, match="cache: .*file"):
            frames_for(dataset, cache=tmp_path / "file" / "frames")
        return
    (tmp_path / "dataset.frames").write_text("")  # the place is taken, as a read-only one refuses even the superuser
    assert same(frames_for(dataset), wanted) and "they are not kept" in caplog.text
    assert same(frames_for(dataset, spare=spare), wanted) and f"they are kept in {spare}" in caplog.text
    (kept,) = spare.iterdir()
    monkeypatch.setattr(frame_cache, "build_frame_cache", lambda *job: pytest.fail("built again"))
    assert same(frames_for(dataset, spare=spare), wanted) and kept.name.endswith(".frames")
    assert (tmp_path / "dataset.frames").read_text() == "" and not list(tmp_path.glob(".*"))


def test_frames_are_kept_where_it_is_asked_for(dataset, tmp_path, monkeypatch):
    first = frames_for(dataset, cache=tmp_path / "kept")
    other = Path(shutil.copytree(dataset, tmp_path / "elsewhere" / "dataset"))
    frames_for(other, cache=tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 2 and not list(tmp_path.glob("dataset.frames*"))
    monkeypatch.setattr(frame_cache, "build_frame_cache", lambda *job: pytest.fail("built again"))
    assert same(frames_for(dataset, cache=tmp_path / "kept"), first)


def test_numbers_that_are_none_are_not_saved(tmp_path):
    with pytest.raises(CheckpointError):
        save_frame_cache(tmp_path / "cache", replace(small_cache(), rewards=np.full(9, np.nan, np.float32)))
    assert not (tmp_path / "cache").exists()


def test_frames_are_built_once_and_again_when_the_dataset_changes(dataset, monkeypatch, caplog):
    first = frames_for(dataset)
    built = []
    monkeypatch.setattr(frame_cache, "build_frame_cache", lambda *job: built.append(job) or build_frame_cache(*job))
    assert same(frames_for(dataset), first) and same(frames_for(str(dataset)), first) and not built
    flip(dataset.with_name("dataset.frames") / "frames.safetensors", -5)
    with caplog.at_level(logging.WARNING):
        assert same(frames_for(dataset), first)
    assert len(built) == 1 and "frames.safetensors" in caplog.text
    write_dataset(dataset.with_name("new"), [episode(8)], NAMES, 4)
    write_notes(dataset.with_name("new") / SIDECAR, {})
    shutil.rmtree(dataset)
    dataset.with_name("new").rename(dataset)
    assert frames_for(dataset).episodes == 1 and len(built) == 2
    assert frames_for(dataset).episodes == 1 and len(built) == 2


def test_a_copied_dataset_keeps_its_cache(dataset, tmp_path, monkeypatch):
    frames_for(dataset)
    shutil.copytree(dataset, tmp_path / "copy")
    shutil.copytree(dataset.with_name("dataset.frames"), tmp_path / "copy.frames")
    monkeypatch.setattr(frame_cache, "build_frame_cache", lambda *job: pytest.fail("built again"))
    frames_for(tmp_path / "copy")


def test_a_part_that_cannot_be_written_leaves_nothing_half_done(tmp_path):
    def broken():
        yield episode(0)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DatasetError, match="part-00000: not written: No space left on device; free space and call again"):
        write_shard(Shard(0, 0, 2), tmp_path, broken(), NAMES, 4, {})
    gc.collect()
    assert not any(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_half_done_either_when_lerobots_writers_are_collected(tmp_path):
    noisy = replace(episode(0), pixels=np.random.default_rng(0).integers(0, 256, episode(0).pixels.shape, dtype=np.uint8))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (1_000, 4_000, 12_000, 20_000):  # it fails in an image, in the table, in the notes of the episodes
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(DatasetError, match="part-00000: not written: .*; free space and call again"):
                write_shard(Shard(0, 0, 40), tmp_path, (noisy for _ in range(40)), NAMES, 4, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        gc.collect()
        assert not any(tmp_path.iterdir())
