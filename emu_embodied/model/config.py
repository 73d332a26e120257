"""Sizes of the trajectory model, and what fits together. Knows no weights."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from emu_embodied.errors import ConfigError, InputError
from emu_embodied.validation import choice, number, whole_fields

from .noise import NOISES
from .transformer import TransformerConfig
from .vocabulary import Emu35Vocabulary, Vocabulary

LONGEST_TEXT, METRIC_CODES = 1024, 4096  # ids of an instruction; codes of which all pairs are kept


@dataclass(frozen=True)
class TokenModelConfig:
    """Sizes of the trajectory model.

    Attributes:
        vocabulary: the id space, which also says how a frame is written.
        transformer: sizes of the transformer; its vocab_size is the vocabulary's.
        grid: visual tokens per side of a frame.
        action_dim: A, values of an action.
        text_length: L, ids of the padded instruction.
        instruction_length, caption_length: of a model that draws key frames from words: the text's L ids may then hold an
            instruction, a frame and a caption, see `prompt`; 0 where it does not.
        context_frames: C, frames whose keys are in sight of the next one; with 0 it knows the last frame from the
            previous-frame source alone, which makes a frame half as dear where the world hides nothing.
        previous_frame_source: feed the next frame's slots from a 3x3 convolution of the previous frame and the action;
            off, the model is plain Emu3.5 with a noisy half. Frames with structure between their slots have none.
        next_token_shift: noisy slot i is predicted by the hidden state before it, as when an autoregressive checkpoint is
            adapted; off, slots are predicted in place.
        noise: what a noisy copy is made with, one of `noise.NOISES`.
        objects: names of the objects whose positions the state head reports.
        position_scale: world units at the right and at the lower edge of the frame (table-top: 16 and -16 cm).

    Raises:
        InputError: a previous-frame source in the released layout.
        ConfigError: a size out of range, or sizes that do not fit together.
    """

    vocabulary: Vocabulary | Emu35Vocabulary
    transformer: TransformerConfig
    grid: int
    action_dim: int
    text_length: int = 16
    context_frames: int = 2
    previous_frame_source: bool = True
    next_token_shift: bool = False
    noise: str = "absorbing"
    objects: tuple[str, ...] = ()
    position_scale: tuple[float, float] = (16.0, -16.0)
    instruction_length: int = 0
    caption_length: int = 0

    def __post_init__(self) -> None:
        self._check_ranges()
        if (
            self.generates_subgoals
            and self.text_length != self.instruction_length + self.frame_tokens + self.caption_length
        ):
            rule = "must be the lengths of instruction, frame and caption together, or give both lengths as 0"
            raise InputError("text_length", self.text_length, rule)
        if self.previous_frame_source and self.block > self.slots:
            raise InputError(
                "previous_frame_source", True, "choose false where frames have structure between their slots"
            )

    def _check_ranges(self) -> None:
        """What no tensor of the model would tell: lengths, names, scales."""
        whole_fields(
            self,
            {
                "grid": (1, 128),
                "action_dim": (1, 4096),
                "context_frames": (0, 64),
                "instruction_length": (0, LONGEST_TEXT),
                "caption_length": (0, LONGEST_TEXT),
            },
        )
        longest = LONGEST_TEXT + (self.frame_tokens + LONGEST_TEXT if self.generates_subgoals else 0)
        whole_fields(self, {"text_length": (1, longest)})
        if self.transformer.vocab_size != self.vocabulary.size:
            raise ConfigError("transformer.vocab_size", self.transformer.vocab_size, f"must be {self.vocabulary.size}")
        choice("noise", self.noise, NOISES)
        if self.noise == "metric" and self.vocabulary.codebook_size > METRIC_CODES:
            rule = f"it keeps all pairs of codes, of at most {METRIC_CODES}: choose absorbing or uniform"
            raise ConfigError("noise", self.noise, rule)
        check_objects(self.objects)
        check_scale(self.position_scale)

    @property
    def slots(self) -> int:
        """N, visual tokens a frame."""
        return self.grid**2

    @cached_property
    def prefix(self) -> int:
        """Tokens of a frame before its first slot: its action and the image header."""
        return self.action_dim + len(self.vocabulary.image_header(self.grid, self.grid))

    @cached_property
    def block(self) -> int:
        """Tokens of a frame from its first slot on: N, and the structure between and behind them."""
        return len(self.vocabulary.image_block(self.grid, self.grid))

    @property
    def frame_tokens(self) -> int:
        return self.prefix + self.block

    @property
    def generates_subgoals(self) -> bool:
        return bool(self.instruction_length or self.caption_length)


def check_objects(names: Collection[str]) -> None:
    """Checks the names of objects.

    Raises:
        ConfigError: names that are none or stand twice, or more than 256 of them.
    """
    plain = all(isinstance(name, str) and 0 < len(name) <= 200 for name in names)
    if len(names) > 256 or not plain or len(set(names)) < len(names):
        raise ConfigError("objects", list(names), "give at most 256 names, each once")


def check_scale(position_scale: Sequence[float]) -> None:
    """Checks the scale of positions.

    Raises:
        ConfigError: it is not two numbers, or one of them is 0.
    """
    if len(position_scale) != 2:
        raise ConfigError("position_scale", position_scale, "give two numbers, for the right and the lower edge")
    for edge in position_scale:
        number("position_scale", abs(number("position_scale", edge)), 1e-9, 1e9)
