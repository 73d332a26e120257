"""Images as Emu3.5's ids: the official sequences, every grid comes back, and nothing else is taken for an image."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_emu35 import DATA, REFERENCE, needs_reference, tiny_text

from emu_embodied.emu35.images import image_ids, parse_image
from emu_embodied.errors import InputError
from emu_embodied.model.vocabulary import Emu35Vocabulary

SMALL = Emu35Vocabulary(ranks=300, codebook_size=64)
GOOD = image_ids(np.arange(12).reshape(3, 4), SMALL)


@needs_reference("tokenizer")
def test_images_are_those_of_the_official_code():
    for case in json.loads((REFERENCE / "tokenizer" / "expected.json").read_text())["images"]:
        assert image_ids(np.array(case["codes"]), Emu35Vocabulary()) == case["ids"]
        assert parse_image(case["ids"], Emu35Vocabulary()).tolist() == case["codes"]


def test_images_stay_what_they_were():
    expected, text = json.loads((DATA / "text.json").read_text()), tiny_text()
    for case in expected["images"]:
        assert image_ids(torch.tensor(case["codes"]), text.vocabulary) == case["ids"]
        assert text.encode(text.decode(case["ids"])) == case["ids"]  # as text it is the same image


@given(st.integers(1, 40), st.integers(1, 130), st.integers(1, 131072), st.integers(0, 2**32 - 1))
def test_every_grid_comes_back(height, width, codebook, seed):
    vocabulary = Emu35Vocabulary(codebook_size=codebook)
    codes = np.random.default_rng(seed).integers(0, codebook, (height, width))
    ids = image_ids(codes, vocabulary)
    assert len(ids) == 3 + len(f"{height}*{width}") + height * width + height - 1
    for form in (ids, np.array(ids, np.int32), torch.tensor(ids)):
        found = parse_image(form, vocabulary)
        assert found.dtype == np.int64 and np.array_equal(found, codes)


EDITS = st.tuples(st.sampled_from(["drop", "double", "change"]), st.integers(0, 200), st.integers(0, SMALL.size))


@given(st.lists(EDITS, min_size=1))
def test_what_is_taken_for_an_image_is_one(edits):
    ids = list(GOOD)
    for kind, place, value in edits:
        place %= max(1, len(ids))
        ids[place : place + 1] = {"drop": [], "double": ids[place : place + 1] * 2, "change": [value]}[kind]
    try:
        codes = parse_image(ids, SMALL)
    except InputError:
        return
    assert image_ids(codes, SMALL) == ids


V = SMALL
HEADER = V.image_header(1, 2)


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([], r"image: \(0,\)"),
        ([5], "id 0.*BOI"),
        ([V.image_start], "id 1.*digits"),
        ([V.image_start, V.digit(3)], "id 2.*must be \\*"),
        ([V.image_start, V.digit(3), V.times], "id 3.*digits"),
        ([V.image_start, V.digit(3), V.times, V.digit(4)], "id 4.*IMG"),
        ([V.image_start, V.digit(0), V.digit(3), V.times], "id 1.*not 0"),
        ([V.image_start, *[V.digit(9)] * 7, V.times], "1 to 6 digits"),
        ([V.image_start, V.digit(0), V.times, V.digit(4), V.image_token, V.image_end], "not 0"),
        (V.image_header(999999, 999999), "999999 x 999999 codes need"),
        (GOOD[:-1], "19 ids; 3 x 4 codes need 20"),
        ([*GOOD, V.pad], "21 ids; 3 x 4"),
        ([*HEADER, V.visual_offset, V.end_of_line, V.image_end], "id 6.*row 0, column 1 must be a visual id"),
        ([*HEADER, V.visual_offset, V.size, V.image_end], "id 6.*visual id"),
        ([*HEADER, V.visual_offset, V.visual_offset, V.end_of_line], "id 7.*must be EOI"),
        ([*GOOD[:9], V.image_end, *GOOD[10:]], "row 0, column 4 must be EOL"),
        ([[1, 2], [3, 4]], "one list"),
        ([[1, 2], [3]], "one list"),
        ([1.5, 2.0], "one list"),
        ([2**70], "one list"),
        (np.array([2**63], np.uint64), "one list"),
    ],
)
def test_broken_images_are_refused(ids, found):
    with pytest.raises(InputError, match=found):
        parse_image(ids, SMALL)


@pytest.mark.parametrize(
    "codes",
    [
        np.zeros(4, int),
        np.zeros((0, 4), int),
        np.zeros((2, 2)),
        np.full((2, 2), 64),
        np.full((2, 2), -1),
        np.zeros((1, 2, 2), int),
    ],
)
def test_grids_that_do_not_fit_are_refused(codes):
    with pytest.raises(InputError, match="codes"):
        image_ids(codes, SMALL)
