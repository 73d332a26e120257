"""Trials in processes of their own: forked ones with a limit of time and a measure of memory, and whole commands."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOM = 6 << 30  # bytes of address space that a forked trial may add, so that a bomb ends it and not the machine
MiB = 1 << 20
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Ending:
    """How a forked trial ended.

    Attributes:
        kind: "done", "typed" (one of the package's errors), "untyped" (any other), "hung" or "died".
        value: what it returned, as JSON; or the error's text.
        seconds: of the wall's clock.
        computed: seconds of a core, which say on a busy machine, too, how much was asked of it.
        grown: bytes that its resident memory grew by.
    """

    kind: str
    value: object
    seconds: float
    computed: float
    grown: int

    def __str__(self) -> str:
        cost = f"{self.seconds:.1f} s, {self.computed:.1f} s of a core, {self.grown / MiB:.0f} MiB more"
        return f"{self.kind} after {cost}: {self.value}"[:400]


def stretched(seconds: float) -> float:
    """Seconds of a free machine as they are on this one now."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def in_child(work: Callable[[], object], seconds: float = 30.0) -> Ending:
    """Runs `work` in a fork of this process, which must have no threads that compute; its prints are thrown away.

    Args:
        work: returns something of JSON's types.
        seconds: of a free machine, after which it is killed, with all processes of its group.
    """
    seconds = stretched(seconds)
    reader, writer = os.pipe()
    begun = time.monotonic()
    if (pid := os.fork()) == 0:
        os.close(reader)
        _be_child(work, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer, hung = _read_until(pipe, begun + seconds)
    if hung:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    before, _, answer = answer.partition(b"\n")
    grown = usage.ru_maxrss * 1024 - int(before) if before else 0
    facts = (time.monotonic() - begun, usage.ru_utime + usage.ru_stime, grown)
    if hung:
        return Ending("hung", f"killed after {seconds:.0f} s", *facts)
    if not answer:
        return Ending("died", f"exit code {os.waitstatus_to_exitcode(status)}", *facts)
    return Ending(*json.loads(answer), *facts)


def fork_until_killed(work: Callable[[], object], seconds: float) -> int:
    """Forks a process that works, kills it after so many seconds, and returns its exit code (-9; 0: it was done before)."""
    if (pid := os.fork()) == 0:
        _quiet()
        os.setpgid(0, 0)
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return code


class Command:
    """`python -m emu_embodied WORDS` in a session of its own.

    Args:
        words: of the command line.
        folder: its working directory, and where what it prints is kept.
    """

    def __init__(self, words: list[str], folder: Path, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.printed = folder / "printed.txt"
        # In a shell's background SIGINT is ignored, and stays so in what it starts: the command is to have it as in a terminal.
        program = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "from emu_embodied.commands import main; sys.exit(main(sys.argv[1:]))"
        )
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with self.printed.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, *words],
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": paths, **environment},
                start_new_session=True,
            )
        self.pid = self.process.pid

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_) -> None:
        for pid in self.session():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.printed.read_text(errors="replace")

    def listens(self, seconds: float = 60.0) -> bool:
        """Waits until it has a handler for SIGTERM: from then on the package answers for signals."""
        return wait_for(lambda: self.process.poll() is not None or _catches(self.pid, signal.SIGTERM), seconds)

    def session(self) -> list[int]:
        """Its own and its descendants' processes that run."""
        return [pid for pid, fields in _processes() if int(fields[3]) == self.pid and fields[0] != "Z"]

    def workers(self) -> list[int]:
        """Its children that play or record; not multiprocessing's tracker of resources."""
        return [
            pid
            for pid, fields in _processes()
            if int(fields[1]) == self.pid and fields[0] != "Z" and b"spawn_main" in _command_line(pid)
        ]

    def orphans(self, seconds: float = 5.0) -> int:
        """How many of its processes still run, after waiting a little for them to end."""
        wait_for(lambda: not self.session(), seconds)
        return len(self.session())


def wait_for(condition: Callable[[], object], seconds: float) -> bool:
    """Whether the condition came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def call_main(words: list[str]) -> dict:
    """Runs a command line in this process; for `in_child`. Returns its exit code and what it said last."""
    from emu_embodied.commands import main

    said = sys.stderr = _Said()
    return {"code": main(words), "said": said.text[-2000:]}


class _Said:
    """Standard error that is kept."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def _be_child(work: Callable[[], object], writer: int) -> None:
    from emu_embodied.errors import EmuEmbodiedError

    os.setpgid(0, 0)
    _quiet()
    limit = _virtual() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.write(writer, b"%d\n" % _resident("self"))
    try:
        answer = ["done", work()]
    except EmuEmbodiedError as error:
        answer = ["typed", f"{type(error).__name__}: {error}"]
    except BaseException as error:
        answer = ["untyped", f"{type(error).__name__}: {error}"[:1000]]
    with contextlib.suppress(BaseException):
        os.write(writer, json.dumps(answer).encode() + b"\n")
    os._exit(0)


def _quiet() -> None:
    """Prints nothing from now on, and ends with its parent."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    sys.stdout = sys.stderr = open(os.devnull, "w")


def _read_until(pipe, end: float) -> tuple[bytes, bool]:
    """What comes, and whether the time was up before its end."""
    data = b""
    while select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
        part = os.read(pipe.fileno(), 1 << 16)
        if not part:
            return data, False
        data += part
        if data.count(b"\n") == 2:  # grandchildren may hold the pipe open
            return data, False
    return data, True


def _processes():
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "stat").read_text().rpartition(")")[2].split()


def _command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _catches(pid: int, which: int) -> bool:
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = Path(f"/proc/{pid}/status").read_text()
        return bool(int(status.split("SigCgt:")[1].split()[0], 16) >> (which - 1) & 1)
    return False


def _resident(pid: str) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def _virtual() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
