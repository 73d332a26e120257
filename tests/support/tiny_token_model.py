"""A tiny token model with random weights, and a batch for it."""

from dataclasses import replace

import torch

from emu_embodied.model.config import TokenModelConfig
from emu_embodied.model.token_model import TokenModel
from emu_embodied.model.transformer import TransformerConfig
from emu_embodied.model.vocabulary import Emu35Vocabulary, Vocabulary

VOCABULARY = Vocabulary(text_size=20, codebook_size=32, action_bins=8)
SIZES = TransformerConfig(VOCABULARY.size, 32, 48, 2, 4, 2, 8)
CONFIG = TokenModelConfig(VOCABULARY, SIZES, grid=3, action_dim=2, text_length=4, objects=("pusher", "red"))
EMU35 = Emu35Vocabulary(ranks=40, codebook_size=32, action_bins=8)
RELEASED = {  # frames written as the released models write images
    "vocabulary": EMU35,
    "transformer": replace(SIZES, vocab_size=EMU35.size),
    "previous_frame_source": False,
}


def tiny_model(**changes) -> TokenModel:
    torch.manual_seed(0)
    model = TokenModel(replace(CONFIG, **changes)).eval()
    for parameter in model.parameters():  # zero-initialised parts would hide leaks
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def batch(model: TokenModel, frames: int = 4, size: int = 2):
    c, g = model.config, torch.Generator().manual_seed(1)
    text = torch.randint(0, 20, (size, c.text_length), generator=g)
    codes = torch.randint(0, 32, (size, frames, c.slots), generator=g)
    actions = torch.rand(size, frames - 1, 2, generator=g) * 2 - 1
    hidden = torch.rand(size, frames - 1, c.slots, generator=g) < 0.6
    return text, codes, actions, codes[:, 1:].clone(), hidden
