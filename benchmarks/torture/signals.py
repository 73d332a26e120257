"""Commands that are stopped: SIGINT and SIGTERM at random moments end them soon, with their exit code and no orphans."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from .battery import Job, Trial, battery
from .kills import BUDGET, tiny_checkpoint
from .processes import Command

SECONDS = 10.0  # in which a command must end
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
FAULTS = ("Traceback", "Exception ignored", "leaked")


def commands(tiny: Path, folder: Path) -> dict[str, list[str]]:
    """Command lines that go on for longer than anybody waits."""
    out = folder / "out"
    return {
        "plan": [f"checkpoint={tiny}", "episodes=500", "videos=0", f"out={out}", *BUDGET],
        "plan workers=2": [f"checkpoint={tiny}", "episodes=500", "workers=2", "videos=0", f"out={out}", *BUDGET],
        "evaluate": [f"checkpoint={tiny}", "episodes=400", "planning=20", f"out={out}"],
        "train": ["preset=tiny", "recipe.trajectory_loop.steps=50000", "recipe.collect.episodes=4", f"out={out}"],
        "collect": ["episodes=3000", f"out={out}"],
        "imagine": [f"checkpoint={tiny}", "episodes=3000", f"out={out}"],
        "play": [f"checkpoint={tiny}", "port=0"],
        "compile": [f"checkpoint={tiny}", "engine=onnx", "batch=[1,2,3,4,5,6,7,8]", f"cache={folder / 'engines'}"],
    }


@battery(
    "signals",
    fault="SIGTERM, SIGINT",
    expected="plan, evaluate, train, collect, imagine, play and compile end with exit code 130 or 143, without a traceback and "
    "without orphans",
    bar="<= 10 s",
    n=56,
)
def signals(job: Job) -> Iterator[Trial]:
    """Real commands; the signal comes up to 15 s after they have taken over SIGTERM, SIGINT to all as from a terminal."""
    tiny = tiny_checkpoint(job.folder / "tiny")
    kinds = [(verb, which) for verb in commands(tiny, job.folder) for which in CODES]
    for index in range(job.n):
        if index % len(kinds) == 0:
            job.chance.shuffle(kinds)
        verb, which = kinds[index % len(kinds)]
        folder = job.folder / str(index)
        words = [verb.partition(" ")[0], *commands(tiny, folder)[verb]]
        with Command(words, folder) as command:
            yield _stop(command, verb, which, job.chance.uniform(0, 15))


def _stop(command: Command, verb: str, which: signal.Signals, moment: float) -> Trial:
    what = f"{which.name} to {verb} after {moment:.1f} s"
    if not command.listens():
        return Trial(what, False, found="it took no signals in a minute")
    time.sleep(moment)
    if command.process.poll() is not None:
        return Trial(what, False, found=f"it had ended by itself: {command.text[-200:]}")
    begun = time.monotonic()
    (os.killpg if which == signal.SIGINT else os.kill)(command.pid, which)
    try:
        code = command.process.wait(6 * SECONDS)
    except Exception:
        return Trial(what, False, 6 * SECONDS, f"still running; {command.text[-200:]}")
    seconds, orphans = time.monotonic() - begun, command.orphans()
    bad = [fault for fault in FAULTS if fault in command.text]
    held = code == CODES[which] and seconds <= SECONDS and not orphans and not bad
    return Trial(what, held, seconds, "" if held else f"exit code {code}, {orphans} orphans, {bad} {command.text[-200:]}")
