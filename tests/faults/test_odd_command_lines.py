"""Odd command lines: one line on standard error, exit code 2, nothing on standard output, nothing written, nothing loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from odd_words import FIXED, odd_commands

from emu_embodied.commands import main


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_is_one_line_that_names_what_is_wrong(empty: Path, capsys: pytest.CaptureFixture):
    for odd in FIXED:
        check(odd, capsys)
    assert not list(empty.iterdir())


def test_others_of_the_kind_drawn_by_seed(empty: Path, capsys: pytest.CaptureFixture):
    for odd in odd_commands(seed=0, n=25):
        check(odd, capsys)
    assert not list(empty.iterdir())


def check(odd, capsys: pytest.CaptureFixture) -> None:
    code, printed = main(list(odd.words)), capsys.readouterr()
    shown = " ".join(odd.words)[:200]
    assert code == 2 and printed.out == "" and printed.err.count("\n") == 1, f"{shown}: {printed.err}"
    assert printed.err.startswith("emu-embodied: error: ") and odd.names in printed.err, f"{shown}: {printed.err}"


def test_what_a_mistake_costs_is_no_import_of_torch():
    code = "import sys; from emu_embodied.commands import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "plan", "checkpoint=nano-tabeltop"]
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0


def run(words: str, shell: str = "{}", **options) -> subprocess.CompletedProcess:
    """The command in a process of its own, at a place in a line of shell."""
    line = shell.format(f"{sys.executable} -m emu_embodied {words}")
    return subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, **options)


@pytest.mark.parametrize("buffered", ["", "1"])  # PYTHONUNBUFFERED
def test_standard_output_that_takes_nothing(buffered: str):
    env = os.environ | {"PYTHONUNBUFFERED": buffered}
    for shell in ("{} > /dev/full", "{} | true"):
        done = run("--help", shell, env=env)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("emu-embodied: error: standard output: ")


def test_rich_tables_to_a_closed_pipe():
    done = run("doctor render=false", "{} | true")
    assert done.returncode == 2 and done.stderr.startswith("emu-embodied: error: standard output: ")
    assert done.stderr.count("\n") == 1


def test_a_deleted_working_directory(tmp_path: Path):
    done = run("doctor render=false", f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; {{}}")
    assert done.returncode == 2 and done.stderr.startswith("emu-embodied: error: working directory: it was deleted; ")
    assert done.stderr.count("\n") == 1


def test_letters_that_the_terminal_does_not_know(tmp_path: Path):
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = run("report \"run='té'\"", env=env, cwd=tmp_path)
    assert done.returncode == 2 and "t\\xe9" in done.stderr and done.stderr.count("\n") == 1
