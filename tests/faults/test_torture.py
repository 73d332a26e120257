"""The batteries of faults, a few trials each: they run and tell what is broken; what was not run never counts as held."""

from __future__ import annotations

import ast
import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.torture import BATTERIES
from benchmarks.torture.battery import Battery, NotRun, Trial, count, run_battery
from benchmarks.torture.table import write_table

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the batteries fork, and look into /proc")
ROOT = Path(__file__).resolve().parents[2]
# Those whose trials are whole commands take minutes; what they do is in tests of its own (test_commands, test_parallel, ...).
SLOW = ("training", "recording", "signals", "workers", "network", "engines", "same_seed", "clock")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What a short run of the command found, by battery."""
    out = tmp_path_factory.mktemp("torture") / "found.json"
    chosen = ",".join(name for name in BATTERIES if name not in SLOW)
    command = [sys.executable, "-m", "benchmarks.torture", "--only", chosen, "--n", "2", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    return json.loads(out.read_text())["batteries"]


@pytest.mark.parametrize("name", [name for name in BATTERIES if name not in SLOW])
def test_a_short_battery_holds(results: dict[str, dict], name: str):
    found = results[name]
    if "not_run" in found:
        pytest.skip(found["not_run"])
    assert found["n"] >= 1 and found["held"] == found["n"], found["failures"]
    assert found["wilson_95"][0] < 1 and found["commit"]


def test_what_was_not_run_never_counts_as_held():
    def absent(job):
        raise NotRun("there is no such thing here")
        yield

    def partly(job):
        yield Trial("one", True, 0.5)
        yield Trial("two", False, 2.0, "broke")
        yield Trial("three", None, found="no such thing")

    def broken(job):
        yield Trial("one", True)
        raise RuntimeError("of the harness")

    def run(battery) -> dict:
        return run_battery(Battery("x", "fault", "expected", "bar", 3, battery), 3, 0, Path())

    assert run(absent)["n"] == 0 and run(absent)["not_run"] == "there is no such thing here" and "held" not in run(absent)
    found = run(partly)
    assert (found["n"], found["held"]) == (2, 1) and found["parts_not_run"] == ["three: no such thing"]
    assert found["failures"] == [{"what": "two", "found": "broke"}] and found["seconds"]["worst_case"] == "two"
    assert run(broken)["held"] == 1 and "of the harness" in run(broken)["failures"][0]["found"]
    assert "held" not in count([Trial("one", None, found="why")])


def test_a_child_that_dies_hangs_or_raises_is_told_apart():
    script = """
import json, os, time
from benchmarks.torture.processes import in_child
from emu_embodied.errors import InputError
def typed(): raise InputError("a", 1, "b")
def untyped(): raise KeyError("a")
works = (lambda: {"x": 1}, typed, untyped, lambda: os._exit(3), lambda: len(b"x" * (150 << 20)))
endings = [in_child(work, 60) for work in works] + [in_child(lambda: time.sleep(60), 0.5)]
print(json.dumps([[ending.kind, ending.grown >> 20] for ending in endings]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    kinds, grown = zip(*json.loads(done.stdout.splitlines()[-1]), strict=True)
    assert kinds == ("done", "typed", "untyped", "died", "done", "hung"), done.stdout + done.stderr
    assert grown[4] >= 140 > 60 > grown[0]


def test_the_table_says_what_was_found(tmp_path: Path):
    row = {"fault": "a | b", "expected": "e", "bar": "2/2"}
    held = row | count([Trial("one", True, 1.25), Trial("two", True, 0.5)])
    failed = row | count([Trial("one", True), Trial("two", False, found="broke")])
    write_table(tmp_path / "x.md", {"good": held, "bad": failed, "absent": row | {"n": 0, "not_run": "no compiler"}})
    text = (tmp_path / "x.md").read_text()
    assert "| a \\| b | e | 2/2 | 2 of 2 | 34.2 to 100.0% | 2 | 1.25 s | - | `good` |" in text
    assert "**1 of 2**" in text and "- two: broke" in text and "not measured: no compiler" in text


def test_the_same_seed_makes_the_same_trials():
    from benchmarks.torture.viewer import _bad_request

    class Chosen:
        chance = random.Random(3)

    one = [_bad_request(Chosen, 1, "t") for _ in range(50)]
    Chosen.chance = random.Random(3)
    assert one == [_bad_request(Chosen, 1, "t") for _ in range(50)] and len({kind for kind, _ in one}) > 20


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "torture").glob("*.py")), ids=lambda path: path.stem)
def test_what_a_battery_imports_is_there(path: Path):
    """Slow batteries do not run here, and import what they need only then."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and not node.level]
    for node in nodes:
        assert importlib.util.find_spec(node.module), f"{path.name}:{node.lineno} imports {node.module}"
