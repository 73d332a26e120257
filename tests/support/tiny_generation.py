"""A tiny released-style model in memory, with random weights: for tests of prompts, results and the command."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from emu_embodied.emu35.loading import Emu35
from emu_embodied.model.transformer import Transformer, TransformerConfig
from emu_embodied.model.vocabulary import Emu35Vocabulary

PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = [*PRINTABLE, *(byte for byte in range(256) if byte not in PRINTABLE)]  # rank -> byte, as published: `*` is 9


class ByteText:
    """The text tokenizer's interface over single bytes; special tokens only where they are asked for by name."""

    vocabulary = Emu35Vocabulary(ranks=256, codebook_size=64)

    def encode(self, text: str, *, specials: bool = True) -> list[int]:
        return [BYTES.index(byte) for byte in text.encode()]

    def decode(self, ids) -> str:
        return bytes(BYTES[i] for i in ids).decode(errors="replace")


class TinyVision(torch.nn.Module):
    """The vision tokenizer's interface over 64 colours: two bits a channel of each 16 x 16 patch."""

    config = SimpleNamespace(n_embed=64)

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.5))

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        means = torch.nn.functional.avg_pool2d(images, 16)
        levels = ((means + 1) * self.scale).round().long().clamp(0, 3)
        return (levels * torch.tensor([16, 4, 1])[:, None, None]).sum(1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        levels = torch.stack([codes // 16, codes // 4 % 4, codes % 4], 1)
        return (levels / self.scale - 1).repeat_interleave(16, 2).repeat_interleave(16, 3)


def tiny_emu35(seed: int = 0, dida: bool = True) -> Emu35:
    """Two narrow layers over bytes and 64 visual codes; same seed, same weights."""
    vocabulary = ByteText.vocabulary
    sizes = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Transformer(TransformerConfig(vocabulary.size, hidden_size=32, head_dim=16, **sizes)).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
        noisy = SimpleNamespace(hidden_token=torch.randn(32), noised=torch.randn(32)) if dida else None
    return Emu35(model, TinyVision(), ByteText(), noisy)
