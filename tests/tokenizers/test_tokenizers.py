"""Text, actions and frames to tokens and back, and the one id space they share."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emu_embodied.errors import InputError
from emu_embodied.model.vocabulary import STRUCTURE, Vocabulary
from emu_embodied.tokenizers.actions import bin_actions
from emu_embodied.tokenizers.frames import FrameTokenizer, FrameTokenizerConfig, reconstruction_loss, to_float
from emu_embodied.tokenizers.text import TextTokenizer

TEXTS = [
    "push the red cube to the left",
    "push the blue cube next to the green cube",
    "move the red block to the centre",
]
TEXT = TextTokenizer.train(TEXTS)


@given(st.integers(1, 400), st.integers(1, 600), st.integers(2, 100))
def test_the_id_space_has_no_gaps_and_no_overlaps(text, codes, bins):
    v = Vocabulary(text, codes, bins)
    structure = [v.pad, v.image_start, v.no_action]
    ids = [*range(text), *range(text, text + len(STRUCTURE)), *range(v.size)[v.visual], *range(v.size)[v.action]]
    assert ids == list(range(v.size)) and all(text <= i < v.visual_offset for i in structure)


@given(st.text(max_size=40))
@settings(max_examples=200)
def test_every_text_comes_back(text):
    import unicodedata

    normal = unicodedata.normalize("NFC", text)
    assert TEXT.decode(TEXT.encode(text)) == normal.removeprefix(" ")
    again = TextTokenizer.from_json(TEXT.to_json())
    assert again.encode(text) == TEXT.encode(text)


def test_instructions_are_short_and_padded():
    batch = TEXT.batch([*TEXTS, ""], 16, 999)
    assert batch.shape == (4, 16) and (batch[3] == 999).all()
    assert (batch[:3] != 999).sum(1).max() <= 12
    with pytest.raises(InputError, match="at most 16"):
        TEXT.batch(["xyz " * 40], 16, 0)
    with pytest.raises(InputError, match="instruction"):
        TEXT.batch([7], 16, 0)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8), st.integers(2, 128))
def test_action_bins_hold_their_values(values, bins):
    actions = torch.tensor(values)
    indices = bin_actions(actions, bins)
    assert ((indices >= 0) & (indices < bins)).all()
    centres = (indices + 0.5) * (2 / bins) - 1
    assert (centres - actions).abs().max() <= 1 / bins + 1e-5


@pytest.mark.parametrize("levels", [(4, 4), (8, 8, 8), (7, 5, 3)])
def test_codes_and_levels_are_one_to_one(levels):
    config = FrameTokenizerConfig(image_size=32, patch=8, margin=0, levels=levels, width=16, blocks=1)
    torch.manual_seed(0)
    tokenizer = FrameTokenizer(config).eval()
    codes = torch.arange(config.codebook_size).repeat(2)[: 16 * (config.codebook_size // 16)].view(-1, 16)
    q = (codes.view(-1, 1, 16) // tokenizer.basis.view(1, -1, 1)) % tokenizer.levels.view(1, -1, 1)
    assert (q < tokenizer.levels.view(1, -1, 1)).all() and ((q * tokenizer.basis.view(1, -1, 1)).sum(1) == codes).all()
    frames = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    found = tokenizer.encode(frames)
    assert found.shape == (3, 16) and found.min() >= 0 and found.max() < config.codebook_size
    decoded = tokenizer.decode(found)
    assert decoded.shape == frames.shape and decoded.dtype == torch.uint8
    direct, _ = tokenizer(to_float(frames))
    again = ((direct + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    assert (decoded.int() - again.int()).abs().max() <= 1  # training and inference see the same codes


def test_what_stands_still_keeps_its_codes():
    torch.manual_seed(0)
    tokenizer = FrameTokenizer(FrameTokenizerConfig(image_size=64, margin=0, width=16, blocks=1)).eval()
    rng = np.random.default_rng(0)
    before = rng.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    after = before.copy()
    after[:, 16:24, 40:48] = 7  # the patch in row 2, column 5
    changed = (tokenizer.encode(torch.from_numpy(before)) != tokenizer.encode(torch.from_numpy(after)))[0].nonzero()
    assert set(changed.flatten().tolist()) <= {2 * 8 + 5}


def test_what_moves_weighs_more():
    still = torch.zeros(1, 3, 8, 8)
    moved, wrong = still.clone(), still.clone()
    moved[:, :, 2, 2] = 1
    wrong[:, :, 5, 5] = 1  # wrong where nothing is
    missed = reconstruction_loss(still, moved, still, still[0])
    invented = reconstruction_loss(wrong + moved, moved, still, still[0])
    assert missed == pytest.approx(16 * invented.item(), rel=1e-5)
