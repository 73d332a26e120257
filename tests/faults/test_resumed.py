"""Whatever goes on where it stopped compares what it was begun with: journals, recorded parts, kept frames."""

import json
import shutil

import numpy as np
import pytest
from tiny_training import frames

from emu_embodied.data.frame_cache import fingerprint, save_frame_cache
from emu_embodied.errors import ConfigError, DatasetError
from emu_embodied.rollouts.collection.shards import CONFIG, check_settings
from emu_embodied.rollouts.evaluation import journal as journals
from emu_embodied.rollouts.evaluation.journal import append, open_journal
from emu_embodied.rollouts.goals.subgoal_setup import Following

SETTINGS = {"agent": "model", "planner": {"horizon": 8, "elites": 6}, "model": None}


def test_a_journal_goes_on_with_its_settings_alone(tmp_path, monkeypatch):
    path = tmp_path / "episodes.jsonl"
    assert open_journal(path, SETTINGS) == {}
    append(path, {"seed": 3, "success": True})
    assert open_journal(path, SETTINGS) == {3: {"seed": 3, "success": True}}
    assert list(open_journal(path, {name: value for name, value in SETTINGS.items() if name != "model"})) == [3]
    with pytest.raises(ConfigError, match=r"agent, planner.horizon, more: .* begun with .*a new folder"):
        open_journal(path, {**SETTINGS, "agent": "oracle", "planner": {"horizon": 9, "elites": 6}, "more": 1})
    with pytest.raises(ConfigError, match=r"planner.elites: None"):
        open_journal(path, {**SETTINGS, "planner": {"horizon": 8}})
    monkeypatch.setattr(journals, "__version__", "9.9.9")
    with pytest.raises(ConfigError, match=r"version: 9\.9\.9"):
        open_journal(path, SETTINGS)


def test_a_journal_of_a_release_that_did_not_name_itself_goes_on(tmp_path):
    path = tmp_path / "episodes.jsonl"
    path.write_text(json.dumps({"settings": SETTINGS}) + "\n" + json.dumps({"seed": 3}) + "\n")
    assert list(open_journal(path, SETTINGS)) == [3]


def test_other_recordings_in_the_same_folder_are_other_settings(tmp_path):
    path, found = tmp_path / "cache", []
    for episodes in (8, 12, 8):
        shutil.rmtree(path, ignore_errors=True)
        save_frame_cache(path, frames(episodes))
        found.append(Following("retrieved", str(path)).recorded)
    assert found[0] == found[2] != found[1]
    assert Following("true").recorded is None


def test_parts_of_one_dataset_share_the_versions_of_what_records_them(tmp_path):
    root, folder, settings = (
        tmp_path / "data",
        tmp_path / "data.parts",
        {"env_id": "a", "env_options": {"size": 1}, "seed": 0},
    )
    folder.mkdir()
    for _ in range(2):
        check_settings(settings, root, folder, ("numpy", "torch"))
    with pytest.raises(DatasetError, match=r"seed, env_options\.size: \[1, 2\]; .* begun with \[0, 1\]"):
        check_settings({"env_id": "a", "env_options": {"size": 2}, "seed": 1}, root, folder, ("numpy", "torch"))
    noted = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(noted | {"versions": {**noted["versions"], "numpy": "0.1"}}))
    with pytest.raises(DatasetError, match=rf"versions\.numpy: {np.__version__}; .* begun with '0\.1'"):
        check_settings(settings, root, folder, ("numpy", "torch"))
    (folder / CONFIG).write_text(json.dumps(settings))  # as an older release left it
    check_settings(settings, root, folder, ("numpy", "torch"))


@pytest.mark.parametrize(
    "which", ["meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet", "meta/emu_embodied.json"]
)
def test_frames_are_kept_of_what_a_dataset_says_too(tmp_path, which):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    info = {
        "features": {"action": {"dtype": "float32", "shape": [2]}},
        "total_frames": 2,
        "total_episodes": 1,
        "fps": 4,
    }
    info |= {"codebase_version": "v3.0"}
    for name in ("meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table({"a": [1, 2]}), tmp_path / name)
    (tmp_path / "meta" / "info.json").write_text(json.dumps(info))
    (tmp_path / "meta" / "emu_embodied.json").write_text(json.dumps({"settings": {}}))
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    if which.endswith(".json"):
        (tmp_path / which).write_text(json.dumps({"settings": {"seed": 1}}))
    else:
        parquet.write_table(pa.table({"a": [1, 3]}), tmp_path / which)
    assert fingerprint(tmp_path) != before
