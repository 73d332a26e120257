"""What the type checker is told: standard mode, the whole package, no file left out."""

from __future__ import annotations

import re
import tomllib

from source_tree import ROOT

SILENCER = re.compile(r"#\s*(type:\s*ignore|pyright:|basedpyright:)")
REASONED = re.compile(r"# pyright: ignore\[\w+\] # \w+")  # one rule in one line, and why
MOST_SILENCED = 4  # lines, of libraries whose types are wrong


def test_the_whole_package_is_checked_in_standard_mode():
    settings = _settings()
    assert settings["typeCheckingMode"] == "standard"
    assert set(settings["include"]) == {"emu_embodied", *(f"emu_embodied/{room}" for room in ("envs", "policies", "rollouts"))}
    switches = {key: value for key, value in settings.items() if key.startswith("report")}
    assert not switches, "no rule is softened for all files"


def test_no_file_is_left_out():
    assert not _settings().keys() & {"ignore", "exclude", "strict"}


def test_a_line_silences_the_checker_only_with_its_rule_and_a_reason():
    paths = [path for room in _settings()["include"] for path in (ROOT / room).rglob("*.py")]
    assert len(paths) > 200
    silenced = [line for path in paths for line in path.read_text().splitlines() if SILENCER.search(line)]
    assert len(silenced) <= MOST_SILENCED and all(map(REASONED.search, silenced))


def _settings() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["basedpyright"]
