"""The page of journeys: what it names is there, and its counts are those of its lists."""

from __future__ import annotations

import ast
import re

from source_tree import ROOT

PAGE = (ROOT / "docs/journeys.md").read_text()
HOP = re.compile(r"^(\d+)\. `([\w/]+\.py)` `([\w.]+)`", re.MULTILINE)


def functions(source: str) -> set[str]:
    """The functions of a module, and the methods of its classes as Class.method."""
    tree = ast.parse(source)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    methods = {f"{c.name}.{node.name}" for c in classes for node in c.body if isinstance(node, kinds)}
    return methods | {node.name for node in tree.body if isinstance(node, kinds)}


def test_every_hop_is_a_function_of_its_file():
    hops = HOP.findall(PAGE)
    assert len(hops) > 75
    missing = [f"{file} {name}" for _, file, name in hops if name not in functions((ROOT / file).read_text())]
    assert not missing, f"docs/journeys.md names what is no longer there: {missing}"


def test_the_counts_are_those_of_the_lists():
    for section in PAGE.split("\n## ")[1:]:
        told = tuple(map(int, re.search(r"(\d+) hops through (\d+) files", section).groups()))
        hops = HOP.findall(section)
        assert told == (len(hops), len({file for _, file, _ in hops}))
        assert [int(number) for number, _, _ in hops] == list(range(1, len(hops) + 1))
