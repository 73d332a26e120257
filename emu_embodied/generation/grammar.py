"""The grammar of an interleaved answer: which ids may follow, so that no image is ever broken. Knows no model and no prompt.

answer := (text | image)* EOS
image  := BOI height `*` width IMG  row (EOL row)*  EOI      (height rows of width visual tokens each)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch

from emu_embodied.errors import InputError
from emu_embodied.model.vocabulary import Emu35Vocabulary
from emu_embodied.validation import whole_fields, whole_number

Ranges = tuple[tuple[int, int], ...]  # half-open, ascending, apart

# Specials that belong to an answer's text: image thoughts, global thoughts, the supervised span, end of frame, TMS.
TEXT_EXTRAS = ((50, 52), (60, 62), (100, 102), (201, 203))


@dataclass(frozen=True)
class GrammarConfig:
    """What an answer may hold.

    Attributes:
        budget: tokens of the answer at most, its EOS included.
        images: how many at most; 0 for text alone, None for as many as the budget holds.
        grid: (height, width) in visual tokens of every image; None lets the model write them.
        same_grid: every image has the first one's size, as in the official generation; without meaning where `grid` is given.
        max_side: visual tokens a side, where the model writes the size.
        max_image_tokens: visual tokens an image, where the model writes the size.
        text: whether text may stand before, between and after images.
        begins_with_image: the answer's first token is BOI.

    Raises:
        InputError: a number out of range, options that contradict each other, or a budget too small for what must be there.
    """

    budget: int
    images: int | None = None
    grid: tuple[int, int] | None = None
    same_grid: bool = True
    max_side: int = 999
    max_image_tokens: int = 16384
    text: bool = True
    begins_with_image: bool = False

    def __post_init__(self) -> None:
        if self.grid is not None and len(self.grid) != 2:
            raise InputError("grid", self.grid, "give height and width in visual tokens")
        ranges: dict[str, tuple[int, int | None]] = {"budget": (1, None), "max_side": (1, None), "max_image_tokens": (1, None)}
        whole_fields(self, ranges if self.images is None else {**ranges, "images": (0, None)}, InputError)
        for side in self.grid or ():
            whole_number("grid", side, 1, error=InputError)
        if self.begins_with_image:
            needed = image_length(*(self.grid or (1, 1))) + 1
            if self.images == 0 or self.budget < needed:
                what = f"images={self.images}, budget={self.budget}"
                raise InputError("begins_with_image", what, f"an image and EOS take {needed} tokens or more")

    def holds(self, height: int, width: int, room: int) -> bool:
        """Whether an image of this size is allowed where `room` tokens are left, EOS included."""
        allowed = max(height, width) <= self.max_side and height * width <= self.max_image_tokens
        return (self.grid is not None or allowed) and image_length(height, width) < room


def block_length(height: int, width: int) -> int:
    """Tokens between IMG and EOI: the rows and the EOLs between them."""
    return height * (width + 1) - 1


def image_length(height: int, width: int) -> int:
    """Tokens of an image from BOI to EOI."""
    return len(f"{height}{width}") + 4 + block_length(height, width)


class Phase(Enum):
    """Where in the grammar a sequence stands."""

    TEXT = "outside of images"
    HEIGHT = "after BOI, in the height"
    WIDTH = "in the width"
    BLOCK = "after IMG: rows, EOLs, and EOI"
    END = "after EOS"


@dataclass(frozen=True)
class Grammar:
    """One answer so far, as much of it as decides what may follow.

    Attributes:
        vocabulary, config: whose ids, and what is allowed.
        phase: where it stands.
        used: tokens so far.
        images: begun so far.
        begun: tokens before the last BOI.
        height, width: of the image that is open, as far as it is written; in visual tokens.
        slot: tokens since IMG.
        grid: what the next image must measure; None where that is free.
    """

    vocabulary: Emu35Vocabulary
    config: GrammarConfig
    phase: Phase = Phase.TEXT
    used: int = 0
    images: int = 0
    begun: int = 0
    height: int = 0
    width: int = 0
    slot: int = 0
    grid: tuple[int, int] | None = None

    @classmethod
    def start(cls, vocabulary: Emu35Vocabulary, config: GrammarConfig) -> Grammar:
        """An answer of which nothing is written."""
        return cls(vocabulary, config, grid=config.grid)

    @property
    def ended(self) -> bool:
        return self.phase is Phase.END

    @property
    def left(self) -> int:
        """Tokens that may still follow, EOS included."""
        return self.config.budget - self.used

    @property
    def before_block(self) -> bool:
        """Whether IMG was the last token: the image's size is known, and none of it written."""
        return self.phase is Phase.BLOCK and self.slot == 0

    @property
    def expects_visual(self) -> bool:
        """Whether the next token is a visual one."""
        inside = self.phase is Phase.BLOCK and self.slot < block_length(self.height, self.width)
        return inside and self.slot % (self.width + 1) != self.width

    @property
    def forced(self) -> int | None:
        """The next token, where only one is allowed."""
        ranges = self.allowed()
        return ranges[0][0] if len(ranges) == 1 and ranges[0][1] - ranges[0][0] == 1 else None

    def allowed(self) -> Ranges:
        """The ids that may follow; empty after the end."""
        v = self.vocabulary
        if self.phase is Phase.TEXT:
            return self._outside()
        if self.phase is Phase.HEIGHT:
            return self._number(self.height, self.grid and self.grid[0], v.times, lambda n: self._fits(n, 1))
        if self.phase is Phase.WIDTH:
            return self._number(
                self.width, self.grid and self.grid[1], v.image_token, lambda n: self._fits(self.height, n)
            )
        if self.phase is Phase.BLOCK:
            if self.expects_visual:
                return ((v.visual_offset, v.size),)
            return _ids(v.image_end if self.slot == block_length(self.height, self.width) else v.end_of_line)
        return ()

    def advance(self, token: int) -> Grammar:
        """The same answer with one more token.

        Raises:
            InputError: a token that is not allowed here.
        """
        if not any(start <= token < stop for start, stop in self.allowed()):
            raise InputError("token", token, f"not allowed {self.phase.value}")
        v, after = self.vocabulary, dict[str, Any](used=self.used + 1)
        if self.phase is Phase.BLOCK:
            done = token == v.image_end
            after |= {"phase": Phase.TEXT, "grid": self._next_grid()} if done else {"slot": self.slot + 1}
        elif token == v.end:
            after["phase"] = Phase.END
        elif token == v.image_start:
            new = {"images": self.images + 1, "begun": self.used, "height": 0, "width": 0, "slot": 0}
            after |= new | {"phase": Phase.HEIGHT}
        elif self.phase is Phase.HEIGHT:
            done = token == v.times
            after |= {"phase": Phase.WIDTH} if done else {"height": 10 * self.height + token - v.digit(0)}
        elif self.phase is Phase.WIDTH:
            done = token == v.image_token
            after |= {"phase": Phase.BLOCK} if done else {"width": 10 * self.width + token - v.digit(0)}
        return replace(self, **after)

    def _outside(self) -> Ranges:
        v, c = self.vocabulary, self.config
        more = c.images is None or self.images < c.images
        begins = more and c.holds(*(self.grid or (1, 1)), self.left)
        if c.begins_with_image and not self.used:
            return _ids(v.image_start)
        text = c.text and self.left > 1
        return _text_ranges(v, text, begins)

    def _fits(self, height: int, width: int) -> bool:
        return self.config.holds(height, width, self.config.budget - self.begun)

    def _number(self, written: int, forced: int | None, closing: int, fits) -> Ranges:
        """What continues a number: digits after which it can still be an allowed one, or what closes it."""
        v = self.vocabulary
        if forced is not None:
            shown, so_far = str(forced), str(written or "")
            return _ids(closing if shown == so_far else v.digit(int(shown[len(so_far)])))
        numbers = ((digit, 10 * written + digit) for digit in range(10))
        digits = [v.digit(digit) for digit, number in numbers if number and fits(number)]
        return _ids(*digits, *([closing] if written else []))

    def _next_grid(self) -> tuple[int, int] | None:
        return (self.height, self.width) if self.config.same_grid else self.grid


def _ids(*ids: int) -> Ranges:
    return tuple((token, token + 1) for token in sorted(ids))


@functools.lru_cache(maxsize=256)
def _text_ranges(v: Emu35Vocabulary, text: bool, begins: bool) -> Ranges:
    words = [(0, v.ranks), *((v.extra(a), v.extra(b - 1) + 1) for a, b in TEXT_EXTRAS)] if text else []
    ends = [v.end, v.image_start] if begins else [v.end]
    return tuple(sorted([*words, *_ids(*ends)]))


@functools.lru_cache(maxsize=64)
def _barred(ranges: Ranges, size: int, device: torch.device) -> torch.Tensor:
    barred = torch.ones(size, dtype=torch.bool, device=device)
    for start, stop in ranges:
        barred[start:stop] = False
    return barred


def mask_logits(logits_BV: torch.Tensor, grammars: Sequence[Grammar]) -> torch.Tensor:
    """Logits (B, V) with -inf for what may not follow; V may leave out ids at the end.

    Raises:
        InputError: a row of which nothing is allowed, or other than one grammar a row.
    """
    if len(grammars) != len(logits_BV):
        raise InputError("grammars", len(grammars), f"give one for each of {len(logits_BV)} rows")
    size, device = logits_BV.shape[-1], logits_BV.device
    allowed = [grammar.allowed() for grammar in grammars]
    if not all(ranges and ranges[0][0] < size for ranges in allowed):
        raise InputError(
            "grammars", "a row of which nothing is allowed", f"mask rows that go on, with ids below {size}"
        )
    return logits_BV.masked_fill(torch.stack([_barred(ranges, size, device) for ranges in allowed]), -torch.inf)
