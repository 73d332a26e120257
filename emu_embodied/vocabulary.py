"""The one id space: text | structure | visual | action. Knows the ids, and neither the tokenizers nor the model."""

from __future__ import annotations

from dataclasses import dataclass

STRUCTURE = ("<|pad|>", "<|image start|>", "<|no action|>", "<|end|>")


@dataclass(frozen=True)
class Vocabulary:
    """Sizes and offsets of the id space. Emu3.5's fits: text 0..., its specials, visual from 151854, actions on unused extras.

    Attributes:
        text_size: ids of the text BPE, starting at 0.
        codebook_size: visual codes.
        action_bins: bins an action value falls into; every action dimension uses the same ids.
    """

    text_size: int
    codebook_size: int
    action_bins: int = 64

    @property
    def pad(self) -> int:
        return self.text_size

    @property
    def image_start(self) -> int:
        return self.text_size + 1

    @property
    def no_action(self) -> int:
        """Stands in the action's place before a history's first frame."""
        return self.text_size + 2

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
