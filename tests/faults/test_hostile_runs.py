"""Folders of runs may be anybody's: who goes on in one writes nowhere else, waits for nothing, and counts only rows."""

import json
import os
from pathlib import Path

import pytest

from emu_embodied.commands import generate, main
from emu_embodied.commands._runs import run_folder
from emu_embodied.data.lerobot_format import write_notes
from emu_embodied.errors import CheckpointError, ConfigError, DatasetError, EmuEmbodiedError
from emu_embodied.rollouts.agents.lerobot import check_folder
from emu_embodied.rollouts.collection import shards
from emu_embodied.rollouts.evaluation import policy_ranking
from emu_embodied.rollouts.evaluation.journal import append, open_journal
from emu_embodied.rollouts.evaluation.planning import COUNTED, summarise
from emu_embodied.rollouts.viewer.html_report import read_run
from emu_embodied.storage.regular import check_tree
from emu_embodied.storage.runs import locked

ROW = {"seed": 3, "kind": "edge", "success": True, "steps": 2, "plan_seconds": [0.1], "predicted_frames": 40}


def enter(context) -> None:
    with context:
        pass


GO_ON = {
    "plan resume=": lambda run: run_folder("unused", str(run), "episodes.jsonl"),
    "train out=": lambda run: enter(locked(run, "training")),
    "collect out=": lambda run: enter(shards.locked(run)),
    "report RUN": read_run,
    "generate out=": generate._make,
}


@pytest.fixture
def run(tmp_path):
    """A folder of a run, and beside it a file that is not the run's."""
    folder = tmp_path / "run"
    (folder / "deep").mkdir(parents=True)
    for name in ("episodes.jsonl", "result.json"):
        (folder / name).write_text("{}\n")
    (tmp_path / "victim").write_text("precious")
    return folder


@pytest.mark.parametrize("go_on", GO_ON.values(), ids=GO_ON)
@pytest.mark.parametrize("name", [".lock", "lock", "report.html", "deep/episode-7.png"])
@pytest.mark.parametrize("target", ["../victim", "../nowhere", "/dev/zero", "pipe"])
def test_nothing_is_written_through_a_link_or_into_a_pipe(run, go_on, name, target):
    if target == "pipe":
        os.mkfifo(run / name)
    else:
        (run / name).symlink_to(target if target.startswith("/") else run / target)
    with pytest.raises(EmuEmbodiedError, match=name):
        go_on(run)
    assert (run.parent / "victim").read_text() == "precious" and not (run.parent / "nowhere").exists()


def test_links_that_stay_inside_and_folders_that_are_links_are_the_users(run, tmp_path):
    (run / "latest").symlink_to("deep")
    (tmp_path / "elsewhere").symlink_to(run)
    check_tree(run)
    check_tree(tmp_path / "elsewhere")
    check_tree(tmp_path / "not there")
    (run / "deep" / "up").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="leads to"):
        check_tree(tmp_path / "elsewhere")


def test_evaluate_writes_no_table_elsewhere(run, capsys):
    (run / "table.md").symlink_to("../victim")
    assert main(["evaluate", "checkpoint=nano-tabletop", f"out={run}", "episodes=1", "steps=10", "planning=0"]) == 2
    assert "table.md" in capsys.readouterr().err and (run.parent / "victim").read_text() == "precious"


def test_a_journal_is_text_of_bounded_size(run):
    path = run / "journal.jsonl"
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(ConfigError, match="no journal of episodes"):
        open_journal(path, {"a": 1})
    for text in ('{"a":' * 900 + "1" + "}" * 900, '{"settings":{},"x":[' + "[]," * (1 << 20) + "[]]}"):
        path.write_text('{"settings":' + text + "}\n")
        with pytest.raises(ConfigError, match="no journal of episodes"):
            open_journal(path, {"a": 1})
    os.truncate(path, 8 << 30)  # takes no space on the disk, and would take all memory
    with pytest.raises(CheckpointError, match="8589934592 bytes"):
        open_journal(path, {"a": 1})
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="only regular files"):
        open_journal(path, {"a": 1})


@pytest.mark.parametrize(
    "change",
    [
        *({"seed": value} for value in (True, 3.0, "3", None)),
        *({"success": value} for value in ("yes", None, 1, 10**30)),
        *({"kind": value} for value in (None, ["edge"])),
        *({"steps": value} for value in ("2", 2.5, 10**400)),
        *({"plan_seconds": value} for value in (None, 1, ["x"], [[1]], [float("nan")], [10**400])),
        {"predicted_frames": "x"},
    ],
)
def test_a_row_that_cannot_be_counted_is_named(tmp_path, change):
    path = tmp_path / "journal.jsonl"
    open_journal(path, {"a": 1})
    append(path, ROW)
    assert summarise([open_journal(path, {"a": 1}, COUNTED)[3] | {"plan_seconds": [0.0]}])["rate"] == 1
    append(path, ROW | change)
    (name,) = change
    with pytest.raises(ConfigError, match=f"{name}: "):
        open_journal(path, {"a": 1}, COUNTED)
    append(path, {"seed": 4})
    with pytest.raises(ConfigError, match="journal"):
        open_journal(path, {"a": 1}, policy_ranking.COUNTED)


@pytest.mark.parametrize("value", [None, "25", 2.5, -1, 0, 10**30])
def test_counts_of_a_finished_part_are_numbers(tmp_path, value):
    part, notes = shards.split(25, 25)[0], {"episodes": 25, "successes": 0}
    place = tmp_path / part.name / shards.STATISTICS
    place.parent.mkdir(parents=True)
    write_notes(place, notes)
    assert shards.read_statistics(part, tmp_path, notes) == {"failures": [], **notes}
    for change in ({"episodes": value}, {"failures": 5}):
        write_notes(place, notes | change)
        with pytest.raises(DatasetError, match=next(iter(change))):
            shards.read_statistics(part, tmp_path, notes)


def test_a_policys_configuration_is_of_bounded_size(tmp_path):
    Path(tmp_path / "config.json").write_text(json.dumps({"type": "act"}))
    os.truncate(tmp_path / "config.json", 8 << 30)
    with pytest.raises(CheckpointError, match="8589934592 bytes"):
        check_folder(tmp_path)
