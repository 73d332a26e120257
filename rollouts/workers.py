"""A crew of worker processes: hands out jobs, passes on their messages, and outlives their deaths. Knows no job.

A death is reported within a second. A worker that is stopped (SIGSTOP) is given up after `STOPPED_SECONDS`, one that runs
without a sign of life after its `patience`. Workers end with their parent, however it ends. This module loads nothing heavy,
so that a worker watches its parent before it loads what its job needs.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import connection, resource_tracker
from threading import Thread
from typing import Any

from emu_embodied.errors import ConfigError, EmuEmbodiedError, SimulationError

LOOK_SECONDS = 1.0  # between two looks at the workers
STOPPED_SECONDS = 10.0  # for which a worker may be stopped
STALL_SECONDS = 600.0  # for which it may send nothing; a step of an episode sends a sign of life

Tell = Callable[..., None]  # sends its parent a message; None is a sign of life and no more
Work = Callable[[Any, Tell], None]


def work_in_parallel(
    make: Callable[[], AbstractContextManager[Work]],
    jobs: Iterable[Any],
    workers: int,
    patience: float = STALL_SECONDS,
    failed: Callable[[Any, str], EmuEmbodiedError] | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Does jobs in worker processes; no worker outlives the iteration.

    Args:
        make: makes a worker's work in its process, a context manager of `work(job, tell)`; picklable.
        jobs: what is to be done, in this order; none is None.
        workers: processes, at most.
        patience: seconds for which a worker may send nothing.
        failed: makes the error from a job and what became of it; by default it is what the worker raised, or a SimulationError.
            A ConfigError comes as it is.

    Yields:
        (job, message): what `tell` was given, as it comes.

    Raises:
        EmuEmbodiedError: what `make` or a job raised; or that of `failed` where a worker died, was stopped or stalled.
    """
    todo, inbox, crew = deque(jobs), queue.SimpleQueue(), []
    try:
        while todo and len(crew) < workers:
            crew.append(_Worker(make, inbox))
            crew[-1].give(todo.popleft())
        busy = list(crew)
        while busy:
            worker, kind, value = _hear(inbox, busy, patience)
            if kind == "error":
                if failed is None or isinstance(value, ConfigError):  # of what is set up, whatever the job
                    raise value
                raise failed(worker.job, f"{type(value).__name__}: {value}")
            if kind == "lost":
                raise (failed or _failed)(worker.job, worker.fate(value))
            if kind == "done" and todo:
                worker.give(todo.popleft())
            elif kind == "done":
                worker.give(None)
                busy.remove(worker)
            elif value is not None:
                yield worker.job, value
        for worker in crew:
            worker.process.join(10)
    finally:
        for worker in crew:
            worker.process.terminate()
        for worker in crew:
            worker.end()


def play_in_parallel(make: Callable[[], Any], seeds: Iterable[int], workers: int) -> Iterator[Any]:
    """Plays episodes in worker processes, each with its own player; episodes come as they finish.

    Args:
        make: makes a player, whose `play(seed, on_step)` plays an episode and calls `on_step` at each of its steps; picklable.
        seeds: of the episodes.
        workers: processes.

    Raises:
        EmuEmbodiedError: what a player raised; SimulationError where a process died, was stopped or stalled.
    """
    for _, episode in work_in_parallel(_Stage(make), seeds, workers):
        yield episode


def _failed(job: Any, fate: str) -> EmuEmbodiedError:
    return SimulationError(
        f"worker at {job}", fate, "what was finished before is kept; call with workers=1 to see it happen"
    )


# The parent's side


class _Worker:
    """One process, seen from its parent; a thread listens to it, so half a message from a stopped one does not block it."""

    def __init__(self, make: Callable[[], Any], inbox: queue.SimpleQueue) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        resource_tracker.ensure_running()  # else start() would, and unblock SIGINT again
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: Ctrl-C is the parent's business
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()  # so that a dead worker's pipe ends
        self.job, self.silent, self.stopped, self.looked = None, 0.0, 0.0, time.monotonic()
        self.listener = Thread(target=self._listen, args=(inbox,), daemon=True)
        self.listener.start()
        self._send(make)

    def give(self, job: Any) -> None:
        """Sends the next job, or None to end."""
        self.job = self.job if job is None else job
        self._send(job)

    def look(self, patience: float) -> str:
        """Why it is to be given up; empty where it is not. Time in which this process itself was stopped does not count."""
        now = time.monotonic()
        passed, self.looked = min(now - self.looked, 2 * LOOK_SECONDS), now
        self.silent += passed
        self.stopped = self.stopped + passed if _is_stopped(self.process.pid) else 0.0
        if self.stopped > STOPPED_SECONDS:
            return f"was stopped (SIGSTOP) for {STOPPED_SECONDS:.0f} s"
        return f"sent nothing for {patience:.0f} s" if self.silent > patience else ""

    def fate(self, reason: str) -> str:
        """What became of it, for the error."""
        if reason:
            return reason
        self.process.join(2)
        return f"died with exit code {self.process.exitcode}"

    def end(self) -> None:
        """Waits for a terminated process, and kills one that does not listen."""
        self.process.join(1)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.listener.join()
        self.pipe.close()

    def _send(self, message: Any) -> None:
        try:
            self.pipe.send(message)
        except OSError:
            pass  # it died; the listener says so

    def _listen(self, inbox: queue.SimpleQueue) -> None:
        try:
            while True:
                kind, value = self.pipe.recv()
                self.silent = 0.0
                inbox.put((self, kind, value))
        except (EOFError, OSError):  # OSError: it died with a message unread
            inbox.put((self, "lost", ""))
        except Exception as error:  # half a message, or what cannot be unpickled here
            inbox.put((self, "lost", f"sent what cannot be read: {error}"))


def _hear(inbox: queue.SimpleQueue, busy: list[_Worker], patience: float) -> tuple[_Worker, str, Any]:
    """The next message of a worker, or what is wrong with one; what came before that is handled first."""
    while True:
        for worker in busy:
            if time.monotonic() - worker.looked > LOOK_SECONDS and (reason := worker.look(patience)):
                inbox.put((worker, "lost", reason))
        try:
            worker, kind, value = inbox.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            continue
        if worker in busy:  # the others end as they should
            return worker, kind, value


def _is_stopped(pid: int | None) -> bool:
    """Whether a child is stopped by a signal, where the system can tell."""
    if pid is None or not hasattr(os, "waitid"):
        return False
    try:
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    except OSError:
        return False


# The worker's side


def _work(pipe: connection.Connection) -> None:
    """Does jobs until None comes, or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle: it ends its workers
    Thread(target=_end_with_parent, daemon=True).start()

    def tell(message: Any = None) -> None:
        pipe.send(("message", message))

    try:
        with pipe.recv()() as work:
            tell()
            while (job := pipe.recv()) is not None:
                work(job, tell)
                pipe.send(("done", None))
    except EmuEmbodiedError as error:
        pipe.send(("error", error))
    except (EOFError, ConnectionError):
        pass  # the parent is gone
    except Exception as error:
        pipe.send(("lost", f"{type(error).__name__}: {error}"))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _Stage:
    """Makes a player's work; picklable."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    @contextmanager
    def __call__(self) -> Iterator[Work]:
        import torch

        torch.set_num_threads(1)
        player = self.make()
        yield lambda seed, tell: tell(player.play(seed, tell))
