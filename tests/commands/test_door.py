"""How a command ends: signals, also swallowed ones, and what disks and streams refuse; one line and an exit code each."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path

import pytest

from emu_embodied.commands._door import end_well
from emu_embodied.errors import CheckpointError, InputError
from emu_embodied.rollouts.evaluation.journal import append, open_journal
from emu_embodied.storage.atomic import write_json, writing

CODES = {signal.SIGHUP: (129, "hung up"), signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}


class Thing:
    pass


def swallow(signum: int) -> None:
    """Gets a signal where Python ignores what its handler raises."""
    thing = Thing()
    weakref.finalize(thing, lambda: None)
    reference = weakref.ref(thing, lambda _: (os.kill(os.getpid(), signum), time.sleep(0.01)))
    del thing
    assert reference() is None


class Deleted:
    def __init__(self, signum: int) -> None:
        self.signum = signum

    def __del__(self) -> None:
        os.kill(os.getpid(), self.signum)
        time.sleep(0.01)


@pytest.mark.parametrize("signum", CODES)
def test_a_signal_ends_the_work(signum: signal.Signals, capsys: pytest.CaptureFixture):
    before, cleaned = [signal.getsignal(number) for number in (*CODES, signal.SIGALRM)], []

    def work() -> None:
        try:
            os.kill(os.getpid(), signum)
            time.sleep(60)
        finally:
            cleaned.append(True)

    code, said = CODES[signum]
    assert end_well(work) == code and cleaned
    assert capsys.readouterr().err == f"emu-embodied: {said}\n"
    assert before == [signal.getsignal(number) for number in (*CODES, signal.SIGALRM)]


@pytest.mark.parametrize("signum", CODES)
@pytest.mark.parametrize("lose", [swallow, lambda signum: Deleted(signum) and None])
def test_a_signal_in_a_callback_is_raised_again(signum: signal.Signals, lose, capsys: pytest.CaptureFixture):
    went_on, hook = [], sys.unraisablehook

    def work() -> None:
        for _ in range(3):  # also where it is lost more than once
            lose(signum)
        went_on.append(True)
        time.sleep(60)

    began = time.monotonic()
    assert end_well(work) == CODES[signum][0] and went_on and time.monotonic() - began < 30
    assert capsys.readouterr().err == f"emu-embodied: {CODES[signum][1]}\n"
    assert sys.unraisablehook is hook and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_work_that_ends_before_a_swallowed_signal_is_raised_again_has_not_succeeded(capsys: pytest.CaptureFixture):
    assert end_well(lambda: swallow(signal.SIGTERM)) == 143
    assert capsys.readouterr().err == "emu-embodied: terminated\n"


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert end_well(lambda: os.kill(os.getpid(), signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def refuse(path: Path | None, number: int) -> None:
    raise OSError(number, os.strerror(number), *([] if path is None else [str(path)]))


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda at: (at / "file" / "below").mkdir(), "file/below: Not a directory; a file is where a folder should be"),
        (lambda at: (at / "file").mkdir(), "file: File exists; something else is there"),
        (lambda at: (at / ("n" * 300)).touch(), "File name too long; choose a shorter name"),
        (lambda at: (at / "none" / "f").write_text(""), "none/f: No such file or directory; check the path"),
        (lambda at: Path("/dev/full").write_text("x"), "a file: No space left on device; free space"),
        (lambda at: refuse(at, errno.EROFS), "Read-only file system; choose a place that can be written"),
        (lambda at: refuse(at, errno.EDQUOT), "Disk quota exceeded; free space"),
        (lambda at: refuse(at, errno.EACCES), "Permission denied; choose a place that you may read and write"),
        (lambda at: os.rename(at / "a", at / "b"), "/a -> "),
        (lambda at: write_json(at / "file" / "x.json", {}), "file/x.json: not written: "),
        (lambda at: (_ for _ in ()).throw(InputError("action", 7, "give less")), "action: 7; give less"),
    ],
)
def test_what_a_disk_refuses_is_one_line(work, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "file").write_text("mine")
    assert end_well(lambda: work(tmp_path)) == 2
    said = capsys.readouterr().err
    assert said.startswith("emu-embodied: error: ") and said.count("\n") == 1 and expected in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"


def test_what_a_disk_refuses_to_a_thread_is_one_line_too(tmp_path: Path, capsys: pytest.CaptureFixture):
    def work() -> None:  # as TensorBoard's writer
        writer = threading.Thread(target=lambda: (tmp_path / "absent" / "events").write_text(""))
        writer.start()
        writer.join()

    assert end_well(work) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"emu-embodied: error: {tmp_path / 'absent' / 'events'}: No such file") and said.count("\n") == 1


def test_a_journal_on_a_full_disk_keeps_its_rows(tmp_path: Path):
    path = tmp_path / "episodes.jsonl"
    open_journal(path, {"steps": 3})
    append(path, {"seed": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"episodes.jsonl: not written: .*; free space"):
            append(path, {"seed": 2})
        with pytest.raises(CheckpointError, match="not written"), writing(path):
            refuse(None, errno.ENOSPC)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert open_journal(path, {"steps": 3}) == {1: {"seed": 1}}
    append(path, {"seed": 2})
    assert list(open_journal(path, {"steps": 3})) == [1, 2]


FULL = """
import resource, sys
from emu_embodied.commands import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))  # no file grows beyond: as a disk that is full
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_costs_no_finished_episode_and_leaves_no_litter(tmp_path: Path):
    words = ["plan", "agent=random", "episodes=2", "steps=2", "videos=2", "out=runs"]
    done = subprocess.run([sys.executable, "-c", FULL, *words], cwd=tmp_path, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if line.startswith("emu-embodied")]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert len(said) == 1 and "episode-0.png: not written: File too large; free space" in said[0]
    (run,) = (tmp_path / "runs").iterdir()
    assert [path.name for path in run.iterdir()] == ["episodes.jsonl"]
    assert run.joinpath("episodes.jsonl").read_text().count('"seed": 0') == 1


def test_a_warning_is_one_line_without_its_source(capsys: pytest.CaptureFixture):
    assert end_well(lambda: warnings.warn("the arm is\nfar away", stacklevel=1)) == 0
    assert capsys.readouterr().err == "emu-embodied: warning: the arm is far away\n"
