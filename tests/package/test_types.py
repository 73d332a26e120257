"""What the type checker is told: standard mode, the whole package, and a list of files with errors that only shrinks."""

from __future__ import annotations

import re
import tomllib

from source_tree import ROOT

CLEAN = ("model", "inference", "tokenizers", "data", "policies", "envs")  # rooms in which no file may be on the list
MOST = 20  # files on the list; lower it with the list
SILENCER = re.compile(r"#\s*(type:\s*ignore|pyright:|basedpyright:)")
REASONED = re.compile(r"# pyright: ignore\[\w+\] # \w+")  # one rule in one line, and why
MOST_SILENCED = 4  # lines, of libraries whose types are wrong


def test_the_whole_package_is_checked_in_standard_mode():
    settings = _settings()
    assert settings["typeCheckingMode"] == "standard"
    assert set(settings["include"]) == {"emu_embodied", *(f"emu_embodied/{room}" for room in ("envs", "policies", "rollouts"))}
    switches = {key: value for key, value in settings.items() if key.startswith("report")}
    assert not switches, "no rule is softened for all files"


def test_no_file_joins_the_list_of_those_with_errors():
    listed = _settings()["ignore"]
    assert listed == sorted(set(listed)) and len(listed) <= MOST
    assert all((ROOT / path).is_file() for path in listed), "a file that is gone leaves the list"
    assert not [path for path in listed if path.split("/")[1] in CLEAN]


def test_a_line_silences_the_checker_only_with_its_rule_and_a_reason():
    paths = [path for room in _settings()["include"] for path in (ROOT / room).rglob("*.py")]
    assert len(paths) > 200
    silenced = [line for path in paths for line in path.read_text().splitlines() if SILENCER.search(line)]
    assert len(silenced) <= MOST_SILENCED and all(map(REASONED.search, silenced))


def _settings() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["basedpyright"]
