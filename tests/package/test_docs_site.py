"""The hook that makes pages from the code: a verb's page has every key, and links out of docs/ lead to the site's copies."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("mkdocs")

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from emu_embodied.commands import verbs
from emu_embodied.commands._help import describe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs/site_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("verb", ["report", "plan", "evaluate-policy"])
def test_a_verbs_page_has_all_its_keys_defaults_and_options(hooks, verb: str):
    page = hooks.verb_page(verb, verbs()[verb])
    assert page.startswith(f"# emu-embodied {verb}\n")
    for section in describe(verb.replace("-", "_")):
        for key in section.keys:
            (row,) = [line for line in page.split("\n") if line.startswith(f"| `{key.name}` |")]
            assert "must be given" in row if key.default == "???" else f"`{key.default}`" in row
            assert not key.example or f"`{key.name}={key.example}`" in row
        for option in section.options:
            assert f"| `{option}` |" in page


def test_keys_of_options_that_are_not_the_default_are_there_too(hooks):
    page = hooks.verb_page("plan", verbs()["plan"])
    (mppi,) = re.findall(r"### Further keys of planner=mppi\n(.*?)(?:\n###|\Z)", page, re.DOTALL)
    assert "| `temperature` |" in mppi
    assert "| `candidates` |" not in mppi


def test_links_out_of_the_docs_lead_to_copies_and_pages(hooks, tmp_path: Path):
    config = MkDocsConfig()
    config.load_dict({"site_name": "x", "docs_dir": str(ROOT / "docs"), "site_dir": str(tmp_path), "plugins": []})
    config.validate()
    config.plugins._current_plugin = "hooks"  # as it is while mkdocs calls them
    text = """[a](../../benchmarks/results/play-cpu.json) [b](../../CHANGELOG.md) [c](../index.md)
        [d](../../SECURITY.md#reporting-a-hole) [e](../../absent.json)"""
    files = Files([File.generated(config, "guides/x.md", content=text), File.generated(config, "index.md", content="")])
    files = hooks.on_files(files, config)
    copy = files.get_file_from_path("files/benchmarks/results/play-cpu.json")
    assert copy.content_bytes == (ROOT / "benchmarks/results/play-cpu.json").read_bytes()
    assert {f"reference/commands/{verb}.md" for verb in verbs()} <= set(files.src_uris)
    page = SimpleNamespace(file=files.get_file_from_path("guides/x.md"))
    moved = re.findall(r"\((.*?)\)", hooks.on_page_markdown(text, page, config, files))
    assert moved == [
        "../files/benchmarks/results/play-cpu.json",
        "../changelog.md",
        "../index.md",
        "../security.md#reporting-a-hole",
        "../../absent.json",  # of which mkdocs warns
    ]
