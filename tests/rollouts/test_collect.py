"""Recording: killed, interrupted and continued collections end as the uninterrupted one to the byte; faults have errors."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import gymnasium
import numpy as np
import pytest

import emu_embodied.envs  # noqa: F401  registers the env
from emu_embodied.data.frame_cache import build_frame_cache
from emu_embodied.errors import ConfigError, DatasetError, InputError
from emu_embodied.rollouts.collection import collect as module
from emu_embodied.rollouts.collection.collect import collect, moving_steps, read_summary
from emu_embodied.rollouts.collection.episodes import collect_episode

ID, OPTIONS, EPISODES, STEPS, SEED = "emu_embodied/TabletopPush-v0", {"image_size": 16}, 14, 20, 40
PER_SHARD, PARTS = 2, 7
WORDS = ["collect", f"episodes={EPISODES}", f"steps={STEPS}", f"seed={SEED}", "env.options.image_size=16"]
# The command, with smaller parts; the env's other options are its defaults.
COMMAND = f"""
import sys
from emu_embodied.commands import main
from emu_embodied.rollouts.collection import collect
collect.EPISODES_PER_SHARD = {PER_SHARD}
sys.exit(main(sys.argv[1:]))
"""
DEFAULTS = {"cubes": (1, 3), "control_steps": 5, "stochastic": False, "shift": None, **OPTIONS}


def record(root: Path, **changes):
    arguments = dict(env_id=ID, env_options=DEFAULTS, episodes=EPISODES, steps=STEPS, root=root, seed=SEED)
    return collect(**{**arguments, "progress": False, **changes})


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "EPISODES_PER_SHARD", PER_SHARD)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The dataset as one undisturbed call makes it."""
    root = tmp_path_factory.mktemp("whole") / "dataset"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "EPISODES_PER_SHARD", PER_SHARD)
        summary = record(root, workers=1)
    assert summary.complete and summary.recorded == EPISODES
    return root


@pytest.fixture
def start():
    """Starts the command in a process group of its own, which does not outlive the test."""
    started = []

    def start_command(root: Path) -> subprocess.Popen:
        words = [sys.executable, "-c", COMMAND, *WORDS, f"out={root}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(words, **pipes, text=True, start_new_session=True))
        return started[-1]

    yield start_command
    for process in started:
        if not group_is_gone(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def finished_shards(root: Path) -> set[str]:
    return {path.name for path in root.with_name(root.name + ".parts").glob("part-?????")}


def wait_until(condition, seconds: float = 240.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


def group_is_gone(group: int) -> bool:
    """Whether no process of the group runs any more; those that ended and were not waited for do not count."""
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split() if entry.name.isdecimal() else None
        except OSError:
            continue
        if fields and int(fields[2]) == group and fields[0] != "Z":
            return False
    return True


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_killed_interrupted_and_continued_it_is_the_same_dataset(whole, start, tmp_path, capfd):
    root = tmp_path / "dataset"
    killed = start(root)
    wait_until(lambda: finished_shards(root))
    killed.kill()
    killed.communicate()
    wait_until(lambda: group_is_gone(killed.pid), 5)
    after_kill = finished_shards(root)
    assert 1 <= len(after_kill) < PARTS and not root.exists()

    interrupted = start(root)
    wait_until(lambda: len(finished_shards(root)) > len(after_kill))
    os.killpg(interrupted.pid, signal.SIGINT)  # as Ctrl-C does: to the workers, too
    out, err = interrupted.communicate(timeout=60)  # it joins what is there, and does not hang
    assert interrupted.returncode == 130
    assert err.splitlines() == ["emu-embodied: interrupted"]
    wait_until(lambda: group_is_gone(interrupted.pid), 5)
    after_interrupt = finished_shards(root)
    assert after_kill < after_interrupt and len(after_interrupt) < PARTS
    there = PER_SHARD * len(after_interrupt)
    assert f"{there} of {EPISODES} episodes are in {root}; call again to go on" in out
    partial = read_summary(root)
    assert not partial.complete and partial.episodes == build_frame_cache(root).episodes == there

    assert record(root, workers=1, progress=True).recorded == EPISODES - there
    shown = capfd.readouterr()
    assert f"collect: {EPISODES}/{EPISODES} episodes, " in shown.out and shown.err == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset"]  # no parts, no litter
    assert files_of(root) == files_of(whole)


def test_the_dataset_holds_the_episodes_of_its_seeds(whole):
    cache = build_frame_cache(whole)
    env = gymnasium.make(ID, image_size=16, terminate_on_success=False, max_episode_steps=-1)
    made = [collect_episode(env, SEED + i, STEPS) for i in range(EPISODES)]
    names = cache.names["state"]
    env.close()
    assert np.array_equal(cache.pixels, np.concatenate([episode.pixels for episode in made]))
    assert np.array_equal(cache.states, np.concatenate([episode.states for episode in made]))
    assert cache.instructions == tuple(episode.instruction for episode in made) and cache.fps == 4
    summary = read_summary(whole)
    moving = sum(moving_steps(episode.states, names) for episode in made)
    assert (summary.episodes, summary.frames) == (EPISODES, EPISODES * (STEPS + 1))
    assert summary.moving_steps == pytest.approx(moving / (EPISODES * STEPS))
    assert summary.success == pytest.approx(np.mean([episode.successes.any() for episode in made]))


def test_lerobot_loads_it(whole, tmp_path, monkeypatch):
    import datasets
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    dataset, cache = LeRobotDataset("dataset", root=whole), build_frame_cache(whole)
    assert (dataset.num_episodes, len(dataset), dataset.fps) == (EPISODES, len(cache), 4)
    row = dataset[3 * (STEPS + 1) + 2]
    assert row["episode_index"] == 3 and row["frame_index"] == 2 and row["task"] == cache.instructions[3]
    assert np.array_equal(row["action"].numpy(), cache.actions[3 * (STEPS + 1) + 2])
    notes = json.loads((whole / "meta" / "emu_embodied.json").read_text())
    assert notes["settings"]["seed"] == SEED and notes["settings"]["env_options"]["image_size"] == 16
    assert notes["versions"]["lerobot"] == "0.6.1"


def test_a_complete_dataset_is_left_alone(whole):
    before = files_of(whole)
    summary = record(whole)
    assert summary.complete and summary.recorded == 0 and summary.episodes == EPISODES
    assert files_of(whole) == before and sorted(path.name for path in whole.parent.iterdir()) == ["dataset"]


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("seed", {"seed": SEED + 1}),
        ("steps", {"steps": STEPS + 1}),
        ("episodes", {"episodes": EPISODES + 1}),
        ("env_id", {"env_id": "emu_embodied/Other-v0"}),
        ("env_options.image_size", {"env_options": {**DEFAULTS, "image_size": 32}}),
        ("env_options.shift", {"env_options": {**DEFAULTS, "shift": "camera"}}),
    ],
)
def test_other_settings_are_refused_by_name(whole, tmp_path, field: str, changes: dict):
    with pytest.raises(DatasetError, match="was begun with") as caught:
        record(whole, **changes)
    assert caught.value.field == field
    begun = tmp_path / "begun.parts"  # what a killed first call leaves
    begun.mkdir()
    settings = json.loads((whole / "meta" / "emu_embodied.json").read_text())["settings"]
    (begun / "config.json").write_text(json.dumps(settings))
    (begun / "part-00003").mkdir()
    with pytest.raises(DatasetError, match="was begun with") as caught:
        record(tmp_path / "begun", **changes)
    assert caught.value.field == field and (begun / "part-00003").is_dir()


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("episodes", {"episodes": 0}),
        ("episodes", {"episodes": 2.5}),
        ("steps", {"steps": -1}),
        ("seed", {"seed": -1}),
        ("workers", {"workers": 0}),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, field: str, changes: dict):
    with pytest.raises(DatasetError) as caught:
        record(tmp_path / "dataset", **changes)
    assert caught.value.field == field and not list(tmp_path.iterdir())


def test_what_lies_at_the_root_already_is_not_replaced(tmp_path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "thesis.txt").write_text("mine")
    with pytest.raises(DatasetError, match="something else is there"):
        record(tmp_path / "dataset")
    assert files_of(tmp_path) == {"dataset/thesis.txt": b"mine"}
    with pytest.raises(DatasetError, match="root"):
        record(tmp_path / "dataset" / "thesis.txt" / "below")


def test_two_collectors_do_not_share_a_root(tmp_path):
    (tmp_path / "dataset.parts").mkdir()
    with open(tmp_path / "dataset.parts" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DatasetError, match="another collector"):
            record(tmp_path / "dataset")


def test_a_dead_worker_is_named_by_its_seed_and_costs_only_its_part(tmp_path):
    done = tmp_path / "dataset.parts" / "part-00000"
    done.mkdir(parents=True)
    killed = []

    def kill_the_first_worker():
        wait_until(multiprocessing.active_children)
        killed.extend(multiprocessing.active_children())
        killed[0].kill()

    killer = Thread(target=kill_the_first_worker)
    killer.start()
    with pytest.raises(DatasetError, match="exit code -9; finished shards are kept") as caught:
        record(tmp_path / "dataset")
    killer.join()
    assert caught.value.field in {f"episode of seed {SEED + PER_SHARD * part}" for part in (1, 2)}
    assert done.is_dir() and not multiprocessing.active_children()


def test_what_is_wrong_with_the_env_shows_before_workers_start(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_record", None)
    with pytest.raises(InputError, match="image_size: 4; give"):
        record(tmp_path / "dataset", env_options={**DEFAULTS, "image_size": 4})
    for env_id, said in (
        ("zork", "`zork` doesn't exist"),
        ("nosuch:X-v0", "No module named 'nosuch'"),
        (":", "MODULE:ID"),
    ):
        with pytest.raises(ConfigError, match=f"env.id: {env_id}; .*{said}"):
            record(tmp_path / "dataset", env_id=env_id, env_options={})
    assert not list(tmp_path.iterdir())


def test_a_stuck_worker_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STALL_SECONDS", 0.1 - 2.0 * STEPS)  # no worker starts that quickly
    with pytest.raises(DatasetError, match="episode of seed 40: sent nothing for"):
        record(tmp_path / "dataset", workers=1)
