"""What a battery is: a fault, what is expected under it, and seeded trials. Knows no fault and nothing of the package."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from emu_embodied.metrics import wilson_interval

SHOWN = 12  # failures that a result lists


class NotRun(Exception):
    """Something that a battery needs is absent, said in one sentence. What was not run never counts as held."""


@dataclass(frozen=True)
class Trial:
    """One fault, and whether what was promised held.

    Attributes:
        what: the fault, in words that find it again.
        held: None where it could not be tried, which counts neither way.
        seconds: it took, where that is part of the promise.
        found: what came instead; or why it could not be tried.
    """

    what: str
    held: bool | None
    seconds: float | None = None
    found: str = ""


@dataclass(frozen=True)
class Job:
    """What a battery gets: how many trials, its own generator, and an empty folder."""

    n: int
    chance: random.Random
    folder: Path


@dataclass(frozen=True)
class Battery:
    """A row of the table.

    Attributes:
        name: for `--only`.
        fault, expected, bar: as in docs/reliability.md.
        n: trials by default.
        run: yields the trials.
    """

    name: str
    fault: str
    expected: str
    bar: str
    n: int
    run: Callable[[Job], Iterator[Trial]]


BATTERIES: dict[str, Battery] = {}


def battery(name: str, *, fault: str, expected: str, bar: str, n: int):
    """Registers a function that yields trials as a battery."""

    def register(run: Callable[[Job], Iterator[Trial]]) -> Callable[[Job], Iterator[Trial]]:
        BATTERIES[name] = Battery(name, fault, expected, bar, n, run)
        return run

    return register


def run_battery(chosen: Battery, n: int, seed: int, folder: Path) -> dict:
    """Runs one battery.

    Args:
        chosen: which.
        n: trials.
        seed: of its own generator, whatever else is run.
        folder: an empty one.

    Returns:
        n, held, wilson_95, failures and the worst seconds, as JSON; `not_run` and no figures where nothing could be tried.
    """
    begun, trials, reason = time.monotonic(), [], ""
    try:
        for trial in chosen.run(Job(n, random.Random(f"{seed} {chosen.name}"), folder)):
            trials.append(trial)
    except NotRun as absent:
        reason = str(absent)
    except Exception as error:  # of the battery itself: said, and no other battery's loss
        trials.append(Trial("the battery", False, found=f"{type(error).__name__}: {error}"[:300]))
    return {
        "fault": chosen.fault,
        "expected": chosen.expected,
        "bar": chosen.bar,
        "seed": seed,
        **count(trials, reason),
        "minutes": round((time.monotonic() - begun) / 60, 2),
        "load_average": round(os.getloadavg()[0], 1),
    }


def count(trials: list[Trial], reason: str = "") -> dict:
    """The figures of trials; those that could not be tried are listed, and not counted."""
    tried = [trial for trial in trials if trial.held is not None]
    failures = [trial for trial in tried if not trial.held]
    absent = sorted({f"{trial.what}: {trial.found}" for trial in trials if trial.held is None})
    if not tried:
        return {"n": 0, "not_run": reason or "; ".join(absent) or "no trial was made"}
    timed = sorted((trial for trial in tried if trial.seconds is not None), key=lambda trial: trial.seconds)
    result = {
        "n": len(tried),
        "held": len(tried) - len(failures),
        "wilson_95": list(wilson_interval(len(tried) - len(failures), len(tried))),
        "failures": [{"what": trial.what, "found": trial.found} for trial in failures[:SHOWN]],
    }
    if timed:
        result["seconds"] = {
            "median": round(statistics.median(trial.seconds for trial in timed), 3),
            "worst": round(timed[-1].seconds, 3),
            "worst_case": timed[-1].what,
        }
    return result | ({"parts_not_run": absent + ([reason] if reason else [])} if absent or reason else {})
