"""Settings that every test shares; they also reach the processes that tests start."""

import os
import signal

import hypothesis
import pytest

import emu_embodied  # noqa: F401  before torch, whose threads shall wait asleep

os.environ.setdefault("OMP_NUM_THREADS", "2")  # torch's threads: few, and the same on every machine
os.environ.setdefault("HF_HUB_OFFLINE", "1")
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with it ignored,
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup with this

hypothesis.settings.register_profile("seeded", derandomize=True, deadline=None)
hypothesis.settings.load_profile("seeded")


@pytest.fixture(autouse=True)
def stays_at_its_priority():
    """No test leaves this process a real-time one: its children would starve the machine (see `benchmarks.priority`)."""
    yield
    assert not hasattr(os, "sched_getscheduler") or os.sched_getscheduler(0) == os.SCHED_OTHER
