"""Keeps a process at its ordinary priority, whatever it encodes.

SVT-AV1, with which LeRobot encodes videos, makes the calling thread a real-time one (SCHED_FIFO, 99) where the superuser runs
it, and every child inherits that: two of them that compute starve the whole machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ordinary_priority() -> Iterator[None]:
    """Puts every thread of this process back under the scheduler's ordinary policy when the block ends. Linux; else nothing."""
    try:
        yield
    finally:
        if hasattr(os, "sched_setscheduler") and os.path.isdir("/proc/self/task"):
            for thread in map(int, os.listdir("/proc/self/task")):
                try:
                    os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
                except ProcessLookupError:  # it has ended
                    pass
