"""The one id space: text | structure | visual | action. Knows the ids, and neither the tokenizers nor the model."""

from __future__ import annotations

from dataclasses import dataclass

from emu_embodied.errors import InputError
from emu_embodied.validation import whole_fields

STRUCTURE = ("<|pad|>", "<|image start|>", "<|no action|>", "<|end|>")


@dataclass(frozen=True)
class Vocabulary:
    """Sizes and offsets of a small model's id space; `Emu35Vocabulary` is the released models'.

    Attributes:
        text_size: ids of the text BPE, starting at 0.
        codebook_size: visual codes.
        action_bins: bins an action value falls into; every action dimension uses the same ids.

    Raises:
        ConfigError: a size out of range.
    """

    text_size: int
    codebook_size: int
    action_bins: int = 64

    def __post_init__(self) -> None:
        whole_fields(self, {"text_size": (1, 1 << 20), "codebook_size": (1, 1 << 20), "action_bins": (1, 1 << 16)})

    @property
    def pad(self) -> int:
        return self.text_size

    @property
    def image_start(self) -> int:
        return self.text_size + 1

    def image_header(self, height: int, width: int) -> list[int]:
        """What stands before an image's first visual token: `<|image start|>`; a small model has frames of one size."""
        return [self.image_start]

    def image_block(self, height: int, width: int) -> list[int | None]:
        """An image's tokens after its header, None for each visual one: there is nothing else."""
        return [None] * (height * width)

    @property
    def no_action(self) -> int:
        """Stands in the action's place before a history's first frame."""
        return self.text_size + 2

    @property
    def end(self) -> int:
        """Closes a caption."""
        return self.text_size + 3

    @property
    def visual_offset(self) -> int:
        return self.text_size + len(STRUCTURE)

    @property
    def action_offset(self) -> int:
        return self.visual_offset + self.codebook_size

    @property
    def size(self) -> int:
        return self.action_offset + self.action_bins

    @property
    def visual(self) -> slice:
        """The visual ids as a slice of logits or embeddings."""
        return slice(self.visual_offset, self.action_offset)

    @property
    def action(self) -> slice:
        """The action ids as a slice of logits or embeddings."""
        return slice(self.action_offset, self.size)


@dataclass(frozen=True)
class Emu35Vocabulary:
    """The released id space (Emu3.5, arXiv 2510.26583), with actions on specials that it leaves unused; nothing is resized.

    Text BPE, `<|endoftext|>`, two chat specials, 205 extras, three image tokens, visual codes. All ids follow from the number
    of BPE ranks, so that a small tokenizer makes a small model.

    | what | id in the released models | extra |
    |---|---|---|
    | the action's bins | 151748 .. 151748 + action_bins - 1, at most 90 | 102 .. |
    | no action (before a history's first frame) | 151838 | 192 |

    Attributes:
        ranks: of the text BPE.
        codebook_size: visual codes.
        action_bins: bins an action value falls into; at most 90.
    """

    ranks: int = 151643
    codebook_size: int = 131072
    action_bins: int = 64

    def __post_init__(self) -> None:
        whole_fields(self, {"ranks": (1, 1 << 24), "codebook_size": (1, 1 << 24)})
        if not 1 <= self.action_bins <= 90:
            raise InputError("action_bins", self.action_bins, "choose 1 to 90: so many specials are free in one run")

    def extra(self, index: int) -> int:
        """`<|extra_index|>`, 0 to 204."""
        return self.ranks + 3 + index

    @property
    def text_size(self) -> int:
        """Ids below the visual ones: text, specials and image structure."""
        return self.visual_offset

    @property
    def pad(self) -> int:
        """`<|endoftext|>`."""
        return self.ranks

    @property
    def beginning(self) -> int:
        """BOS."""
        return self.extra(203)

    @property
    def end(self) -> int:
        """EOS."""
        return self.extra(204)

    @property
    def span_start(self) -> int:
        """BSS: the supervised span, which is the model's answer, begins."""
        return self.extra(100)

    @property
    def span_end(self) -> int:
        """ESS."""
        return self.extra(101)

    @property
    def end_of_line(self) -> int:
        """EOL, between the rows of an image."""
        return self.extra(200)

    @property
    def image_token(self) -> int:
        """IMG, between an image's size and its first row."""
        return self.extra(205)

    @property
    def image_start(self) -> int:
        """BOI."""
        return self.extra(206)

    @property
    def image_end(self) -> int:
        """EOI."""
        return self.extra(207)

    @property
    def times(self) -> int:
        """`*`, between an image's height and its width."""
        return 9

    def digit(self, value: int) -> int:
        """The BPE token of one digit."""
        return 15 + value

    def number(self, value: int) -> list[int]:
        """One token a digit."""
        return [self.digit(int(figure)) for figure in str(value)]

    def image_header(self, height: int, width: int) -> list[int]:
        """What stands before an image's first row: `BOI height * width IMG`, sizes in tokens."""
        return [self.image_start, *self.number(height), self.times, *self.number(width), self.image_token]

    def image_block(self, height: int, width: int) -> list[int | None]:
        """An image's tokens after its header, None for each visual one: EOL between the rows, EOI after the last."""
        row = [None] * width
        return [*(row + [self.end_of_line]) * (height - 1), *row, self.image_end]

    @property
    def no_action(self) -> int:
        """Stands in the action's place before a history's first frame."""
        return self.extra(192)

    @property
    def visual_offset(self) -> int:
        return self.extra(208)

    @property
    def action_offset(self) -> int:
        return self.extra(102)

    @property
    def size(self) -> int:
        return self.visual_offset + self.codebook_size

    @property
    def visual(self) -> slice:
        """The visual ids as a slice of logits or embeddings."""
        return slice(self.visual_offset, self.size)

    @property
    def action(self) -> slice:
        """The action ids as a slice of logits or embeddings."""
        return slice(self.action_offset, self.action_offset + self.action_bins)
