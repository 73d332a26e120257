"""Key frames with words: which frame of a cache follows which, and its caption. Knows no simulator and no model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from emu_embodied.types import short_repr

GROUPS = ("behind", "push", "around", "goal", "done", "edit", "next")  # kinds of rows; what they are is hindsight's


@dataclass(frozen=True)
class SubgoalRows:
    """R steps from a frame to a key frame of the same episode.

    Attributes:
        start, target: (R,) int64 frames of the cache.
        goal, caption: (R,) int64, rows of `goals` and of `captions`.
        group: (R,) int64, a row of `groups`; batches are balanced over these.
        goals: the sentences that ask for each goal; no sentence at all for the empty instruction.
        captions: what happens on the way, or is so at the end.
        groups: names of the kinds of rows.
    """

    start: np.ndarray
    target: np.ndarray
    goal: np.ndarray
    caption: np.ndarray
    group: np.ndarray
    goals: tuple[tuple[str, ...], ...]
    captions: tuple[str, ...]
    groups: tuple[str, ...]

    __repr__ = short_repr

    def __len__(self) -> int:
        return len(self.start)

    def texts(self) -> list[str]:
        """Every sentence and caption, for the text tokenizer."""
        return [*self.captions, *(text for texts in self.goals for text in texts)]
