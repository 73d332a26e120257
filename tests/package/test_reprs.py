"""What people see who look at a value in a notebook, and what the packages export."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from source_tree import modules

from emu_embodied import emu35
from emu_embodied.rollouts.agents.episode import EpisodeRun
from emu_embodied.rollouts.agents.trace import PlanRecord, PlanTrace
from emu_embodied.types import History, Observation, Rollout, Subgoal

ARRAYS = re.compile(r"\b(np\.ndarray|torch\.Tensor)\b")


def values_with_arrays(source: str) -> list[tuple[str, bool]]:
    """Dataclasses and named tuples with a field that is an array or holds some, and whether their `__repr__` is short."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            kinds = [ast.unparse(kind) for kind in (*node.decorator_list, *node.bases)]
            fields = [ast.unparse(part.annotation) for part in node.body if isinstance(part, ast.AnnAssign)]
            held = any(ARRAYS.search(re.sub(r"Callable\[.*\]", "", text)) for text in fields)
            if held and any("dataclass" in kind or kind == "NamedTuple" for kind in kinds):
                found.append((node.name, any(ast.unparse(part) == "__repr__ = short_repr" for part in node.body)))
    return found


def test_every_value_that_holds_arrays_has_a_short_repr():
    found = {
        f"{path.name}:{name}": short for path, _, _ in modules() for name, short in values_with_arrays(path.read_text())
    }
    assert len(found) > 25
    assert all(found.values()), [name for name, short in found.items() if not short]


def test_a_run_is_shown_in_a_few_lines():
    frames, path = np.zeros((41, 64, 64, 3), np.uint8), np.zeros((16, 8, 5, 2), np.float32)
    plan = PlanRecord(0, path, np.zeros(16, np.float32), path[0], np.zeros(2), np.zeros(2), np.ones(5, bool))
    trace = PlanTrace(("pusher", "red"), {"red": (219, 41, 33)}, (16.0, -16.0), (plan,) * 20)
    subgoal = Subgoal("move behind the red cube", frames[0], np.zeros((5, 3)), -0.1, False, torch.zeros(64))
    run = EpisodeRun(
        7, "push the red cube " * 20, "edge", True, np.zeros(41), np.zeros((40, 2)), frames, frames,
        (0.5123456789,) * 20, (1.0,) * 20, 1536, trace, ((subgoal, 0),),
    )  # fmt: skip
    shown = repr(run)
    assert len(shown) < 1000 and "\n" not in shown
    assert "seed=7" in shown and "success=True" in shown and "frames=uint8 (41, 64, 64, 3)" in shown
    assert "plan_seconds=<tuple of 20>" in shown and "plans=<tuple of 20>" in shown


def test_shapes_and_types_are_shown_instead_of_numbers():
    observation = Observation(np.zeros((64, 64, 3), np.uint8), np.zeros(2, np.float32), "")
    assert repr(observation) == "Observation(pixels=uint8 (64, 64, 3), agent_pos=float32 (2,), instruction='')"
    history = History(torch.zeros(1, 2, 64, dtype=torch.int64), torch.zeros(1, 1, 2), torch.zeros(1, 16))
    assert repr(history).startswith("History(codes_BCN=int64 (1, 2, 64), actions_BCA=float32 (1, 1, 2)")
    assert len(repr(Rollout(*[torch.zeros(4, 512, 8, 64)] * 6))) < 300


@pytest.mark.parametrize("name", ["load", "load_language_model", "load_vision_tokenizer", "load_text_tokenizer"])
def test_the_released_models_parts_are_exported(name: str):
    assert name in dir(emu35) and name in emu35.__all__ and callable(getattr(emu35, name))
    assert f"`{name}`" in (Path(__file__).parents[2] / "docs" / "guides" / "emu3.5.md").read_text()
