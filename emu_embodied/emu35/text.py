"""Text to Emu3.5's ids and back: its BPE and special tokens. Knows the two published files, and neither model nor prompts."""

from __future__ import annotations

import base64
import binascii
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import tiktoken
import torch

from emu_embodied.errors import CheckpointError, InputError
from emu_embodied.model.vocabulary import Emu35Vocabulary
from emu_embodied.storage.regular import read_file
from emu_embodied.tokenizers.text import pad_batch

RANKS, VISUAL = "emu3.tiktoken", "emu3_vision_tokens.txt"
MAX_FILE_BYTES = 256 << 20
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # the ids after the BPE; then the extras, IMAGE, the codes
EXTRAS = 205
IMAGE = ("<|image token|>", "<|image start|>", "<|image end|>")
VISUAL_TOKEN = "<|visual token {:06d}|>"
_SPECIAL = re.compile(
    r"<\|(?:endoftext|im_start|im_end|extra_[0-9]{1,3}|image (?:token|start|end)|visual token [0-9]{6,9})\|>"
)
# Where the BPE may not join bytes (Qwen's): contractions, words, single digits, punctuation, line ends, blanks.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BLANK = r"\t\x0b\x0c \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # \s without the line ends
_REMEDY = "use the published file, or restore it from a copy"


class Emu35Text:
    """The released tokenizer: NFC text and special tokens <-> ids; every text comes back as its NFC form.

    Args:
        tokens: the bytes of each rank of the BPE; the 256 single bytes are among them.
        codes: visual tokens.
    """

    def __init__(self, tokens: Sequence[bytes], codes: int) -> None:
        self.tokens, self.vocabulary = tuple(tokens), Emu35Vocabulary(ranks=len(tokens), codebook_size=codes)
        self._bpe = self._with_pattern(_WORDS)
        offset = self.vocabulary.ranks
        fixed = (*CONTROL, *(f"<|extra_{index}|>" for index in range(EXTRAS)), *IMAGE)
        self._specials = {special: offset + index for index, special in enumerate(fixed)}
        self._names = {i: special for special, i in self._specials.items()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes | str], folder: str | os.PathLike = "") -> Emu35Text:
        """A tokenizer of the two files' contents by name; `folder` is only for messages.

        Raises:
            CheckpointError: a file that is missing or is not what it should be, with the line.
        """
        for name in (RANKS, VISUAL):
            if name not in files:
                raise CheckpointError(
                    str(Path(folder, name)), "missing", f"the tokenizer is made of {RANKS} and {VISUAL}"
                )
        lines = {name: _lines(Path(folder, name), files[name]) for name in (RANKS, VISUAL)}
        return cls(_read_ranks(Path(folder, RANKS), lines[RANKS]), _read_visual(Path(folder, VISUAL), lines[VISUAL]))

    def to_files(self) -> dict[str, bytes]:
        """The two files' contents by name, as they were published."""
        ranks = b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(self.tokens))
        names = [*IMAGE, *map(VISUAL_TOKEN.format, range(self.vocabulary.codebook_size))]
        return {RANKS: ranks, VISUAL: "".join(f"{name}\n" for name in names).encode()}

    @property
    def size(self) -> int:
        """Ids in all, visual ones included."""
        return self.vocabulary.size

    def encode(self, text: str, *, specials: bool = True) -> list[int]:
        """Ids of a text.

        Args:
            text: any text.
            specials: whether `<|extra_0|>` and the like become their ids; False takes them literally, for text that users
                wrote.

        Raises:
            InputError: no string, or one with half a surrogate pair, which is no text.
        """
        if not isinstance(text, str):
            raise InputError("text", text, "give a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError("text", ascii(text), f"half a surrogate pair at {error.start} is no text") from error
        text, ids, begun = unicodedata.normalize("NFC", text), [], 0
        for match in _SPECIAL.finditer(text) if specials else ():
            special = self._special(match[0])
            if special is not None:
                ids += [*self._ordinary(text[begun : match.start()]), special]
                begun = match.end()
        return ids + self._ordinary(text[begun:])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD.

        Raises:
            InputError: an id outside the vocabulary.
        """
        return b"".join(map(self._bytes, ids)).decode(errors="replace")

    def batch(self, texts: Sequence[str], length: int, pad: int) -> torch.Tensor:
        """Ids (B, length) int64, padded at the end.

        Raises:
            InputError: a text that is no string or needs more than `length` ids.
        """
        return pad_batch(self.encode, texts, length, pad)

    def _ordinary(self, text: str) -> list[int]:
        """Ids of a text without special tokens."""
        ids, begun = [], 0
        for start, end in _long_blanks(text):
            ids += [*self._bpe.encode_ordinary(text[begun:start]), *self._unsplit.encode_ordinary(text[start:end])]
            begun = end
        return ids + self._bpe.encode_ordinary(text[begun:])

    @cached_property
    def _unsplit(self) -> tiktoken.Encoding:
        """The same BPE for a text that is one piece."""
        return self._with_pattern(r"(?s:.+)")

    def _with_pattern(self, pattern: str) -> tiktoken.Encoding:
        ranks = {token: rank for rank, token in enumerate(self.tokens)}
        return tiktoken.Encoding("emu3.5", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def _special(self, text: str) -> int | None:
        """A special token's id; None of a text that only looks like one."""
        if not text.startswith("<|visual"):
            return self._specials.get(text)
        code = int(text[len("<|visual token ") : -len("|>")])
        known = code < self.vocabulary.codebook_size and VISUAL_TOKEN.format(code) == text
        return self.vocabulary.visual_offset + code if known else None

    def _bytes(self, i: int) -> bytes:
        v = self.vocabulary
        if 0 <= i < v.ranks:
            return self.tokens[i]
        if v.ranks <= i < v.visual_offset:
            return self._names[int(i)].encode()
        if v.visual_offset <= i < v.size:
            return VISUAL_TOKEN.format(int(i) - v.visual_offset).encode()
        raise InputError("ids", i, f"ids are 0 to {v.size - 1}")


def load_text_tokenizer(path: str | os.PathLike) -> Emu35Text:
    """Loads the folder of the published `emu3.tiktoken` and `emu3_vision_tokens.txt`.

    Raises:
        CheckpointError: a file that is missing or is not what it should be, with the line.
    """
    return Emu35Text.from_files({name: _read(Path(path, name)) for name in (RANKS, VISUAL)}, path)


def _read(path: Path) -> bytes:
    try:
        return read_file(path, MAX_FILE_BYTES)
    except CheckpointError as error:
        raise CheckpointError(error.field, error.value, f"give the tokenizer's folder; {error.remedy}") from error


def _lines(path: Path, content: bytes | str) -> list[str]:
    try:
        text = content.decode("ascii") if isinstance(content, bytes) else content
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise CheckpointError(f"{path}, line {line}", "not ASCII", _REMEDY) from error
    return text.removesuffix("\n").split("\n")


def _read_ranks(path: Path, lines: list[str]) -> list[bytes]:
    """The bytes of each rank, from lines of `base64 rank`, in order."""
    seen: dict[bytes, int] = {}
    for rank, line in enumerate(lines):
        where = f"{path}, line {rank + 1}"
        encoded, _, number = line.partition(" ")
        try:
            token = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise CheckpointError(where, line, f"must be a token in base64, a space and its rank; {_REMEDY}") from error
        if number != str(rank) or not token:
            raise CheckpointError(where, line, f"must be a token in base64, a space and the rank {rank}; {_REMEDY}")
        if token in seen:
            raise CheckpointError(where, line, f"line {seen[token] + 1} has the same token; {_REMEDY}")
        seen[token] = rank
    for byte, rank in [(b"*", 9), *((b"%d" % figure, 15 + figure) for figure in range(10))]:
        if seen.get(byte) != rank:
            where = f"{path}, line {rank + 1}"
            found = lines[rank] if rank < len(lines) else "the file ends before"
            raise CheckpointError(
                where, found, f"{byte.decode()!r} must have rank {rank}: sizes of images are written so"
            )
    if missing := [byte for byte in range(256) if bytes([byte]) not in seen]:
        raise CheckpointError(str(path), f"no rank for byte {missing[0]}", f"all 256 are needed; {_REMEDY}")
    return list(seen)


def _read_visual(path: Path, lines: list[str]) -> int:
    """How many codes there are, from one special token a line: the three of `IMAGE`, then the codes in order."""
    for number, line in enumerate(lines):
        code = number - len(IMAGE)
        expected = IMAGE[number] if code < 0 else VISUAL_TOKEN.format(code)
        if line != expected:
            raise CheckpointError(f"{path}, line {number + 1}", line, f"must be {expected}; {_REMEDY}")
    if len(lines) <= len(IMAGE):
        raise CheckpointError(
            f"{path}, line {len(lines) + 1}", "the file ends before", f"visual tokens follow; {_REMEDY}"
        )
    return len(lines) - len(IMAGE)


def _long_blanks(text: str, least: int = 10_000) -> Iterator[tuple[int, int]]:
    """Start and end of runs of blanks that the pattern takes as one piece, and would overflow tiktoken's stack with.

    That is `\\s+(?!\\S)`: a run that no line end follows, without its last blank if anything else follows.
    """
    for match in re.finditer(rf"(?<![{_BLANK}])[{_BLANK}]{{{least},}}+(?![\r\n])", text):
        yield match.start(), match.end() - (match.end() < len(text))
