"""docs/reliability.md, from the JSON of `make torture`. Knows no battery."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from emu_embodied.storage.atomic import write_bytes

from .processes import ROOT

ORDER = (
    *("kills", "training", "signals", "stale", "mutations", "bombs", "disk", "code", "traversal", "datasets", "calls", "words"),
    *("simulator", "workers", "same_seed", "batches", "memory", "engines", "recording", "clock", "http", "reports", "network"),
)
INTRODUCTION = """# Under faults

`make torture` runs seeded batteries of faults against the package: kills at random moments, damaged and hostile files, odd
calls, full disks, dead workers, hostile requests. CI runs a short one (`tests/faults/test_torture.py`). This table is
written by `python -m benchmarks.torture --only "" --out benchmarks/results/torture-cpu.json --table docs/reliability.md` from
[that JSON](../benchmarks/results/torture-cpu.json), which also has versions, seeds, failures and worst cases. Intervals are
Wilson's of 95%, "at" is the commit that was tried; the machine was busy. A row's command is
`make torture ARGS="--only NAME --n N"`. What was not run is not counted. What is promised of files stands in
[SECURITY.md](../SECURITY.md).

| fault | expected | bar | held | 95% interval | n | worst | at | NAME |
|---|---|---|---|---|---|---|---|---|
"""


def write_table(path: Path, batteries: dict[str, dict]) -> None:
    """Writes the table, and below it what did not hold or was not run."""
    places = {name: place for place, name in enumerate(ORDER)}
    batteries = dict(sorted(batteries.items(), key=lambda item: places.get(item[0], len(places))))
    rows = [_row(name, result) for name, result in batteries.items()]
    write_bytes(path, (INTRODUCTION + "\n".join(rows) + "\n" + "".join(_notes(batteries))).encode())


def commit() -> str:
    """Of the tree that is measured; "unknown" away from git, and a + after it where files were changed since."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    ask = [git, "describe", "--always", "--dirty=+", "--exclude=*", "--abbrev=12"]
    done = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _row(name: str, result: dict) -> str:
    cells, at = [result["fault"], result["expected"], result["bar"]], result.get("commit", "-")[:7]
    if "not_run" in result:
        return _line([*cells, f"not measured: {result['not_run']}", "-", "0", "-", at, f"`{name}`"])
    low, high = result["wilson_95"]
    held = f"{result['held']} of {result['n']}"
    held = held if result["held"] == result["n"] else f"**{held}**"
    worst = f"{result['seconds']['worst']:.3g} s" if "seconds" in result else "-"
    return _line([*cells, held, f"{100 * low:.1f} to {100 * high:.1f}%", str(result["n"]), worst, at, f"`{name}`"])


def _notes(batteries: dict[str, dict]):
    failed = {name: result for name, result in batteries.items() if result.get("failures")}
    partly = {name: result for name, result in batteries.items() if result.get("parts_not_run")}
    if failed:
        yield "\n## What did not hold\n\n"
        for name, result in failed.items():
            yield f"`{name}`, {result['n'] - result['held']} of {result['n']}:\n\n"
            yield "".join(f"- {_plain(one['what'])}: {_plain(one['found'])}\n" for one in result["failures"][:4]) + "\n"
    if partly:
        yield "\n## What could not be tried\n\n"
        yield from (f"- `{name}`: {_plain('; '.join(result['parts_not_run']))}\n" for name, result in partly.items())


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(_plain(cell, 400) for cell in cells) + " |"


def _plain(text: str, most: int = 240) -> str:
    """On one line, and nothing that Markdown takes for a cell's end."""
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= most else text[: most - 3] + "..."
