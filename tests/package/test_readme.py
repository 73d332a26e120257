"""What README.md shows is run from README.md itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()


def code_under(heading: str) -> str:
    """The first block of Python under a heading."""
    section = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]


def test_the_five_lines_succeed_and_say_how_far_they_are(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    exec(compile(code_under("Five lines"), "README.md", "exec"), {})
    printed = capsys.readouterr()
    assert printed.out.endswith(" True\n")
    assert "step 2 of 40" in printed.err and "plan 1: 256 of 512 frames imagined" in printed.err


def test_blocks_of_python_are_python():
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        compile(block, "README.md", "exec")
