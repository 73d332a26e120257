"""Signals that wait for a safe place: Ctrl-C and SIGTERM reach a loop between its steps, never within. Knows no training."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class PatientSignals:
    """Between `with PatientSignals() as signals`, the first signal within `signals.held()` is delivered at its end.

    A second one within it, and any outside of it, comes through at once. Handlers are replaced in the main thread only, and
    only those that are Python's own; they are restored at the end.

    Attributes:
        within: whether a `held` block is under way or was left by an error, so that what it changes may be half done.
    """

    def __init__(self) -> None:
        self.within, self._owner = False, os.getpid()
        self._kept: int | None = None
        self._before: dict[int, Callable[[int, FrameType | None], object]] = {}

    def __enter__(self) -> PatientSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: old for number in SIGNALS if callable(old := signal.getsignal(number))}
            for number in self._before:
                signal.signal(number, self._handle)
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """What is within happens as a whole, unless a second signal or an error ends it."""
        self.within = True
        yield
        self.within = False
        kept, self._kept = self._kept, None
        if kept is not None:
            self._before[kept](kept, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.within and self._kept is None and os.getpid() == self._owner:
            self._kept = number
        else:
            self._before[number](number, frame)
