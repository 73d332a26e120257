"""Instructions to ids and back: a small byte-level BPE of the `tokenizers` library. Knows nothing of frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from emu_embodied.errors import InputError
from emu_embodied.storage.strict_json import parse_object

LARGEST = 1 << 16  # tokens of a vocabulary


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
        tokenizer = _byte_level(models.BPE())
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(sorted(set(texts)), trainer)
        return cls(tokenizer)

    @classmethod
    def from_json(cls, text: object) -> TextTokenizer:
        """Restores a tokenizer from `to_json`'s text.

        Vocabulary and merges are read, and nothing else: whatever else the library would build of such a text (patterns,
        replacements, templates) can take any time and memory.

        Raises:
            InputError: another kind of text, or a vocabulary that is not one.
        """
        vocabulary, merges = _read_bpe(text)
        return cls(_byte_level(models.BPE(vocabulary, merges)))

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


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _read_bpe(text: object) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of the library's JSON, of a tokenizer such as `_byte_level` makes."""
    document = parse_object("tokenizer", text.encode(errors="replace"), InputError) if isinstance(text, str) else None
    if document is None:
        raise InputError("tokenizer", text, "expected the text of a tokenizer")
    model = document.pop("model", None)
    for part, kind in (("normalizer", "NFC"), ("pre_tokenizer", "ByteLevel"), ("decoder", "ByteLevel")):
        found = document.pop(part, None)
        if not isinstance(found, dict) or found.get("type") != kind:
            raise InputError(part, found, f"expected {kind}")
    document.pop("version", None)
    if more := [key for key, value in document.items() if value]:
        raise InputError(more[0], document[more[0]], "expected nothing there")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise InputError("model", model, "expected a BPE")
    if more := [key for key, value in model.items() if value and key not in ("type", "vocab", "merges")]:
        raise InputError(f"model.{more[0]}", model[more[0]], "expected nothing there")
    vocabulary = _check_vocabulary(model.get("vocab"))
    return vocabulary, _check_merges(model.get("merges"), vocabulary)


def _check_vocabulary(found: object) -> dict[str, int]:
    if not isinstance(found, dict) or len(found) > LARGEST:
        raise InputError("model.vocab", found, f"expected at most {LARGEST} tokens with their ids")
    if any(type(i) is not int for i in found.values()) or sorted(found.values()) != list(range(len(found))):
        raise InputError("model.vocab", f"{len(found)} tokens", "their ids must be 0, 1, 2, ...")
    if missing := set(pre_tokenizers.ByteLevel.alphabet()) - found.keys():
        raise InputError("model.vocab", f"no {min(missing)!r}", "each of the 256 bytes must have an id")
    return found


def _check_merges(found: object, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    if not isinstance(found, list) or len(found) > LARGEST:
        raise InputError("model.merges", found, f"expected a list of at most {LARGEST} pairs")
    pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else pair for pair in found]
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise InputError("model.merges", pair, "expected pairs of tokens")
        if not {*pair, "".join(pair)} <= vocabulary.keys():
            raise InputError("model.merges", pair, "both tokens, and both as one, must be in the vocabulary")
    return [(first, second) for first, second in pairs]


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
