"""What the README and docs/ show holds: blocks of Python run, commands have known words, links lead somewhere."""

from __future__ import annotations

import functools
import importlib.util
import re
import shlex
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from gymnasium.envs.registration import registry

import emu_embodied
from emu_embodied.commands import _named, verbs
from emu_embodied.commands._config import compose_config
from emu_embodied.envs.external.specs import SPECS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md"))
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
PYTHON = re.compile(r"^ *```python(?P<how>[^\n]*)\n(?P<code>.*?)^ *```", re.DOTALL | re.MULTILINE)
FENCE = re.compile(r"^ *```\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
HOLES = re.compile(r"\b(NAME|KEY=VALUE|VERB)\b|\.\.\.(?!\")")  # words that stand for others


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path) -> list[tuple[str, str]]:
    """Each block of Python on a page, and what stands behind its language: "notest" where it is not to be run."""
    return [(found["how"], found["code"]) for found in PYTHON.finditer(path.read_text())]


def command_lines(path: Path) -> list[str]:
    """The command lines of a page: in blocks without a language, and between backquotes."""
    text = path.read_text()
    fenced = [line.partition("  #")[0].strip() for block in FENCE.findall(text) for line in block.split("\n")]
    inline = [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", PYTHON.sub("", text))]
    return [line for line in fenced + inline if line.startswith(("emu-embodied ", "python -m benchmarks.", "make "))]


@functools.cache
def compose(verb: str, *words: str) -> None:
    """Refuses an unknown verb, key or option, and a value out of range."""
    assert verb in verbs()
    compose_config(verb.replace("-", "_"), _named(verb, list(words)), complete=bool(words))


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


PARTS = [pytest.param(path, id=named(path)) for path in PAGES if any("notest" not in how for how, _ in blocks(path))]


def test_the_five_lines_succeed_and_say_how_far_they_are(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    ((_, code),) = blocks(ROOT / "README.md")
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr()
    assert printed.out.endswith(" True\n")
    assert "step 2 of 40" in printed.err and "plan 1: 256 of 512 frames imagined" in printed.err


@pytest.fixture
def unregistered():
    """What a page registers is gone afterwards."""
    tables = [(table, dict(table)) for table in (SPECS, registry)]
    yield
    for table, before in tables:
        table.clear()
        table.update(before)


@pytest.mark.parametrize("path", PARTS)
@pytest.mark.usefixtures("unregistered")
def test_a_page_runs_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # whatever it writes
    page = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)  # dataclasses look their module up
    for how, code in blocks(path):
        program = compile(code, named(path), "exec")
        if not how.strip().startswith("notest"):
            exec(program, page.__dict__)


@pytest.mark.parametrize("path", [*TOP, *PAGES], ids=named)
def test_what_is_not_run_is_python_and_says_why(path: Path):
    for how, code in blocks(path):
        compile(code, named(path), "exec")
        assert not how.strip() or re.match(r" notest: \w", how), how


@pytest.mark.parametrize("path", [*TOP, *PAGES], ids=named)
def test_every_command_line_has_known_words(path: Path):
    makefile = (ROOT / "Makefile").read_text()
    for line in command_lines(path):
        words = shlex.split(line)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), line
        elif words[0] == "python":
            spec = importlib.util.find_spec(words[2])
            assert spec is not None, line
        elif not HOLES.search(line) and not {"--help", "--version"} & set(words):
            compose(*words[1:])


def test_the_command_lines_are_found():
    lines = [line for path in [*TOP, *PAGES] for line in command_lines(path)]
    assert {line.split()[1] for line in lines if line.startswith("emu-embodied")} >= {*verbs()} - {"completion"}
    assert len(lines) > 60


@pytest.mark.parametrize("path", [*TOP, *PAGES], ids=named)
def test_links_between_files_of_the_repository_lead_somewhere(path: Path):
    generated = ROOT / "docs/reference/commands"
    for link in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", path.read_text()):
        target = (path.parent / link).resolve()
        assert target.is_file() or target.parent == generated, link


def test_the_readme_is_short_and_its_figures_stand_on_other_pages():
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) <= 8192
    assert (ROOT / "docs/pictures/plan.gif").stat().st_size <= 2e6
    pages = "\n".join(page.read_text() for page in PAGES)
    table = text.partition("## How good is it?")[2].partition("\n## ")[0]
    figures = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert 1 <= len(figures) <= 8
    for line in figures:
        for number in re.findall(r"\d+(?:\.\d+)? to \d+(?:\.\d+)?", line):
            assert number in pages, line


def test_every_extra_is_explained():
    page = (ROOT / "docs/start/install.md").read_text()
    assert {name for name in project()["optional-dependencies"] if f"`{name}`" not in page} == set()


def test_the_version_is_said_in_one_place():
    assert "version" not in project() and project()["dynamic"] == ["version"]
    assert f"\nversion: {emu_embodied.__version__}\n" in (ROOT / "CITATION.cff").read_text()
