"""Disks that are full or read-only, and places that are something else: one line, the old files stay, no litter."""

from __future__ import annotations

import ctypes
import hashlib
import os
import resource
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

from .battery import Job, Trial, battery
from .kills import BUDGET, planned_run
from .processes import Ending, call_main, in_child

VERBS, FAULTS = ("plan", "report", "imagine", "train", "subgoal"), ("full", "read-only", "a file")
CAPABILITIES = 0x20080522  # the version of Linux's structures



@battery(
    "disk",
    fault="disk full",
    expected="typed error (exit code 2, one line), what was there stays as it was, no litter; the same where the place is "
    "read-only or a file",
    bar="20/20",
    n=40,
)
def disk(job: Job) -> Iterator[Trial]:
    """Commands whose files may not grow beyond a random size, or whose place cannot be written."""
    run = planned_run(job.folder)
    kinds = [(verb, fault) for verb in VERBS for fault in FAULTS]
    from tiny_training import frames

    from emu_embodied.data.frame_cache import save_frame_cache

    save_frame_cache(job.folder / "frames", frames())
    for index in range(job.n):
        if index % len(kinds) == 0:
            job.chance.shuffle(kinds)
        verb, fault = kinds[index % len(kinds)]
        yield _write(job, run, verb, fault, job.folder / str(index))


def _write(job: Job, run: Path, verb: str, fault: str, place: Path) -> Trial:
    place.mkdir()
    out = place / "out"
    shutil.copy(run / "result.json", place / "precious.json")
    limit, what = job.chance.choice((0, 1, 500, 3_000, 20_000)), f"{verb} into a place that is {fault}"
    if fault == "full":
        what = f"{verb} where no file may exceed {limit} bytes"
    elif fault == "read-only":
        place.chmod(0o555)
    else:
        out.write_text("precious")
    before, words = _files(place), _words(job, run, verb, out / "page.html" if (verb, fault) == ("report", "a file") else out)
    ending = in_child(lambda: _under(fault, limit, words), 240)
    place.chmod(0o755)
    return _judge(what, ending, before, _files(place), out)


def _words(job: Job, run: Path, verb: str, out: Path) -> list[str]:
    tiny = job.folder / "tiny"
    return {
        "plan": ["plan", f"checkpoint={tiny}", f"out={out}", "episodes=1", "steps=2", *BUDGET],
        "report": ["report", str(run), f"out={out}"],
        "imagine": ["imagine", f"checkpoint={tiny}", "episodes=1", "steps=2", f"out={out}"],
        "train": ["train", "preset=tiny", f"frames={job.folder / 'frames'}", "threads=1", f"out={out}"],
        "subgoal": ["subgoal", "instruction='push the red cube to the left'", f"out={out}", "seed=3"],
    }[verb]


def _under(fault: str, limit: int, words: list[str]) -> dict:
    if fault == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    elif os.geteuid() == 0:
        _obey_permissions()
    return call_main(words)


def _obey_permissions() -> None:
    """Gives up what lets root write where permissions forbid it (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = struct.pack("<Ii", CAPABILITIES, 0), ctypes.create_string_buffer(24)
    if libc.capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    effective, permitted, inherited, *rest = struct.unpack("<6I", data.raw)
    if libc.capset(header, struct.pack("<6I", effective & ~0b110, permitted, inherited, *rest)):
        raise OSError(ctypes.get_errno(), "capset")


def _judge(what: str, ending: Ending, before: dict, after: dict, out: Path) -> Trial:
    if ending.kind != "done":
        return Trial(what, False, found=str(ending))
    code, said = ending.value["code"], ending.value["said"]
    lost = [name for name in before if after.get(name) != before[name]]
    litter = [name for name in after if ".partial" in name or ".previous" in name]
    typed = code == 0 or code == 2 and said.count("\n") == 1 and "error:" in said
    held = typed and not lost and not litter
    return Trial(what, held, found="" if held else f"exit code {code}, lost {lost}, litter {litter}: {said}")


def _files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
