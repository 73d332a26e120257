"""Emu3.5's text tokenizer: the published ids, every text comes back, damaged files refused by line."""

import base64
import json
import pickle
import random
import re
import time
import unicodedata
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_emu35 import DATA, MERGES, REFERENCE, needs_reference, published_bytes, tiny_text, tiny_text_files

from emu_embodied.emu35 import text as text_module
from emu_embodied.emu35.text import RANKS, VISUAL, Emu35Text, load_text_tokenizer
from emu_embodied.errors import CheckpointError, InputError
from emu_embodied.model.vocabulary import Emu35Vocabulary

TEXT = tiny_text()
PUBLISHED = REFERENCE / "tokenizer"
SPECIALS = ["<|endoftext|>", "<|extra_0|>", "<|extra_204|>", "<|image start|>", "<|visual token 000063|>"]


@cache
def published():
    return load_text_tokenizer(PUBLISHED)


@needs_reference("tokenizer")
def test_ids_are_those_of_the_official_code():
    expected = json.loads((PUBLISHED / "expected.json").read_text())
    assert published().size == expected["vocab_size"] and published().vocabulary == Emu35Vocabulary()
    for case in expected["texts"]:
        assert published().encode(case["text"]) == case["ids"]
        assert published().decode(case["ids"]) == unicodedata.normalize("NFC", case["text"])
    for case in expected["images"]:
        assert published().encode(published().decode(case["ids"])) == case["ids"]


@needs_reference("tokenizer")
def test_the_published_files_are_written_as_they_were():
    assert published().to_files() == {name: (PUBLISHED / name).read_bytes() for name in (RANKS, VISUAL)}
    lines = (PUBLISHED / RANKS).read_bytes().splitlines()[:256]
    assert [base64.b64decode(line.split()[0]) for line in lines] == published_bytes()


@needs_reference("tokenizer")
@given(st.text(max_size=60))
@settings(max_examples=200)
def test_every_text_comes_back_from_the_published_ids(text):
    assert published().decode(published().encode(text)) == unicodedata.normalize("NFC", text)


def test_ids_stay_what_they_were():
    """Computed when the tests above passed, for machines without the reference data."""
    expected = json.loads((DATA / "text.json").read_text())
    tokenizer = tiny_text([bytes(merge) for merge in expected["merges"]], expected["codes"])
    for case in expected["texts"]:
        assert tokenizer.encode(case["text"]) == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["decoded"] == unicodedata.normalize("NFC", case["text"])


@given(st.lists(st.one_of(st.text(max_size=12), st.sampled_from(SPECIALS)), max_size=8), st.booleans())
@settings(max_examples=300)
def test_every_text_comes_back(parts, specials):
    text = "".join(parts)
    ids = TEXT.encode(text, specials=specials)
    assert TEXT.decode(ids) == unicodedata.normalize("NFC", text) and all(0 <= i < TEXT.size for i in ids)
    assert specials or all(i < TEXT.vocabulary.ranks for i in ids)


@given(st.lists(st.integers(0, TEXT.size - 1), max_size=30))
def test_every_id_has_a_text(ids):
    assert isinstance(TEXT.decode(ids), str)
    assert TEXT.decode(torch.tensor(ids, dtype=torch.int64)) == TEXT.decode(ids)


def test_specials_have_the_vocabularys_ids():
    v = TEXT.vocabulary
    named = {"endoftext": v.pad, "im_start": v.ranks + 1, "im_end": v.ranks + 2, "image token": v.image_token}
    named |= {"image start": v.image_start, "image end": v.image_end, "visual token 000000": v.visual_offset}
    named |= {f"extra_{i}": v.extra(i) for i in range(205)} | {"visual token 000063": v.size - 1}
    assert TEXT.encode("".join(f"<|{name}|>" for name in named)) == list(named.values())
    assert TEXT.encode("*0123456789") == [v.times, *map(v.digit, range(10))]


@pytest.mark.parametrize(
    "text",
    [
        "<|extra_205|>",
        "<|extra_01|>",
        "<|visual token 000064|>",
        "<|visual token 0000001|>",
        "<|extra_٣|>",
        "<|IMAGE|>",
    ],
)
def test_what_only_looks_like_a_special_is_text(text):
    assert all(i < TEXT.vocabulary.ranks for i in TEXT.encode(f"a {text} b"))
    assert TEXT.decode(TEXT.encode(text)) == text


@pytest.mark.parametrize(
    "text", ["a" * 100_000, "抓" * 100_000, "1" * 100_000, "\n" * 100_000, " \n" * 100_000, "!" * 100_000]
)
def test_long_runs_do_not_hang(text):
    begun = time.monotonic()
    assert TEXT.decode(TEXT.encode(text)) == text
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("text", [" " * 1_100_000 + "x", "x" + " \t" * 600_000, "." + "\n" + " " * 1_100_000 + "."])
def test_blanks_that_overflow_the_pattern_do_not(text):
    assert TEXT.decode(TEXT.encode(text)) == text


def test_blanks_are_cut_where_the_pattern_cuts(monkeypatch):
    runs = text_module._long_blanks
    monkeypatch.setattr(text_module, "_long_blanks", lambda text: runs(text, 2))
    tokenizer = tiny_text([*MERGES, b"  ", b"    ", b"\n\n", b" \n", b"\t "])
    pieces, rng = (
        [" ", "  ", "\t", "\n", "\r", "a", "1", ".", "'s", "\u3000", "\x1c", "\x85", "é", "抓", "\u2028"],
        random.Random(0),
    )
    for _ in range(5000):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 14)))
        assert tokenizer._ordinary(text) == tokenizer._bpe.encode_ordinary(text), repr(text)


def test_instructions_are_padded():
    batch = TEXT.batch(["push the red cube", ""], 16, 999)
    assert batch.shape == (2, 16) and batch.dtype == torch.int64 and (batch[1] == 999).all()
    assert batch[0].tolist() == TEXT.encode("push the red cube") + [999] * (16 - len(TEXT.encode("push the red cube")))
    with pytest.raises(InputError, match="at most 16"):
        TEXT.batch(["xyz " * 40], 16, 0)
    with pytest.raises(InputError, match="instruction"):
        TEXT.batch([7], 16, 0)


def test_no_text_is_refused():
    for text in (7, None, b"a", "a\ud800"):
        with pytest.raises(InputError, match="text"):
            TEXT.encode(text)
    for ids in ([-1], [TEXT.size]):
        with pytest.raises(InputError, match="ids"):
            TEXT.decode(ids)


def test_a_tokenizer_comes_back_from_its_files(tmp_path):
    for name, content in TEXT.to_files().items():
        (tmp_path / name).write_bytes(content)
    texts = {name: content.decode() for name, content in TEXT.to_files().items()}
    sample = "push <|extra_5|> the red cube 天"
    for again in (load_text_tokenizer(tmp_path), Emu35Text.from_files(texts), pickle.loads(pickle.dumps(TEXT))):
        assert again.encode(sample) == TEXT.encode(sample) and again.vocabulary == TEXT.vocabulary
        assert again.to_files() == TEXT.to_files()


def edited(name, line, new):
    """The tiny files with line `line` (from 1) replaced by `new`, or taken out."""
    files = tiny_text_files()
    lines = files[name].decode("latin1").splitlines()
    lines[line - 1 : line] = [] if new is None else [new]
    return {**files, name: "".join(f"{each}\n" for each in lines).encode("latin1")}


@pytest.mark.parametrize(
    ("name", "line", "new", "found"),
    [
        (RANKS, 260, "no base64! 259", "line 260: no base64! 259; must be a token"),
        (RANKS, 260, "", "line 260"),
        (RANKS, 260, " 259", "line 260"),
        (RANKS, 260, "aGVy", "line 260"),
        (RANKS, 260, "aGVy  259", "line 260"),
        (RANKS, 260, "aGVy 259 1", "line 260"),
        (RANKS, 260, "aGVy 260", "line 260: aGVy 260; .* the rank 259"),  # a gap
        (RANKS, 260, "aGVy 258", "line 260"),  # a duplicate rank
        (RANKS, 260, None, "line 260: cmVk 262|line 260"),
        (RANKS, 260, "IQ== 259", "line 260: IQ== 259; line 1 has the same token"),
        (RANKS, 260, "aGVy\xe9 259", "line 260: not ASCII"),
        (RANKS, 10, "aGVy 9", r"line 10: aGVy 9; '\*' must have rank 9"),
        (RANKS, 16, "aGVy 15", "line 16: aGVy 15; '0' must have rank 15"),
        (RANKS, 256, "aGVy 255", "no rank for byte 173"),
        (VISUAL, 1, "<|image start|>", "line 1: .*must be <|image token|>"),
        (VISUAL, 7, None, "line 7: <|visual token 000004|>; must be <|visual token 000003|>"),
        (VISUAL, 7, "<|visual token 000002|>", "line 7"),
        (VISUAL, 7, "", "line 7"),
        (VISUAL, 7, "\xff", "line 7: not ASCII"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, name, line, new, found):
    for file, content in edited(name, line, new).items():
        (tmp_path / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=found.replace("|", r"\|") if "<|" in found else found) as caught:
        load_text_tokenizer(tmp_path)
    assert name in caught.value.field


def test_files_that_end_early_or_are_missing_are_named(tmp_path):
    files = tiny_text_files()
    head = {RANKS: b"".join(files[RANKS].splitlines(True)[:9]), VISUAL: b"".join(files[VISUAL].splitlines(True)[:3])}
    for name in (RANKS, VISUAL):
        for content in (b"", head[name]):
            with pytest.raises(CheckpointError, match=rf"{re.escape(name)}, line \d+"):
                Emu35Text.from_files({**files, name: content})
        with pytest.raises(CheckpointError, match=f"{re.escape(name)}: missing"):
            Emu35Text.from_files({other: content for other, content in files.items() if other != name})
    with pytest.raises(CheckpointError, match=re.escape(RANKS)):
        load_text_tokenizer(tmp_path)
