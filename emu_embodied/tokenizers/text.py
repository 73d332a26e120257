"""Instructions to ids and back: a small byte-level BPE of the `tokenizers` library. Knows nothing of frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from emu_embodied.errors import InputError


class TextTokenizer:
    """Byte-level BPE over NFC text: every string has ids, and decodes back to itself.

    Args:
        tokenizer: a `tokenizers.Tokenizer`; see `train` and `from_json`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @classmethod
    def train(cls, texts: Iterable[str], size: int = 384) -> TextTokenizer:
        """Trains a BPE of at most `size` ids (256 of them bytes) on texts; same texts, same ids."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(sorted(set(texts)), trainer)
        return cls(tokenizer)

    @classmethod
    def from_json(cls, text: str) -> TextTokenizer:
        """Restores a tokenizer from `to_json`'s text."""
        return cls(Tokenizer.from_str(text))

    def to_json(self) -> str:
        """The tokenizer as JSON text."""
        return self.tokenizer.to_str()

    @property
    def size(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return self.tokenizer.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; ids outside the text range are left out."""
        return self.tokenizer.decode([i for i in ids if 0 <= i < self.size]).removeprefix(" ")

    def batch(self, texts: Sequence[str], length: int, pad: int) -> torch.Tensor:
        """Ids (B, length) int64, padded at the end.

        Raises:
            InputError: a text that is no string or needs more than `length` ids.
        """
        return pad_batch(self.encode, texts, length, pad)


def pad_batch(
    encode: Callable[[str], list[int]], texts: Sequence[str], length: int, pad: int, left: bool = False
) -> torch.Tensor:
    """Ids (B, length) int64 of texts, padded at the end or on the left; an empty text is all padding.

    Raises:
        InputError: a text that is no string or needs more than `length` ids.
    """
    rows = []
    for text in texts:
        if not isinstance(text, str):
            raise InputError("instruction", text, "give a string")
        ids = encode(text) if text else []
        if len(ids) > length:
            raise InputError("instruction", text, f"at most {length} tokens fit, this has {len(ids)}: shorten it")
        padding = [pad] * (length - len(ids))
        rows.append(padding + ids if left else ids + padding)
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), length)
