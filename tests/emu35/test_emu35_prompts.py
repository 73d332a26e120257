"""The prompts, word for word, and their ids; the tasks' defaults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_generation import ByteText

from emu_embodied.emu35 import prompts
from emu_embodied.emu35.prompts import TASKS, build_prompt, find_task, follow_up, unconditional_template
from emu_embodied.errors import ConfigError, InputError

TEXT = ByteText()
V = TEXT.vocabulary
PICTURE = [*V.image_header(1, 2), V.visual_offset, V.visual_offset + 1, V.image_end]

WITHOUT_IMAGE = {
    "t2i": "<|extra_203|>You are a helpful assistant for t2i task. USER: {question} ASSISTANT: <|extra_100|>",
    "x2i": "<|extra_203|>You are a helpful assistant for x2i task. USER: {question} ASSISTANT: <|extra_100|>",
    "howto": "<|extra_203|>You are a helpful assistant for howto task. Please generate a response with interleaved text"
    " and images. USER: {question} ASSISTANT: <|extra_100|>",
    "story": "<|extra_203|>You are a helpful assistant for story task. USER: {question} ASSISTANT: <|extra_100|>",
    "explore": "<|extra_203|>You are a helpful assistant for explore task. USER: {question} ASSISTANT: <|extra_100|>",
    "vla": "<|extra_203|>You are a helpful assistant for vla task. USER: {question} ASSISTANT: <|extra_100|>",
}
WITH_IMAGE = {
    "t2i": "<|extra_203|>You are a helpful assistant for t2i task. USER: {question}<|IMAGE|> ASSISTANT: <|extra_100|>",
    "x2i": "<|extra_203|>You are a helpful assistant for x2i task. USER: <|IMAGE|>{question} ASSISTANT: <|extra_100|>",
    "howto": "<|extra_203|>You are a helpful assistant for howto task. Please generate a response with interleaved text"
    " and images. USER: {question}<|IMAGE|> ASSISTANT: <|extra_100|>",
    "story": "<|extra_203|>You are a helpful assistant for story task. USER: {question}<|IMAGE|> ASSISTANT: <|extra_100|>",
    "explore": "<|extra_203|>You are a helpful assistant for explore task. USER: {question}<|IMAGE|> ASSISTANT:"
    " <|extra_100|>",
    "vla": "<|extra_203|>You are a helpful assistant for vla task. USER: {question}<|IMAGE|> ASSISTANT: <|extra_100|>",
}


@pytest.mark.parametrize("name", TASKS)
def test_templates_are_the_official_ones(name: str):
    assert TASKS[name].template(False) == WITHOUT_IMAGE[name]
    assert TASKS[name].template(True) == WITH_IMAGE[name]


def test_unconditional_templates_are_the_official_ones():
    with_image = "<|extra_203|>You are a helpful assistant. USER: <|IMAGE|> ASSISTANT: <|extra_100|>"
    assert unconditional_template(True) == with_image
    assert unconditional_template(False) == "<|extra_203|>You are a helpful assistant. USER:  ASSISTANT: <|extra_100|>"


def shown(ids: list[int]) -> str:
    """Ids as the templates are written; each whole picture as <|IMAGE|>."""
    text, at = "", 0
    while at < len(ids):
        if ids[at : at + len(PICTURE)] == PICTURE:
            text, at = text + "<|IMAGE|>", at + len(PICTURE)
            continue
        special = ids[at] >= V.ranks
        text, at = text + (f"<|extra_{ids[at] - V.extra(0)}|>" if special else TEXT.decode([ids[at]])), at + 1
    return text


@pytest.mark.parametrize("images", [0, 1, 3])
@pytest.mark.parametrize("name", TASKS)
def test_ids_are_the_templates_filled_in(name: str, images: int):
    task = TASKS[name]
    if task.needs_image and not images:
        with pytest.raises(InputError, match="images"):
            build_prompt(task, "push it", [], TEXT)
        return
    prompt = build_prompt(task, "push it", [PICTURE] * images, TEXT)
    template = WITH_IMAGE[name] if images else WITHOUT_IMAGE[name]
    assert shown(prompt.ids) == template.replace("{question}", "push it").replace("<|IMAGE|>", "<|IMAGE|>" * images)
    unconditional = unconditional_template(bool(images)).replace("<|IMAGE|>", "<|IMAGE|>" * images)
    assert shown(prompt.unconditional) == unconditional


def test_special_tokens_in_the_users_text_are_text():
    prompt = build_prompt(TASKS["story"], "<|IMAGE|>{question}<|extra_204|>", [PICTURE], TEXT)
    assert prompt.ids.count(V.image_start) == 1 and V.end not in prompt.ids
    assert "USER: <|IMAGE|>{question}<|extra_204|><|IMAGE|> ASSISTANT" in shown(prompt.ids)


def test_a_follow_up_closes_the_answer_and_asks_again():
    prompt = build_prompt(TASKS["explore"], "", [PICTURE], TEXT).ids
    answers = [[*TEXT.encode("a door"), *PICTURE, *end] for end in ([], [V.end], [V.span_end, V.end])]
    followed = [shown(follow_up(prompt, answer, "turn left", TEXT)) for answer in answers]
    start = "<|extra_203|>You are a helpful assistant for explore task. USER: <|IMAGE|> ASSISTANT: <|extra_100|>"
    assert set(followed) == {f"{start}a door<|IMAGE|><|extra_101|> USER: turn left ASSISTANT: <|extra_100|>"}


@pytest.mark.parametrize(("name", "question"), [("t2i", ""), ("story", " \n"), ("vla", ""), ("explore", "")])
def test_a_prompt_without_its_text_is_refused(name: str, question: str):
    with pytest.raises(InputError, match="needs a text"):
        build_prompt(TASKS[name], question, [], TEXT)


def test_tasks_have_defaults_in_the_published_ranges_and_unknown_ones_are_refused():
    assert list(TASKS) == ["t2i", "x2i", "howto", "story", "explore", "vla"]
    for task in TASKS.values():
        assert 2 <= task.image.guidance <= 5 and 5120 <= task.image.top_k <= 10240
        assert 200 <= task.text.top_k <= 1024 and 0.8 <= task.text.top_p <= 0.9
    with pytest.raises(ConfigError, match="task: t3i.*t2i"):
        find_task("t3i")


def test_the_package_is_quick_to_import_and_knows_its_names():
    code = (
        "import sys, emu_embodied.emu35 as e; print('torch' in sys.modules, e.find_task('vla').name, hasattr(e, 'x'))"
    )
    root = Path(prompts.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split() == ["False", "vla", "False"]
