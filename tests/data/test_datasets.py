"""Datasets of others: what is read of them, what is left out and why, how they are mixed, and that they train a model."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from foreign import FPS, JOINTS, TOP, WRIST, picture, recorded_actions, write_foreign

from emu_embodied.commands import main
from emu_embodied.data.frame_cache import FrameCache, _as_json, build_frame_cache, frames_for, load_frame_cache
from emu_embodied.data.lerobot_files import SIDECAR
from emu_embodied.data.lerobot_info import CONVERTER, read_info
from emu_embodied.data.mixing import mix
from emu_embodied.data.quality import QualityConfig
from emu_embodied.data.reader import ReadOptions, settle
from emu_embodied.data.resampling import denormalise, is_sampled
from emu_embodied.errors import DatasetError
from emu_embodied.training.datasets import WindowSampler
from emu_embodied.training.objectives import TokenizerObjective


@pytest.fixture(scope="module")
def arms(tmp_path_factory) -> dict[str, Path]:
    """The same three episodes as pictures and as videos, of two cameras."""
    folder = tmp_path_factory.mktemp("arms")
    return {kind: write_foreign(folder / kind, kind, cameras=(TOP, WRIST)) for kind in ("image", "video")}


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return write_foreign(tmp_path_factory.mktemp("videos") / "arm", "video", one_file_each=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_foreign(tmp_path_factory.mktemp("images") / "arm", "image", one_file_each=True)


def copied(root: Path, to: Path) -> Path:
    return Path(shutil.copytree(root, to / "copy"))


def change_info(root: Path, **changes) -> None:
    path = root / "meta" / "info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# Reading


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_dataset_of_others_is_read(arms, kind: str):
    cache = build_frame_cache(arms[kind], ReadOptions(camera=("top",)))
    assert (
        cache.pixels.shape == (36, 24, 32, 3) and cache.episode_starts.tolist() == [0, 12, 24, 36] and cache.fps == FPS
    )
    assert cache.instructions == ("pick up block 0", "pick up block 1", "pick up block 0") and not cache.dropped
    assert not cache.known.any() and cache.names == {"agent_pos": [], "state": [], "action": list(JOINTS)}
    recorded = np.stack([recorded_actions(seed, 12) for seed in range(3)])
    centre, half = cache.action_scale[0]
    assert np.allclose(centre + half, recorded.max((0, 1))) and np.allclose(centre - half, recorded.min((0, 1)))
    actions = cache.actions.reshape(3, 12, 7)
    assert np.abs(actions).max() <= 1 and not actions[:, -1].any()
    assert np.allclose(denormalise(actions[:, :-1], cache.action_scale[0]), recorded[:, :-1], atol=1e-3)
    shown = np.stack([picture(e, t, TOP) for e in range(3) for t in range(12)])
    assert np.abs(cache.pixels.astype(int) - shown).max() <= (0 if kind == "image" else 6)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_cameras_are_letterboxed_and_tiled(arms, kind: str):
    one = build_frame_cache(arms[kind], ReadOptions(camera=(WRIST,), image_size=16)).pixels
    assert one.shape == (36, 16, 16, 3) and not one[:, [0, 1, 14, 15]].any()  # 4:3 in the middle
    assert np.abs(one[5, 2:14].astype(int) - picture(0, 5, WRIST)[0, 0]).max() <= 6
    both = build_frame_cache(arms[kind], ReadOptions(camera=("wrist", "top"), image_size=32)).pixels
    assert both[5, 16, :16].min() > 190 and both[5, 16, 16:].max() < 60 and not both[:, 0].any()


def test_a_camera_must_be_told_where_there_are_several(arms):
    for wanted in ((), ("left",), ("top", "left")):
        with pytest.raises(DatasetError, match=rf"camera.*{TOP}.*{WRIST}"):
            build_frame_cache(arms["image"], ReadOptions(camera=wanted, image_size=16))
    with pytest.raises(DatasetError, match="image_size"):
        build_frame_cache(arms["image"], ReadOptions(camera=("top", "wrist")))


def test_actions_are_chosen_by_name(arms):
    cache = build_frame_cache(arms["image"], ReadOptions(camera=("top",), action_keys=("gripper.pos", "pan.pos")))
    whole = build_frame_cache(arms["image"], ReadOptions(camera=("top",)))
    assert cache.names["action"] == ["gripper.pos", "pan.pos"]
    assert np.array_equal(cache.actions, whole.actions[:, [6, 0]])
    with pytest.raises(DatasetError, match=r"action_keys: wrist; choose among \['pan.pos'"):
        build_frame_cache(arms["image"], ReadOptions(camera=("top",), action_keys=("wrist",)))


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize(("fps", "kept"), [(5, [0, 3, 6, 9]), (6, [0, 3, 5, 8, 10]), (7.5, [0, 2, 4, 6, 8, 10])])
def test_another_rate_keeps_the_nearest_frames(arms, kind: str, fps: float, kept: list[int]):
    options = ReadOptions(camera=("top",), fps=fps)
    cache = build_frame_cache(arms[kind], options)
    assert cache.fps == fps and np.diff(cache.episode_starts).tolist() == [len(kept)] * 3
    part, recorded = cache.select(range(1, 2)), recorded_actions(1, 12)
    shown = np.stack([picture(1, t, TOP) for t in kept]).astype(int)
    assert np.abs(part.pixels - shown).max() <= (0 if kind == "image" else 6)
    lasts = recorded[[t - 1 for t in kept[1:]]]
    assert np.allclose(denormalise(part.actions[:-1], cache.action_scale[0]), lasts, atol=1e-3)
    mean = build_frame_cache(arms[kind], replace(options, skipped_actions="mean")).select(range(1, 2))
    means = [recorded[a:b].mean(0) for a, b in zip(kept, kept[1:], strict=False)]
    assert np.allclose(denormalise(mean.actions[:-1], cache.action_scale[0]), means, atol=1e-3)


def describe(root: Path, key: str, **changes) -> None:
    """Changes how info.json describes a column."""
    path = root / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["features"][key] |= changes
    path.write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("names", "shape", "found"),
    [
        (list("xyxyz") + ["x", "w"], [7], ["x#1", "y#1", "x#2", "y#2", "z", "x#3", "w"]),
        ([list("abcdefg")], [7], list("abcdefg")),
        ({"motors": list("abcdefg")}, [7], list("abcdefg")),
        ({"left": list("abc"), "right": list("defg")}, [7], list("abcdefg")),
        ({name: 6 - i for i, name in enumerate("gfedcba")}, [7], list("abcdefg")),
        ({"a": 0, "b": 2}, [7], list("0123456")),
        (["arm", "axis"], [1, 7], list("0123456")),
        (["a"], [7], list("0123456")),
        (None, [7], list("0123456")),
        (["x", "x#1", "x", "a", "b", "c", "d"], [7], list("0123456")),
    ],
)
def test_each_element_has_a_name_of_its_own(images, tmp_path, names, shape, found):
    root, whole = copied(images, tmp_path), build_frame_cache(images)
    describe(root, "action", names=names, shape=shape)
    cache = build_frame_cache(root)
    assert cache.names["action"] == found and np.array_equal(cache.actions, whole.actions)
    chosen = build_frame_cache(root, ReadOptions(action_keys=(found[2], found[0])))
    assert np.array_equal(chosen.actions, whole.actions[:, [2, 0]])


def test_a_name_of_several_elements_is_not_guessed(images, tmp_path, capsys):
    root = copied(images, tmp_path)
    describe(root, "action", names=["x", "y", "x", "y", "a", "b", "c"])
    with pytest.raises(DatasetError, match="action_keys: x; 2 elements are called so: write x#1 or x#2"):
        build_frame_cache(root, ReadOptions(action_keys=("x",)))
    for wanted in ("x", ("y", "y"), (1,)):
        with pytest.raises(DatasetError, match="different texts"):
            ReadOptions(action_keys=wanted)


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("names", [["channels", "height", "width"], ["channel", "height", "width"], None])
def test_a_camera_may_be_described_channels_first(arms, tmp_path, kind: str, names):
    root, options = copied(arms[kind], tmp_path), ReadOptions(camera=("top",))
    describe(root, TOP, shape=[3, 24, 32], names=names)
    assert np.array_equal(build_frame_cache(root, options).pixels, build_frame_cache(arms[kind], options).pixels)


def test_cameras_in_their_natural_order_are_tiled_like_others(arms):
    natural = build_frame_cache(arms["image"], ReadOptions(camera=("top", "wrist"), image_size=32)).pixels
    other = build_frame_cache(arms["image"], ReadOptions(camera=("wrist", "top"), image_size=32)).pixels
    assert np.array_equal(natural[:, :, :16], other[:, :, 16:]) and np.array_equal(natural[:, :, 16:], other[:, :, :16])
    options = ReadOptions(camera=("top", "wrist"), image_size=32)
    info = read_info(arms["image"])
    assert settle(arms["image"], info, settle(arms["image"], info, options)) == settle(arms["image"], info, options)


def test_a_camera_is_called_by_its_name_before_its_end(arms, tmp_path):
    root = copied(arms["image"], tmp_path)
    info = json.loads((root / "meta" / "info.json").read_text())
    inner = "observation.images.wrist.top"
    info["features"] = {inner if key == WRIST else key: value for key, value in info["features"].items()}
    (root / "meta" / "info.json").write_text(json.dumps(info))
    path = next((root / "data").rglob("*.parquet"))
    table = parquet.read_table(path)
    parquet.write_table(table.rename_columns([inner if name == WRIST else name for name in table.schema.names]), path)
    for name, seen in (("top", TOP), ("wrist.top", WRIST), (inner, WRIST)):
        shown = build_frame_cache(root, ReadOptions(camera=(name,))).pixels[0]
        assert np.array_equal(shown, picture(0, 0, seen))
    with pytest.raises(DatasetError, match="meant twice"):
        build_frame_cache(root, ReadOptions(camera=("top", TOP), image_size=16))


def test_only_colour_cameras_count(arms, tmp_path):
    for changes in ({"shape": [24, 32, 1]}, {"info": {"is_depth_map": True}}):
        root = Path(shutil.copytree(arms["image"], tmp_path / next(iter(changes))))
        describe(root, WRIST, **changes)
        assert np.array_equal(build_frame_cache(root).pixels[0], picture(0, 0, TOP))
        describe(root, TOP, **changes)
        with pytest.raises(DatasetError, match=r"camera: .*top \[24, 32.*colour pictures"):
            build_frame_cache(root)


@pytest.mark.parametrize("fps", [None, 5])
def test_a_task_that_changes_within_an_episode_cuts_it(arms, tmp_path, fps):
    root, options = copied(arms["image"], tmp_path), ReadOptions(camera=("top",), fps=fps)
    tasks = np.array([0] * 6 + [1] * 6 + [1] * 11 + [0] + [0] * 3 + [1] * 3 + [0] * 6)
    path = next((root / "data").rglob("*.parquet"))
    table = parquet.read_table(path)
    at = table.schema.get_field_index("task_index")
    parquet.write_table(table.set_column(at, "task_index", [tasks]), path)
    cache, whole = build_frame_cache(root, options), build_frame_cache(arms["image"], options)
    texts = ("pick up block 0", "pick up block 1")
    assert cache.instructions == tuple(texts[i] for i in (0, 1, 1, 0, 1, 0))
    lengths = np.diff(cache.episode_starts).tolist()
    assert lengths == ([7, 6, 12, 4, 4, 6] if fps is None else [3, 2, 4, 2, 2, 2])
    firsts = cache.episode_starts[:-1]
    per = 12 if fps is None else 4
    begins = np.array([0, 6, 12, 24, 27, 30] if fps is None else [0, 2, 4, 8, 9, 10])
    for first, begin, length in zip(firsts, begins, lengths, strict=True):
        assert np.array_equal(cache.pixels[first : first + length], whole.pixels[begin : begin + length])
        assert np.array_equal(cache.actions[first : first + length - 1], whole.actions[begin : begin + length - 1])
        assert not cache.actions[first + length - 1].any() and (begin + length - 1) // per == begin // per


def test_videos_show_what_lerobots_own_decoder_shows(videos):
    from lerobot.datasets.video_utils import decode_video_frames

    from emu_embodied.data.images import decode_video

    path = sorted((videos / "videos" / TOP).rglob("*.mp4"))[1]
    moments, shape = np.array([0, 1, 2, 3.2, 5, 9, 11]) / FPS, (24, 32, 3)
    found = np.zeros((7, *shape), np.uint8)
    assert decode_video(path, moments, 0.25 / FPS, found, shape) == ""
    theirs = decode_video_frames(path, moments.tolist(), 0.25 / FPS, backend="pyav", return_uint8=True)
    assert np.array_equal(found, theirs.permute(0, 2, 3, 1).numpy())
    for moment, fault in (
        (3.5 / FPS, "no frame within"),
        (12 / FPS, "ends before"),
        (-1, "no seconds"),
        (np.nan, "no seconds"),
    ):
        assert fault in decode_video(path, np.array([moment]), 0.25 / FPS, found[:1], shape)


def test_a_rate_above_the_datasets_is_refused(arms):
    with pytest.raises(DatasetError, match="fps: 30; the dataset has 15"):
        build_frame_cache(arms["image"], ReadOptions(camera=("top",), fps=30))
    with pytest.raises(DatasetError, match="fps"):
        ReadOptions(fps=0)


def test_rewards_of_skipped_steps_add_up_and_any_success_counts(tmp_path):
    from recorded_episodes import NAMES, episode

    from emu_embodied.data.lerobot_format import write_dataset

    made = episode(1, 6)
    write_dataset(tmp_path / "d", [made], NAMES, 4)
    cache = build_frame_cache(tmp_path / "d", ReadOptions(fps=2))
    assert np.array_equal(cache.pixels, made.pixels[::2]) and np.array_equal(cache.states, made.states[::2])
    assert np.allclose(cache.rewards, [*made.rewards.reshape(3, 2).sum(1), 0])
    assert cache.successes.tolist() == [*made.successes.reshape(3, 2).any(1), made.successes[-1]]


@pytest.mark.parametrize("ratio", [1, 1.5, 2, 2.5, 10 / 3, 7])
def test_kept_frames_are_as_far_apart_as_the_rates_say(ratio: float):
    kept = np.flatnonzero(is_sampled(np.arange(1000), ratio))
    assert kept[0] == 0 and np.abs(kept - np.arange(len(kept)) * ratio).max() <= 0.5
    assert len(kept) == pytest.approx(1000 / ratio, abs=1)


def test_statistics_may_be_missing_and_ranges_be_quantiles(arms, tmp_path):
    root, options = copied(arms["image"], tmp_path), ReadOptions(camera=("top",))
    statistics = json.loads((root / "meta" / "stats.json").read_text())["action"]
    quantiles = build_frame_cache(root, replace(options, action_range="quantiles"))
    assert np.allclose(quantiles.action_scale[0].sum(0), statistics["q99"])
    (root / "meta" / "stats.json").unlink()
    assert np.allclose(build_frame_cache(root, options).action_scale[0].sum(0), statistics["max"])
    (root / SIDECAR).write_text("{}")  # one of our own has them in [-1, 1]
    with pytest.raises(DatasetError, match="episode 0, action: out of range: beyond 1 at frame 0"):
        build_frame_cache(root, options)


def test_readings_of_other_options_have_caches_of_their_own(arms, tmp_path, monkeypatch):
    root, options = copied(arms["image"], tmp_path), ReadOptions(camera=("top",))
    first = frames_for(root, options)
    frames_for(root, replace(options, image_size=16))
    assert len(list(tmp_path.glob("copy.frames*"))) == 2
    monkeypatch.setattr("emu_embodied.data.frame_cache.build_frame_cache", lambda *job: pytest.fail("built again"))
    assert np.array_equal(frames_for(root, ReadOptions(camera=(TOP,))).actions, first.actions)
    path = root / "meta" / "stats.json"
    path.write_text(path.read_text().replace('"max"', '"most"'))
    with pytest.raises(pytest.fail.Exception):
        frames_for(root, options)


def test_a_name_of_the_hub_without_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match="someone/arm-nowhere.*no such folder, and the hub did not give it"):
        frames_for("someone/arm-nowhere")
    write_foreign(tmp_path / "someone" / "arm", lengths=(3,))
    assert frames_for("someone/arm").episodes == 1  # a folder wins


# What is left out


def spoil(seed: int, frames: dict, actions: np.ndarray) -> None:
    """One fault an episode, from the second on."""
    if seed == 1:
        frames[TOP][:] = [frames[TOP][0]] * len(frames[TOP])
    if seed == 2:
        actions[:, :-1] = np.where(actions[:, :-1] > 0, 1000, -1000)
    if seed == 4:
        actions[:], frames[TOP][:] = recorded_actions(0, 12), [picture(0, t, TOP) for t in range(12)]
    if seed == 5:
        actions[7, 3] = np.nan


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("spoilt") / "arm"
    return write_foreign(root, lengths=(12, 12, 12, 1, 12, 12, 12), change=spoil)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_bad_episodes_are_left_out_and_reported(spoilt, tmp_path):
    root = copied(spoilt, tmp_path)
    cache = frames_for(root)
    found = {fault.episode: (fault.key, fault.reason) for fault in cache.dropped}
    assert found == {
        1: (TOP, "frozen"),
        2: ("action", "clipped"),
        3: ("frame_index", "too short"),
        4: ("action", "duplicate"),
        5: ("action", "not finite"),
    }
    assert cache.episodes == 2 and np.array_equal(cache.pixels[12], picture(6, 0, TOP))
    assert np.isfinite(cache.actions).all() and "episode 0" in cache.dropped[3].detail
    report = json.loads((root.with_name("copy.frames") / "report.json").read_text())
    assert report["kept"] == 2 and [row["episode"] for row in report["dropped"]] == [1, 2, 3, 4, 5]
    assert load_frame_cache(root.with_name("copy.frames")).dropped == cache.dropped


def test_filters_can_be_told_what_to_keep(spoilt):
    lax = QualityConfig(frozen=1, clipped=1, duplicates=False)
    assert [fault.episode for fault in build_frame_cache(spoilt, ReadOptions(quality=lax)).dropped] == [3, 5]
    with pytest.raises(DatasetError, match="episode 0, frame_index: too short.*none of the 7 episodes"):
        build_frame_cache(spoilt, ReadOptions(quality=QualityConfig(min_frames=20)))


@pytest.mark.parametrize("damage", ["truncated", "emptied", "removed"])
def test_a_damaged_video_costs_its_episodes_only(videos, tmp_path, damage: str):
    root = copied(videos, tmp_path)
    paths = sorted((root / "videos" / TOP).rglob("*.mp4"))
    assert len(paths) == 3
    data = paths[1].read_bytes()
    paths[1].unlink() if damage == "removed" else paths[1].write_bytes(
        data[: len(data) // 2] if damage == "truncated" else b""
    )
    cache = build_frame_cache(root)
    assert [(fault.episode, fault.key, fault.reason) for fault in cache.dropped] == [(1, TOP, "unreadable")]
    assert "file-001.mp4" in cache.dropped[0].detail and np.diff(cache.episode_starts).tolist() == [12, 12]
    assert np.abs(cache.pixels[12].astype(int) - picture(2, 0, TOP)).max() <= 6
    for path in (root / "videos").rglob("*.mp4"):
        path.write_bytes(b"")
    with pytest.raises(DatasetError, match=f"episode 0, {TOP}: unreadable"):
        build_frame_cache(root)


@pytest.mark.parametrize("damage", ["truncated", "emptied", "removed"])
def test_a_damaged_data_file_costs_its_episodes_only(images, tmp_path, damage: str):
    root = copied(images, tmp_path)
    path = sorted((root / "data").rglob("*.parquet"))[1]
    data = path.read_bytes()
    path.unlink() if damage == "removed" else path.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"")
    cache = build_frame_cache(root)
    assert [(fault.episode, fault.reason) for fault in cache.dropped] == [(1, "unreadable")]
    assert ("file-001.parquet" in cache.dropped[0].key) == (damage != "removed")
    assert np.array_equal(cache.pixels[12], picture(2, 0, TOP)) and cache.episodes == 2


def test_a_damaged_picture_costs_its_episode_only(arms, tmp_path):
    root = copied(arms["image"], tmp_path)
    path = next((root / "data").rglob("*.parquet"))
    table = parquet.read_table(path)
    rows = table.column(WRIST).to_pylist()
    rows[14] = {**rows[14], "bytes": b"no picture"}
    at = table.schema.get_field_index(WRIST)
    parquet.write_table(table.set_column(at, table.schema.field(WRIST), [rows]), path)
    cache = build_frame_cache(root, ReadOptions(camera=("wrist",)))
    assert [(fault.episode, fault.key) for fault in cache.dropped] == [(1, WRIST)] and cache.episodes == 2
    assert build_frame_cache(root, ReadOptions(camera=("top",))).episodes == 3


def test_an_episode_with_lost_rows_is_left_out(arms, tmp_path):
    root = copied(arms["image"], tmp_path)
    path = next((root / "data").rglob("*.parquet"))
    table = parquet.read_table(path)
    keep = [i for i in range(36) if i != 17]
    parquet.write_table(table.take(keep), path)
    cache = build_frame_cache(root, ReadOptions(camera=("top",)))
    assert [(fault.episode, fault.reason) for fault in cache.dropped] == [(1, "incomplete")]


@pytest.mark.parametrize(
    "change",
    [
        {"total_frames": 10**15},
        {"total_frames": -1},
        {"total_episodes": "3"},
        {"fps": 0},
        {"features": {"action": {"dtype": "float32", "shape": [7]}, "../../x": {"dtype": "video", "shape": [2, 2, 3]}}},
        {"features": {"action": {"dtype": "float32"}}},
        {"features": []},
    ],
)
def test_a_hostile_description_is_refused(images, tmp_path, change: dict):
    root = copied(images, tmp_path)
    change_info(root, **change)
    with pytest.raises(DatasetError, match=str(root)):
        build_frame_cache(root)


def test_a_column_of_another_name_is_suggested(images, tmp_path):
    root = copied(images, tmp_path)
    info = read_info(root)
    info["features"] = {"actions" if key == "action" else key: value for key, value in info["features"].items()}
    change_info(root, features=info["features"])
    with pytest.raises(
        DatasetError, match="no column `action`; did you mean actions[?] there are .*top, actions, timestamp"
    ):
        build_frame_cache(root)


@pytest.mark.parametrize(("version", "told"), [("v2.1", "--root=.*copy --push-to-hub=false"), ("v2.0", "to v2.1 with")])
def test_a_dataset_of_an_older_format_names_the_converter(images, tmp_path, version: str, told: str):
    import importlib.util

    root = copied(images, tmp_path)
    change_info(root, codebase_version=version)
    (root / "meta" / "tasks.parquet").unlink()
    with pytest.raises(DatasetError, match=f"codebase_version: {version}; v3 is read: .*{told}") as caught:
        frames_for(root)
    assert CONVERTER in caught.value.remedy and importlib.util.find_spec(CONVERTER.removeprefix("python -m "))


def test_actions_of_another_size_than_described_are_named(images, tmp_path):
    root = copied(images, tmp_path)
    path = sorted((root / "data").rglob("*.parquet"))[2]
    table = parquet.read_table(path)
    rows = [row[:5] for row in table.column("action").to_pylist()]
    parquet.write_table(table.set_column(table.schema.get_field_index("action"), "action", [rows]), path)
    (fault,) = build_frame_cache(root).dropped
    assert fault.episode == 2 and "file-002.parquet: action" in fault.key and "5 numbers" in fault.detail


# Mixing


def small(seed: int, episodes: int, length: int = 6, states: bool = False, **changes) -> FrameCache:
    rng, frames = np.random.default_rng(seed), episodes * length
    made = FrameCache(
        np.full((frames, 8, 8, 3), seed, np.uint8),
        np.zeros((frames, 2), np.float32),
        rng.normal(size=(frames, 3 if states else 0)).astype(np.float32),
        rng.uniform(-1, 1, (frames, 2)).astype(np.float32),
        np.ones(frames, np.float32),
        np.ones(frames, bool),
        np.arange(episodes + 1) * length,
        tuple(f"{seed}-{i}" for i in range(episodes)),
        {"agent_pos": ["x", "y"], "state": ["a.x", "a.y", "a.present"] if states else [], "action": ["dx", "dy"]},
        4,
    )
    return replace(made, **changes)


def test_a_mixture_is_drawn_by_its_shares():
    labelled, plain = small(1, 20, states=True), small(2, 10, known=np.zeros((10, 3), bool))
    cache = mix({"one": labelled, "two": plain}, [1, 3])
    assert cache.shares == (0.25, 0.75) and cache.episodes == 30 and cache.action_scale.shape == (2, 2, 2)
    tail = cache.select(range(24, 30))  # what is held out has some of each
    assert sorted(np.bincount(tail.sources)) == [2, 4]
    codes, text = torch.from_numpy(cache.pixels[:, 0, 0, :1].astype(np.int64)), torch.zeros(30, 4, dtype=torch.int64)
    sampler = WindowSampler(cache, codes, text, ("a",), seed=0, moved=0.0)
    batches = [sampler.batch(step, 64, 3) for step in range(30)]
    source = torch.cat([batch.codes_BFN[:, 0, 0] for batch in batches])
    assert (source == 2).float().mean() == pytest.approx(0.75, abs=0.03)
    known = torch.cat([batch.known_BF3[:, -1] for batch in batches])
    assert known[source == 1].all() and not known[source == 2].any()
    objective, frames = TokenizerObjective(cache, 8, 0), np.repeat(cache.sources, 6)
    for weights in (objective.shares, objective.busy / objective.busy[-1]):
        assert np.bincount(frames, np.diff(weights, prepend=0)) == pytest.approx((0.25, 0.75))


def test_one_dataset_is_no_mixture_and_stays_as_it_is():
    cache = small(1, 3)
    assert mix({"one": cache}) is cache and mix({"one": cache}, [2.0]) is cache
    assert mix({"one": cache, "two": small(2, 6)}).shares == pytest.approx((1 / 3, 2 / 3))


@pytest.mark.parametrize(
    ("other", "weights", "named"),
    [
        (small(2, 2, pixels=np.zeros((12, 8, 9, 3), np.uint8)), None, "two: frames of"),
        (small(2, 2, actions=np.zeros((12, 3), np.float32)), None, "two: actions of size 3"),
        (small(2, 2, fps=5), None, "two: frames per second 5"),
        (small(2, 2), [1], "data_weights"),
        (small(2, 2), [1, 0], "data_weights"),
        (small(2, 2), [1, float("nan")], "data_weights"),
    ],
)
def test_what_does_not_fit_is_not_mixed(other: FrameCache, weights, named: str):
    with pytest.raises(DatasetError, match=named):
        mix({"one": small(1, 3), "two": other}, weights)


def test_a_dataset_that_is_all_held_out_is_named():
    cache = mix({"one": small(1, 12), "two": small(2, 1)}).select(range(6))
    with pytest.raises(DatasetError, match="dataset 1 has no episode to train on"):
        WindowSampler(cache, torch.zeros(36, 4), torch.zeros(6, 4), (), seed=0)


def test_windows_longer_than_an_episode_stay_inside_it():
    cache = small(1, 9, length=2)
    codes, text = torch.arange(18)[:, None].expand(-1, 4), torch.zeros(9, 4, dtype=torch.int64)
    for frames in (2, 3, 5):
        sampler = WindowSampler(cache, codes, text, (), seed=0)
        for step in range(10):
            batch = sampler.batch(step, 16, frames)
            shown, known = batch.codes_BFN[..., 0], batch.known_BF3[..., 0]
            assert (shown // 2 == shown[:, :1] // 2).all() and (shown.diff(dim=1) >= 0).all()
            assert torch.equal(known, shown.diff(dim=1).float())  # the one step that was recorded, wherever it lies
            assert not batch.actions_BFA[known == 0].any()


# Training


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_dataset_of_others_trains_a_model_that_dreams(arms, spoilt, tmp_path, monkeypatch, capsys):
    import gymnasium

    import emu_embodied
    import emu_embodied.envs  # noqa: F401  registers the dreams

    words = ["train", "preset=tiny", "threads=1", "recipe.held_out=1", "recipe.tokenizer_loop.steps=4"]
    words += ["recipe.trajectory_loop.steps=6", "recipe.text_size=262", f"out={tmp_path / 'run'}", "camera=top"]
    words += [f"data=[{arms['image']},{spoilt}]", "data_weights=[1,2]", "action_keys=[pan.pos,gripper.pos]", "fps=5"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "5 episodes left out: 1 clipped, 1 duplicate" in shown and "psnr_db_1" in shown
    monkeypatch.setitem(sys.modules, "lerobot", None)  # there are frame caches now
    assert main([*words[:-4], *words[-4:], f"out={tmp_path / 'again'}"]) == 0
    model = emu_embodied.load(tmp_path / "run" / "checkpoint")
    assert model.objects == () and list(model.world.action_names) == ["pan.pos", "gripper.pos"]
    assert np.shape(model.world.action_scale) == (2, 2, 2)
    options = ReadOptions(camera=("top",), action_keys=("pan.pos", "gripper.pos"), image_size=64, fps=5)
    starts = frames_for(arms["image"], options)
    env = gymnasium.make_vec("emu_embodied/Imagined-v0", num_envs=2, world_model=model, starts=starts)
    observation, info = env.reset(seed=0)
    assert observation["pixels"].shape == (2, 64, 64, 3) and observation["agent_pos"].shape == (2, 0)
    assert env.step(env.action_space.sample())[0]["pixels"].shape == (2, 64, 64, 3)
    assert main([*words, "camera=left"]) == 2 and "choose among" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "field"),
    [
        ("data_weights=3", "data_weights: 3"),
        ("data_weights=[a]", "data_weights"),
        ("data=7", "data: 7"),
        ("data=[]", "data: no dataset"),
        ("camera=[top,top]", "camera"),
        ("action_keys=[0,1]", "action_keys: 0; choose among"),
        ("action_keys=[pan.pos,pan.pos]", "action_keys"),
        ("cache=/proc/x", "cache"),
        ("fps=fast", "fps: fast"),
        ("skipped_actions=sum", "skipped_actions: sum"),
        ("action_range=mean", "action_range: mean"),
        ("data=someone/nothing", "the hub did not give it"),
    ],
)
def test_bad_words_are_refused(arms, word: str, field: str, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "preset=tiny", f"data={arms['image']}", "camera=top", word]) == 2
    assert field in capsys.readouterr().err and not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("recorded", [True, False])
def test_nothing_is_learnt_of_labels_that_were_not_recorded(recorded: bool):
    from tiny import tiny_world_model
    from tiny_training import frames

    from emu_embodied.training.objectives import TrajectoryConfig, TrajectoryObjective

    cache, world_model = frames(), tiny_world_model()
    names = [f"{name}.{part}" for name in world_model.objects for part in ("x", "y", "yaw", "present")]
    states = np.pad(cache.states, ((0, 0), (0, len(names) - cache.states.shape[1]))) * recorded
    known = np.full((cache.episodes, 3), recorded)
    cache = replace(cache, states=states, names={**cache.names, "state": names}, known=known)
    codes, text = world_model.tokenizer.encode(torch.from_numpy(cache.pixels)), torch.zeros(8, 16, dtype=torch.int64)
    sampler = WindowSampler(cache, codes, text, world_model.objects, seed=0)
    places, model = world_model.tokenizer.places(), world_model.model.requires_grad_(True).train()
    TrajectoryObjective(sampler, TrajectoryConfig(batch=4), 10, places)(model, 5)[0].backward()
    learnt = [p.grad is not None and bool(p.grad.any()) for p in model.heads.parameters()]
    assert all(learnt) if recorded else not any(learnt)
    assert model.transformer.lm_head.weight.grad.any()


def test_training_keeps_frames_where_they_can_be_kept(images, tmp_path, capsys):
    words = ["train", "preset=tiny", "threads=1", "recipe.held_out=1", "recipe.tokenizer_loop.steps=1"]
    words += ["recipe.trajectory_loop.steps=2", "recipe.text_size=262", f"out={tmp_path / 'run'}"]
    root = copied(images, tmp_path / "data")
    assert main([*words, f"data={root}", f"cache={tmp_path / 'kept'}"]) == 0
    assert len(list((tmp_path / "kept").iterdir())) == 1 and len(list((tmp_path / "data").iterdir())) == 1
    (cache,) = frames_of(root)
    (tmp_path / "data" / cache).write_text("")  # what a read-only folder does: nothing can be written there
    shutil.rmtree(tmp_path / "run")
    assert main([*words, f"data={root}"]) == 0
    assert len(list((tmp_path / "run" / "frames").iterdir())) == 1


def frames_of(root: Path) -> list[str]:
    """How a dataset's frames for 64 px are called."""
    options = settle(root, read_info(root), ReadOptions(image_size=64))
    return [f"{root.name}.frames-{hashlib.sha256(_as_json(options)).hexdigest()[:8]}"]
