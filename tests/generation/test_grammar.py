"""The grammar: whatever is chosen among what it allows parses, fits its budget, and keeps to its options."""

from __future__ import annotations

import functools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emu_embodied.errors import InputError
from emu_embodied.generation.grammar import Grammar, GrammarConfig, Phase, image_length, mask_logits
from emu_embodied.model.vocabulary import Emu35Vocabulary

V = Emu35Vocabulary(ranks=300, codebook_size=64)


def parse(ids: list[int]) -> list[tuple[int, int] | int]:
    """An independent reading of an answer: (height, width) for an image, the id for text; AssertionError if it is broken."""
    parts, at = [], 0
    extras = {V.ranks + 3 + i for i in (50, 51, 60, 61, 100, 101, 201, 202)}
    while ids[at] != V.ranks + 3 + 204:
        if ids[at] != V.ranks + 3 + 206:
            assert 0 <= ids[at] < V.ranks or ids[at] in extras, ids[at]
            parts.append(ids[at])
            at += 1
            continue
        header_end = ids.index(V.ranks + 3 + 205, at)
        text = "".join("*" if token == 9 else str(token - 15) for token in ids[at + 1 : header_end])
        height, width = map(int, text.split("*"))
        assert text == f"{height}*{width}" and height > 0 and width > 0
        at = header_end + 1
        for row in range(height):
            line = ids[at : at + width]
            assert len(line) == width and all(V.ranks + 3 + 208 <= t < V.ranks + 3 + 208 + 64 for t in line)
            at += width
            assert ids[at] == V.ranks + 3 + (200 if row < height - 1 else 207)
            at += 1
        parts.append((height, width))
    assert at == len(ids) - 1
    return parts


def choose_freely(config: GrammarConfig, rng: random.Random, fond_of_images: float) -> list[int]:
    grammar, ids = Grammar.start(V, config), []
    while not grammar.ended:
        ranges = grammar.allowed()
        start, stop = rng.choice(ranges)
        token = rng.randrange(start, stop)
        begins = any(a <= V.image_start < b for a, b in ranges)
        if grammar.phase is Phase.TEXT and begins and rng.random() < fond_of_images:
            token = V.image_start
        grammar = grammar.advance(token)
        ids.append(token)
    return ids


sides = st.one_of(st.integers(1, 12), st.sampled_from([99, 100, 123]))
configs = st.builds(
    dict,
    budget=st.one_of(st.integers(1, 60), st.integers(1, 3000)),
    images=st.one_of(st.none(), st.integers(0, 3)),
    grid=st.one_of(st.none(), st.tuples(sides, sides)),
    same_grid=st.booleans(),
    max_side=st.sampled_from([1, 7, 30, 999]),
    max_image_tokens=st.sampled_from([1, 50, 2000]),
    text=st.booleans(),
    begins_with_image=st.booleans(),
)


@settings(max_examples=300)
@given(configs, st.integers(0, 2**32), st.sampled_from([0.0, 0.5, 1.0]))
def test_whatever_is_chosen_parses_and_keeps_to_the_options(options: dict, seed: int, fond_of_images: float):
    try:
        config = GrammarConfig(**options)
    except InputError:
        assert options["begins_with_image"]
        return
    ids = choose_freely(config, random.Random(seed), fond_of_images)
    parts = parse(ids)
    images = [part for part in parts if isinstance(part, tuple)]
    assert len(ids) <= config.budget
    assert config.images is None or len(images) <= config.images
    assert config.text or len(images) == len(parts)
    if config.begins_with_image:
        assert parts[0] == images[0]
    if config.grid:
        assert set(images) <= {config.grid}
    else:
        assert all(max(size) <= config.max_side and size[0] * size[1] <= config.max_image_tokens for size in images)
        assert not config.same_grid or len(set(images)) <= 1


@settings(max_examples=60)
@given(st.lists(st.tuples(configs, st.integers(0, 400)), min_size=1, max_size=5), st.integers(0, 2**32))
def test_masked_logits_allow_what_each_grammar_allows_alone(rows: list, seed: int):
    rng, grammars = random.Random(seed), []
    for options, steps in rows:
        config = GrammarConfig(**options | {"begins_with_image": False})
        ids = choose_freely(config, rng, 0.5)
        grammars.append(functools.reduce(Grammar.advance, ids[: min(steps, len(ids) - 1)], Grammar.start(V, config)))
    masked = mask_logits(torch.zeros(len(grammars), V.size), grammars)
    for row, grammar in zip(masked, grammars, strict=True):
        allowed = {token for start, stop in grammar.allowed() for token in range(start, stop)}
        assert set(torch.isfinite(row).nonzero()[:, 0].tolist()) == allowed
        assert torch.equal(row, mask_logits(torch.zeros(1, V.size), [grammar])[0])
        assert grammar.forced == (min(allowed) if len(allowed) == 1 else None)


@pytest.mark.parametrize("grid", [(1, 1), (7, 9), (9, 10), (64, 99), (100, 5), (5, 123)])
def test_a_forced_image_is_the_vocabularys_header_and_fits_exactly(grid: tuple[int, int]):
    length = image_length(*grid) + 1
    config = GrammarConfig(length, images=1, grid=grid, text=False, begins_with_image=True)
    ids = choose_freely(config, random.Random(0), 1.0)
    assert ids[: len(V.image_header(*grid))] == V.image_header(*grid)
    assert len(ids) == length and parse(ids) == [grid]
    with pytest.raises(InputError, match="begins_with_image"):
        GrammarConfig(length - 1, grid=grid, begins_with_image=True)


def test_every_size_that_fits_can_be_written_and_no_other():
    budget = 40
    written = set()

    def walk(grammar: Grammar) -> None:
        if grammar.before_block:
            written.add((grammar.height, grammar.width))
            return
        for start, _ in grammar.allowed():
            walk(grammar.advance(start))

    walk(Grammar.start(V, GrammarConfig(budget, begins_with_image=True, max_side=12)))
    assert written == {(h, w) for h in range(1, 13) for w in range(1, 13) if image_length(h, w) + 1 <= budget}


def test_structure_never_stands_in_text():
    ranges = Grammar.start(V, GrammarConfig(1000)).allowed()
    allowed = {token for start, stop in ranges for token in range(start, stop)}
    assert {V.end, V.image_start, V.span_end} <= allowed
    barred = {V.pad, V.beginning, V.end_of_line, V.image_token, V.image_end, V.no_action}
    assert not allowed & (barred | set(range(*V.action.indices(V.size))) | set(range(*V.visual.indices(V.size))))


def test_text_alone_has_no_image_and_a_full_budget_only_eos():
    grammar = Grammar.start(V, GrammarConfig(2, images=0))
    assert not any(start <= V.image_start < stop for start, stop in grammar.allowed())
    assert grammar.advance(5).forced == V.end and grammar.advance(5).advance(V.end).ended


def test_a_token_out_of_place_is_refused():
    grammar = Grammar.start(V, GrammarConfig(100))
    for token in (V.visual_offset, V.image_end, V.pad, -1):
        with pytest.raises(InputError, match="token"):
            grammar.advance(token)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"budget": 0}, "budget"),
        ({"budget": -5}, "budget"),
        ({"budget": 1.5}, "budget"),
        ({"budget": 9, "images": -1}, "images"),
        ({"budget": 9, "grid": (0, 4)}, "grid"),
        ({"budget": 9, "grid": (4,)}, "grid"),
        ({"budget": 9, "max_side": 0}, "max_side"),
        ({"budget": 99, "images": 0, "begins_with_image": True}, "begins_with_image"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, field: str):
    with pytest.raises(InputError) as caught:
        GrammarConfig(**options)
    assert caught.value.field == field


def test_the_released_vocabulary_is_masked_in_a_batch_quickly():
    released = Emu35Vocabulary()
    grammars = [Grammar.start(released, GrammarConfig(100))] * 8
    masked = mask_logits(torch.zeros(8, released.size), grammars)
    assert masked.shape == (8, 282926) and int(torch.isfinite(masked[0]).sum()) == 151643 + 8 + 2
    with pytest.raises(InputError, match="grammars"):
        mask_logits(torch.zeros(2, released.size), grammars)
