"""The crew of worker processes: whatever becomes of a worker or of its parent is told, and leaves no process behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from functools import partial

import pytest

from emu_embodied.errors import DatasetError, InputError, SimulationError
from emu_embodied.rollouts import workers as crew
from emu_embodied.rollouts.workers import work_in_parallel

PARENT = """
import functools, sys
sys.path.insert(0, {tests!r})
from emu_embodied.rollouts.workers import work_in_parallel
from test_workers import does
if __name__ == "__main__":
    for _, pid in work_in_parallel(functools.partial(does, "endless"), [1, 2], 2):
        print(pid, flush=True)
"""


@contextmanager
def does(what: str):
    """What a worker's jobs do, by name."""
    if what == "dies at once":
        os.kill(os.getpid(), signal.SIGKILL)
    deeds = {
        "square": lambda job, tell: tell(job * job),
        "endless": lambda job, tell: tell(os.getpid()) or endless(),
        "sleeps": lambda job, tell: time.sleep(600),
        "two in a job": lambda job, tell: [tell(job), tell(), tell(-job)],
        "killed": lambda job, tell: tell(job) or (job == 2 and os.kill(os.getpid(), signal.SIGKILL)),
        "terminated": lambda job, tell: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(600),
        "stopped": lambda job, tell: os.kill(os.getpid(), signal.SIGSTOP),
        "typed": lambda job, tell: refuse(),
        "untyped": lambda job, tell: {}["key"],
    }
    yield deeds[what]


def endless() -> None:
    while True:
        pass


def refuse() -> None:
    raise InputError("action", 7, "give less")


def told(what: str, jobs, workers: int = 2, **options) -> list:
    return list(work_in_parallel(partial(does, what), jobs, workers, **options))


@pytest.fixture(autouse=True)
def no_worker_is_left():
    yield
    assert not multiprocessing.active_children()


def test_every_message_comes_with_its_job():
    assert sorted(told("square", range(1, 6))) == [(n, n * n) for n in range(1, 6)]
    assert told("two in a job", [3, 4], workers=1) == [(3, 3), (3, -3), (4, 4), (4, -4)]
    assert told("square", []) == []


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("dies at once", "died with exit code -9"),  # before it reads its job
        ("terminated", "died with exit code -15"),
        ("stopped", r"was stopped \(SIGSTOP\)"),
        ("untyped", "KeyError: 'key'"),
    ],
)
def test_a_lost_worker_is_one_typed_error_that_names_its_job(what: str, reason: str, monkeypatch):
    monkeypatch.setattr(crew, "STOPPED_SECONDS", 1.5)
    with pytest.raises(SimulationError, match=f"worker at 1: {reason}.*; what was finished before is kept"):
        told(what, [1], workers=1)


def test_what_came_before_a_death_is_heard():
    heard = []
    with pytest.raises(SimulationError, match="worker at 2: died with exit code -9"):
        for message in work_in_parallel(partial(does, "killed"), [1, 2, 3], 1):
            heard.append(message)
    assert heard == [(1, 1), (2, 2)]


def test_a_worker_that_tells_nothing_is_given_up():
    with pytest.raises(SimulationError, match="sent nothing for 0 s"):
        told("sleeps", [1, 2], patience=0.2)


def test_errors_are_the_workers_own_or_the_callers():
    with pytest.raises(InputError, match="action: 7; give less") as caught:
        told("typed", [1])
    assert (caught.value.field, caught.value.value) == ("action", 7)
    for what, reason in (("typed", "InputError: action: 7"), ("untyped", "KeyError"), ("dies at once", "exit code -9")):
        with pytest.raises(DatasetError, match=f"episode of seed 5: .*{reason}"):
            told(what, [5], failed=lambda job, reason: DatasetError(f"episode of seed {job}", reason, "call again"))


def test_ended_early_the_iteration_ends_its_workers():
    iteration = work_in_parallel(partial(does, "endless"), [1, 2], 2)
    with closing(iteration):
        pids = {next(iteration)[1], next(iteration)[1]}
    assert len(pids) == 2 and not any(runs(pid) for pid in pids)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_workers_end_with_their_parent(sent: signal.Signals, tmp_path):
    script = tmp_path / "parent.py"  # a file: spawned workers read it again
    script.write_text(PARENT.format(tests=os.path.dirname(__file__)))
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    assert all(map(runs, pids))
    parent.send_signal(sent)
    assert parent.wait(10) == -sent
    end = time.monotonic() + 10
    while any(map(runs, pids)):
        assert time.monotonic() < end, "a worker outlives its parent"
        time.sleep(0.02)
    parent.stdout.close()


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
