"""Seeded batteries of faults against the package: `make torture`.

    python -m benchmarks.torture [--only kills,stale] [--n 20] [--seed 0] [--out FILE.json] [--table FILE.md]

Without `--n` each battery makes the number of trials that its bar asks for, which takes hours on two cores. `--out` keeps what
the file says of batteries that were not run now, so that one can be run again alone; `--table` writes docs/reliability.md
from it. The exit code is 0 where everything that was tried held, else 1.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # forks of this process must find no threads that compute
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.timing import publish  # noqa: E402  after the settings
from emu_embodied.storage.regular import read_json  # noqa: E402

from . import BATTERIES  # noqa: E402
from .battery import run_battery  # noqa: E402
from .table import commit, write_table  # noqa: E402


def main() -> int:
    """Runs, prints a line a battery, and writes what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torture", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default=",".join(BATTERIES), help="names, with commas: " + ", ".join(BATTERIES))
    parser.add_argument("--n", type=int, help="trials of each battery")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON; what it says of other batteries stays")
    parser.add_argument("--table", type=Path, help="Markdown, made from --out")
    arguments = parser.parse_args()
    names = [name for name in arguments.only.split(",") if name]
    if unknown := [name for name in names if name not in BATTERIES]:
        parser.error(f"--only {','.join(unknown)}: choose among {', '.join(BATTERIES)}")
    found = read_json(arguments.out)["batteries"] if arguments.out and arguments.out.is_file() else {}
    failed = False
    for name in names:
        with tempfile.TemporaryDirectory(prefix=f"torture-{name}-") as folder:
            n = arguments.n or BATTERIES[name].n
            result = run_battery(BATTERIES[name], n, arguments.seed, Path(folder)) | {"commit": commit()}
        found[name], failed = result, failed or result.get("held", 0) < result["n"]
        print(f"{name}: {_line(result)}", flush=True)
        if arguments.out:
            publish({"batteries": found}, arguments.out)
    if arguments.table:
        write_table(arguments.table, {name: found[name] for name in BATTERIES if name in found})
    return 1 if failed else 0


def _line(result: dict) -> str:
    if "not_run" in result:
        return f"not run: {result['not_run']}"
    worst = f", worst {result['seconds']['worst']} s" if "seconds" in result else ""
    first = f"; {result['failures'][0]['what']}: {result['failures'][0]['found']}" if result["failures"] else ""
    return f"{result['held']} of {result['n']} held{worst}, {result['minutes']} min{first}"


if __name__ == "__main__":
    raise SystemExit(main())
