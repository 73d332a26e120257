"""Images as Emu3.5's ids: the official sequences, every grid stands in its image, and no other grid is taken."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_emu35 import DATA, REFERENCE, needs_reference, tiny_text

from emu_embodied.emu35.images import image_ids
from emu_embodied.errors import InputError
from emu_embodied.model.vocabulary import Emu35Vocabulary

SMALL = Emu35Vocabulary(ranks=300, codebook_size=64)


@needs_reference("tokenizer")
def test_images_are_those_of_the_official_code():
    for case in json.loads((REFERENCE / "tokenizer" / "expected.json").read_text())["images"]:
        assert image_ids(np.array(case["codes"]), Emu35Vocabulary()) == case["ids"]


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
    block = np.array(ids[-height * (width + 1) :]).reshape(height, width + 1)
    assert np.array_equal(block[:, :-1] - vocabulary.visual_offset, codes)
    assert block[:, -1].tolist() == [vocabulary.end_of_line] * (height - 1) + [vocabulary.image_end]


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
