"""How a command ends: signals, errors that a user can mend, and streams and disks that fail. Knows no verb.

Each gets one line and its exit code: 2 for errors, 128 and the signal's number for what was stopped (129 SIGHUP, 130 SIGINT,
143 SIGTERM).
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from emu_embodied.errors import EmuEmbodiedError

STOPPED = {signal.SIGHUP: "hung up", signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
AGAIN_SECONDS = 0.05  # after which a signal whose exception was swallowed is raised again
REMEDIES = {
    errno.ENOSPC: "free space, or choose another place",
    errno.EDQUOT: "free space, or choose another place",
    errno.EFBIG: "free space, or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "choose a place that you may read and write",
    errno.EPERM: "choose a place that you may read and write",
    errno.ENOTDIR: "a file is where a folder should be: choose another place",
    errno.EEXIST: "something else is there: choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
}


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP as an exception, so that whoever cleans up after Ctrl-C also cleans up after `kill`."""


def end_well(work: Callable[[], None]) -> int:
    """Does a command's work.

    Returns:
        The exit code; what went wrong stands on standard error, in one line.
    """
    came: list[int] = []  # signals, in their order
    lost: list[OSError] = []  # what threads could not write
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a letter that the terminal does not know is no reason to end
            stream.reconfigure(errors="backslashreplace")
    try:
        with _stoppable(came), _threads_heard(lost), _warnings_in_a_line():
            work()
            if sys.stdout is not None:
                sys.stdout.flush()
    except EmuEmbodiedError as error:
        return _end(f"error: {error}", 2)
    except (OSError, SystemExit) as error:  # SystemExit: rich makes it of a closed standard output
        nameless = getattr(error, "filename", None) is None
        return _end(f"error: {nameless and _output_fault('\n') or _said(error)}", 2)
    except KeyboardInterrupt as error:
        came.append(signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
    if came:  # also where its exception was swallowed, and the work went on to its end
        return _end(STOPPED[signal.Signals(came[0])], 128 + came[0])
    return _end(f"error: {_said(lost[0])}", 2) if lost else 0


@contextmanager
def _stoppable(came: list[int]) -> Iterator[None]:
    """Signals raise KeyboardInterrupt here, and again where Python swallows that (in `__del__` and weakref callbacks)."""
    owner, hook = os.getpid(), sys.unraisablehook

    def stop(signum, frame):
        if os.getpid() != owner:  # a forked worker inherits this handler; it ends at once and quietly
            os._exit(128 + signum)
        came.append(signum)
        raise KeyboardInterrupt if signum == signal.SIGINT else Terminated

    def again(signum, frame):
        raise KeyboardInterrupt if came[-1] == signal.SIGINT else Terminated

    def swallowed(unraisable):
        if not (came and isinstance(unraisable.exc_value, KeyboardInterrupt)):
            return hook(unraisable)
        before.setdefault(signal.SIGALRM, signal.signal(signal.SIGALRM, again))
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = {}
    for signum in STOPPED:
        if signal.getsignal(signum) not in (signal.SIG_IGN, None):  # `nohup`, and jobs in the background, ignore some
            before[signum] = signal.signal(signum, stop)
    sys.unraisablehook = swallowed
    try:
        yield
    finally:
        if signal.SIGALRM in before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, handler in before.items():
            signal.signal(signum, handler)
        sys.unraisablehook = hook


@contextmanager
def _threads_heard(lost: list[OSError]) -> Iterator[None]:
    """Keeps what the system refuses to threads, such as TensorBoard's writer, in the place of their tracebacks."""
    hook = threading.excepthook

    def ended(thread):
        if isinstance(thread.exc_value, OSError):
            lost.append(thread.exc_value)
        else:
            hook(thread)

    threading.excepthook = ended
    try:
        yield
    finally:
        threading.excepthook = hook


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Warnings show what they say, without the line of source that gave them."""

    def show(message, category, filename, lineno, file=None, line=None):
        with suppress(OSError, ValueError):
            print("emu-embodied: warning: " + " ".join(str(message).split()), file=sys.stderr, flush=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _said(error: OSError | SystemExit) -> str:
    """What the system or a library says of a file, in the order of a typed error: where, what, remedy."""
    if isinstance(error, SystemExit):
        return "standard output: closed; give it a place that takes it"
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    fault = error.strerror or str(error) or type(error).__name__
    return f"{' -> '.join(names) or 'a file'}: {fault}; {REMEDIES.get(error.errno or 0, 'check the path')}"


def _output_fault(more: str = "") -> str:
    """What is wrong with standard output, found by writing more to it; empty where it is not to blame."""
    if sys.stdout is None:
        return ""
    try:
        sys.stdout.write(more)
        sys.stdout.flush()
        return ""
    except (OSError, ValueError) as error:  # ValueError: it is closed
        fault = getattr(error, "strerror", None) or str(error)
    with suppress(OSError, ValueError):  # else Python complains once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return f"standard output: {fault}; give it a place that takes it"


def _end(message: str, code: int) -> int:
    with suppress(OSError, ValueError):
        print("emu-embodied: " + " ".join(message.split()), file=sys.stderr, flush=True)
    _output_fault()
    return code
